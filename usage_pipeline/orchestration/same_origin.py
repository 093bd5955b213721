"""Who may ask the webserver: pages that it served itself, and programs of this machine.

It has no login and is bound to 127.0.0.1, but any page in a browser on this machine can send
requests there, and with a host name of its own that resolves to 127.0.0.1 it could read answers.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_ITS_OWN = ("same-origin", "none")  # of Sec-Fetch-Site; none: typed, or a bookmark


class SameOriginOnly:
    """ASGI middleware that refuses foreign hosts, foreign origins, and GraphQL in an address.

    Args:
        app: what is protected.
        port: that it is served on, at 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            await PlainTextResponse(refusal, 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            return "This host is not known here."
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self._hosts}:
            return "Pages of other origins are refused."
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        followed_link = reads and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in _ITS_OWN and not followed_link:
            return "Pages of other origins are refused."
        # Dagster executes it, mutations too; its own pages use POST.
        if reads and scope["path"].startswith("/graphql") and scope["query_string"]:
            return "GraphQL is answered to POST only."
        return None
