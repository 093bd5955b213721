"""For who keeps the application running: whether it lives, whether it can answer, what it did."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Depends, Request
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.web.api.answers import plain
from usage_pipeline.web.api.callers import bearer, refused
from usage_pipeline.web.api.problems import Problem, documented
from usage_pipeline.web.credentials.service_keys import Scope
from usage_pipeline.web.state import FromWeb, Web
from usage_pipeline.web.this_machine import is_this_machine

router = APIRouter(tags=["operation"])
PATHS = ("/healthz", "/readyz", "/metrics")  # and the same below /api


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """All that is asked of it can be answered."""

    status: Literal["ready"]
    snapshot_id: str
    published_at: datetime
    age_seconds: int


@router.get(
    "/healthz",
    response_model=Alive,
    responses={200: {"content": {"application/json": {"example": {"status": "alive"}}}}},
)
async def healthz() -> Response:
    """Whether the process lives. Asks no database, and waits for no thread that others have."""
    return JSONResponse({"status": "alive"})


@router.get(
    "/readyz",
    response_model=Ready,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "status": "ready",
                        "snapshot_id": "20260601T010203-1f",
                        "published_at": "2026-06-01T01:02:03Z",
                        "age_seconds": 3600,
                    }
                }
            }
        },
        **documented(),
    },
)
def readyz(web: FromWeb) -> Response:
    """Whether pages and API can answer: the published tables and the source can be read, and there
    is something to show, of the given age."""
    web.members.ask_for_nothing()
    with web.reader.open() as published:
        snapshot = published.snapshot
    return JSONResponse(
        {
            "status": "ready",
            "snapshot_id": snapshot.snapshot_id,
            "published_at": plain(snapshot.published_at),
            "age_seconds": int(_age(snapshot.published_at)),
        }
    )


def _scraper(request: Request, web: FromWeb) -> None:
    """From this machine without a key; from elsewhere with one that may read figures."""
    if is_this_machine(request):
        return
    key = web.service_keys.find(bearer(request))
    if key is None:
        raise refused(request, web, "Send a service key, or ask from this machine.")
    if Scope.ADMIN_READ not in key.scopes:
        raise Problem(403, "This takes a service key with the scope admin:read.")


@router.get(
    "/metrics",
    dependencies=[Depends(_scraper)],
    openapi_extra={"security": [{"HTTPBearer": []}, {}]},
    responses={
        200: {
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'usage_web_events_total{status="accepted"} 12.0\n',
                }
            }
        },
        **documented(401, 403),
    },
    response_class=Response,
)
def metrics(web: FromWeb) -> Response:
    """Counters and gauges, for Prometheus."""
    for name, pool in _pools(web).items():
        web.metrics.connections.labels(name).set(pool)
    try:
        with web.reader.open() as published:
            web.metrics.published_age.set(_age(published.snapshot.published_at))
    except UsagePipelineError:
        web.metrics.published_age.set(math.nan)
    return Response(generate_latest(web.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _pools(web: Web) -> dict[str, int]:
    found = {"published": web.reader.in_use, "source": web.members.in_use}
    return found | ({"ingestion": web.ingestion.in_use} if web.ingestion else {})


def _age(published_at: datetime) -> float:
    return (datetime.now(UTC) - published_at).total_seconds()
