"""The session of a browser: a signed cookie with who signed in, and what guards its forms."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from typing import Any
from uuid import UUID

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from usage_pipeline.infra.disk import scratch
from usage_pipeline.settings import Settings
from usage_pipeline.web.identity import Identity

COOKIE = "usage_session"
_HOURS = 12


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


class Sessions:
    """Reads and writes the cookie."""

    def __init__(self, settings: Settings) -> None:
        self._signer = URLSafeTimedSerializer(web_secret(settings), salt="session")
        self._secure = settings.web_url.startswith("https://")

    def begin(self, response: Response, identity: Identity) -> None:
        """Sign somebody in."""
        session = {
            "user": str(identity.user_id) if identity.user_id else None,
            "admin": identity.is_admin,
            "org": str(identity.org_id) if identity.org_id else None,
            "via": identity.via,
            "csrf": secrets.token_urlsafe(32),
        }
        response.set_cookie(
            COOKIE,
            str(self._signer.dumps(session)),
            max_age=_HOURS * 3600,
            httponly=True,
            secure=self._secure,
            samesite="lax",
        )

    def end(self, response: Response) -> None:
        """Sign out."""
        response.delete_cookie(COOKIE)

    def identity(self, request: Request) -> Identity | None:
        """Who signed in; None when nobody did, or it is too long ago."""
        session = self._session(request)
        if not session:
            return None
        user, org = session["user"], session["org"]
        return Identity(
            user_id=UUID(user) if user else None,
            is_admin=session["admin"],
            org_id=UUID(org) if org else None,
            via=session["via"],
        )

    def csrf_token(self, request: Request) -> str:
        """What a form of this session sends along."""
        return str((self._session(request) or {}).get("csrf", ""))

    def is_own_form(self, request: Request, token: str) -> bool:
        """Whether a form was served to this session."""
        expected = self.csrf_token(request)
        return bool(expected) and hmac.compare_digest(expected, token)

    def _session(self, request: Request) -> dict[str, Any] | None:
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            return dict(self._signer.loads(cookie, max_age=_HOURS * 3600))
        except BadSignature:
            return None
