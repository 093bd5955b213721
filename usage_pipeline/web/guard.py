"""Around every request: its id, how large it may be, where it may come from, what its answer tells
the browser, how long it took, and what becomes of a failure that nobody expected.

Plain ASGI, so that streams stay streams.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from usage_pipeline.infra.postgres import redact
from usage_pipeline.settings import MAIL_ADDRESS, Settings
from usage_pipeline.web.metrics import Metrics

_log = logging.getLogger(__name__)

MOST_BYTES = 1024 * 1024
API = "/api/"
# Where a page of the application sends its user's token to.
TOKEN_FORM = "/sign-in/token"
_REQUEST_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_SAFE = ("GET", "HEAD", "OPTIONS")


class TooLarge(HTTPException):
    """More than anything here is sent."""

    def __init__(self) -> None:
        super().__init__(413, f"Send at most {MOST_BYTES:,} bytes.")


class CutOff(Exception):
    """Ends a connection whose answer had begun, so that nobody takes it for whole."""


class Guard:
    """The outermost middleware of ours.

    Args:
        answer: the answer to a failure.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        answer: Callable[[Request, Exception], Response],
    ) -> None:
        self._app, self._metrics, self._answer = app, metrics, answer
        self._headers = security_headers(settings)
        self._frames = settings.frame_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        started, received, status = time.perf_counter(), 0, 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MOST_BYTES:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    sent.setdefault(name, value)
                sent.setdefault("X-Request-ID", request_id)
                if "etag" not in sent:
                    sent.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._refuse(scope, headers)
            await self._app(scope, bounded, noted)
        except Exception as error:
            if not isinstance(error, HTTPException):
                _log.error("Request %s failed\n%s", request_id, _without_secrets(error))
                error = HTTPException(500, f"This failed. Tell us the request: {request_id}.")
            if status:
                raise CutOff from None
            await self._answer(Request(scope), error)(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(_method(scope), route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _refuse(self, scope: Scope, headers: Headers) -> None:
        """What is too large, or a page of somebody else's makes a browser send.

        Raises:
            HTTPException: it is refused.
        """
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            raise TooLarge
        origin, path = headers.get("origin"), scope["path"]
        if scope["method"] in _SAFE or path.startswith(API) or origin is None:
            return
        own = urlsplit(origin).netloc == headers.get("host")
        if not own and not (path == TOKEN_FORM and origin in self._frames):
            raise HTTPException(403, "The form is of another site.")


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _without_secrets(error: Exception) -> str:
    text = redact("".join(traceback.format_exception(error)))
    return MAIL_ADDRESS.sub("***", text)


def security_headers(settings: Settings) -> dict[str, str]:
    """What every answer tells the browser: no script, style or frame but our own."""
    frames = " ".join(settings.frame_origins) or "'none'"
    headers = {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
            f"frame-ancestors {frames}"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    }
    if settings.web_url.startswith("https://"):
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return headers
