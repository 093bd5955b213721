"""A user's usage: personal, or in an organisation they are of."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from usage_pipeline.web import figures
from usage_pipeline.web.pages.base import SignedIn, render
from usage_pipeline.web.state import FromWeb

router = APIRouter(include_in_schema=False)


@router.get("/")
def start(web: FromWeb, request: Request) -> Response:
    """Where one begins."""
    signed_in = web.sessions.identity(request)
    return RedirectResponse("/usage" if signed_in else "/sign-in", status_code=303)


@router.get("/usage")
def my_usage(
    request: Request,
    web: FromWeb,
    identity: SignedIn,
    period: Literal["week", "month", "year"] = "month",
) -> Response:
    """Cards of metrics, limits and trends."""
    with web.reader.open() as published:
        cards = figures.summary(published, period, user_id=identity.user_id)
    return render(request, "my_usage.html", cards=cards, period=period)
