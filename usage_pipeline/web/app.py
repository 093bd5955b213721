"""The web application: what each part is given, and what a failure looks like. No SQL, no HTML."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.api import admin, cron, events, health, portal_links, usage
from usage_pipeline.web.api.problems import ProblemDetails, problem
from usage_pipeline.web.credentials.portal_links import PortalLinks
from usage_pipeline.web.credentials.service_keys import ServiceKeys
from usage_pipeline.web.credentials.tokens import Tokens
from usage_pipeline.web.guard import API, Guard
from usage_pipeline.web.identity import Members
from usage_pipeline.web.ingestion import IncomingEvent, IncomingTokens, Ingestion, takes_events
from usage_pipeline.web.metrics import Metrics
from usage_pipeline.web.pages import PAGES_DIR, models, my_usage, organisation, platform, why
from usage_pipeline.web.pages.base import refused, unavailable
from usage_pipeline.web.pages.charts import chart_script
from usage_pipeline.web.rates import Rates
from usage_pipeline.web.reader import open_reader
from usage_pipeline.web.session import Sessions, web_secret
from usage_pipeline.web.sign_in import browser, development, oidc, portal
from usage_pipeline.web.state import Actions, Web


def make_app(settings: Settings, actions: Actions) -> FastAPI:
    """Pages and API of one USAGE_HOME. No database is asked before the first request."""
    app = FastAPI(
        title="usage-pipeline",
        version=version("usage-pipeline"),
        description="Usage of an application: events in, exact totals out.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    members, metrics = Members(settings), Metrics()
    app.state.web = Web(
        settings=settings,
        actions=actions,
        reader=open_reader(settings),
        members=members,
        sessions=Sessions(settings, members),
        tokens=Tokens(settings),
        service_keys=ServiceKeys(settings),
        portal_links=PortalLinks(settings),
        oidc=oidc.oidc_client(settings),
        ingestion=Ingestion(settings) if takes_events(settings) else None,
        rates=Rates(),
        metrics=metrics,
    )
    app.mount("/static", StaticFiles(directory=PAGES_DIR / "static"), name="static")
    app.add_api_route("/charts.js", chart_script, include_in_schema=False)
    for part in (events, usage, portal_links, cron, admin, browser, portal):
        app.include_router(part.router)
    for page in (my_usage, organisation, platform, why, models):
        app.include_router(page.router)
    app.include_router(health.router, prefix=API.rstrip("/"))
    app.include_router(health.router, include_in_schema=False)
    if settings.development:
        app.include_router(development.router)
    if settings.oidc_issuer:
        app.include_router(oidc.router)
        app.add_middleware(
            SessionMiddleware,
            secret_key=web_secret(settings),
            session_cookie=oidc.COOKIE,
            max_age=oidc.COOKIE_SECONDS,
            path=oidc.COOKIE_PATH,
            https_only=settings.web_url.startswith("https://"),
        )
    app.add_middleware(Guard, settings=settings, metrics=metrics, answer=_failed)
    for failure in (UsagePipelineError, HTTPException, RequestValidationError):
        app.add_exception_handler(failure, _failed)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    web: Web = app.state.web
    for pool in (web.reader, web.members, web.ingestion):
        if pool:
            pool.close()


def _failed(request: Request, error: Exception) -> Response:
    """Problems for programs, pages for people."""
    if request.url.path.startswith((API, *health.PATHS)):
        return problem(request, error)
    try:
        if isinstance(error, UsagePipelineError):
            return unavailable(request, error)
        if isinstance(error, RequestValidationError):
            error = HTTPException(422, "The address or the form has a value that is not valid.")
        return refused(request, error)
    except UsagePipelineError as away:
        return unavailable(request, away)


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with what bodies are read by hand and what failures look like."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = described["components"]["schemas"]
        for model in (IncomingEvent, IncomingTokens, ProblemDetails):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        app.openapi_schema = described
    return app.openapi_schema
