"""The session of a browser: a signed cookie with who signed in, and what guards its forms.

A portal link's session is another cookie, which a frame on a foreign page gets as well. It is
short, and never an admin's.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.responses import Response

from usage_pipeline.infra.disk import scratch
from usage_pipeline.settings import Settings
from usage_pipeline.web.identity import Identity, Members
from usage_pipeline.web.this_machine import is_this_machine

COOKIE, PORTAL_COOKIE = "usage_session", "usage_portal"
SESSION_SECONDS, PORTAL_SECONDS = 12 * 3600, 3600


def web_secret(settings: Settings) -> str:
    """The setting, or one that is made once and kept for the owner alone."""
    if settings.web_secret:
        return settings.web_secret.get_secret_value()
    path = settings.web_dir / "secret"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(settings) as work, suppress(FileExistsError):  # another process made one
            (work / path.name).touch(0o600)
            (work / path.name).write_text(secrets.token_hex(32))
            os.link(work / path.name, path)
    return path.read_text()


@dataclass(frozen=True)
class _Cookie:
    """What a browser keeps of one of the two kinds of session."""

    name: str
    seconds: int
    attributes: str
    signer: URLSafeTimedSerializer


class Sessions:
    """Reads and writes the cookies."""

    def __init__(self, settings: Settings, members: Members) -> None:
        self._members = members
        self._development = settings.development
        secure = settings.web_url.startswith("https://")
        # Only pages of this host itself can set a cookie of that name.
        prefix, https = ("__Host-", "; Secure") if secure else ("", "")
        framed = secure and settings.frame_origins
        secret = web_secret(settings)
        self._own = _Cookie(
            prefix + COOKIE,
            SESSION_SECONDS,
            f"SameSite=Lax{https}",
            URLSafeTimedSerializer(secret, salt="session"),
        )
        self._portal = _Cookie(
            prefix + PORTAL_COOKIE,
            PORTAL_SECONDS,
            f"SameSite=None{https}; Partitioned" if framed else f"SameSite=Lax{https}",
            URLSafeTimedSerializer(secret, salt="portal session"),
        )

    def begin(self, response: Response, identity: Identity) -> None:
        """Sign somebody in, in the place of whoever was."""
        cookie = self._portal if identity.via == "portal" else self._own
        session = {
            "user": str(identity.user_id) if identity.user_id else None,
            "admin": identity.is_admin,
            "org": str(identity.org_id) if identity.org_id else None,
            "via": identity.via,
            "csrf": secrets.token_urlsafe(32),
        }
        other = self._own if cookie is self._portal else self._portal
        _set(response, other, "", 0)
        _set(response, cookie, str(cookie.signer.dumps(session)), cookie.seconds)

    def end(self, response: Response) -> None:
        """Sign out."""
        for cookie in (self._own, self._portal):
            _set(response, cookie, "", 0)

    def identity(self, request: Request) -> Identity | None:
        """Who signed in; None when nobody did, when it is too long ago, or when the application has
        the user no more. Asked of the source once a request.

        Raises:
            UsagePipelineError: the source cannot be read; asked again in this request, None.
        """
        if not hasattr(request.state, "identity"):
            request.state.identity = None
            request.state.identity = self._still_valid(request)
        found: Identity | None = request.state.identity
        return found

    def csrf_token(self, request: Request) -> str:
        """What a form of this session sends along."""
        _, session = self._session(request)
        return str(session.get("csrf", ""))

    def is_own_form(self, request: Request, token: str) -> bool:
        """Whether a form was served to this session."""
        expected = self.csrf_token(request)
        return bool(expected) and hmac.compare_digest(expected.encode(), token.encode())

    def _still_valid(self, request: Request) -> Identity | None:
        cookie, session = self._session(request)
        if not session:
            return None
        user, org, via = session["user"], session["org"], session["via"]
        if via == "development" and not (self._development and is_this_machine(request)):
            return None
        if user and not self._members.is_active(UUID(user)):
            return None
        portal = cookie is self._portal
        return Identity(
            user_id=UUID(user) if user else None,
            is_admin=session["admin"] and not portal,
            org_id=UUID(org) if org else None,
            via="portal" if portal else via,
        )

    def _session(self, request: Request) -> tuple[_Cookie, dict[str, Any]]:
        """A portal link's first: who has both sees what the link shows, and no more."""
        for cookie in (self._portal, self._own):
            value = request.cookies.get(cookie.name)
            with suppress(BadSignature):
                if value:
                    return cookie, dict(cookie.signer.loads(value, max_age=cookie.seconds))
        return self._own, {}


def _set(response: Response, cookie: _Cookie, value: str, seconds: int) -> None:
    """By hand, since Python knows `Partitioned` from 3.14 on; the value is URL-safe."""
    response.headers.append(
        "Set-Cookie",
        f"{cookie.name}={value}; Max-Age={seconds}; Path=/; HttpOnly; {cookie.attributes}",
    )


async def _own_form(request: Request) -> None:
    token = request.headers.get("x-csrf-token") or (await request.form()).get("csrf_token")
    sessions: Sessions = request.app.state.web.sessions
    if not isinstance(token, str) or not sessions.is_own_form(request, token):
        raise HTTPException(403, "The form is not of this session. Open the page again.")


# That a form, or a request with the header X-CSRF-Token, is of a page of this session.
OwnForm = Annotated[None, Depends(_own_form)]


def _may_change(request: Request, own_form: OwnForm) -> Identity:
    identity: Identity | None = request.app.state.web.sessions.identity(request)
    if identity is None or not identity.may_change:
        raise HTTPException(403, "This link shows usage, and changes nothing.")
    return identity


# What each route asks for that changes something for who is signed in by a cookie.
MayChange = Annotated[Identity, Depends(_may_change)]
