"""The web application: what each part is given, what every answer carries, and what a failure
looks like. No SQL and no HTML.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.identity import Members
from usage_pipeline.web.pages import PAGES_DIR, models, my_usage, organisation, platform, why
from usage_pipeline.web.pages.base import refused, unavailable
from usage_pipeline.web.pages.charts import chart_script
from usage_pipeline.web.reader import open_reader
from usage_pipeline.web.session import Sessions
from usage_pipeline.web.sign_in import development
from usage_pipeline.web.state import Actions, Web


def make_app(settings: Settings, actions: Actions) -> FastAPI:
    """Pages and API of one USAGE_HOME.

    Raises:
        UsagePipelineError: a database cannot be reached.
    """
    app = FastAPI(
        title="usage-pipeline",
        version=version("usage-pipeline"),
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.web = Web(
        settings=settings,
        actions=actions,
        reader=open_reader(settings),
        members=Members(settings),
        sessions=Sessions(settings),
    )
    app.middleware("http")(_secured(settings))
    app.mount("/static", StaticFiles(directory=PAGES_DIR / "static"), name="static")
    app.add_api_route("/charts.js", chart_script, include_in_schema=False)
    if settings.development:
        app.include_router(development.router)
    for page in (my_usage, organisation, platform, why, models):
        app.include_router(page.router)
    app.add_exception_handler(UsagePipelineError, unavailable)
    app.add_exception_handler(HTTPException, refused)
    return app


def _secured(
    settings: Settings,
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
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

    async def secured(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await answer(request)
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        return response

    return secured
