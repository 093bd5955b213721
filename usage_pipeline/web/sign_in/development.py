"""Who sits at this machine picks whom to be: for development and demos, on loopback only."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from usage_pipeline.settings import LOOPBACK
from usage_pipeline.web import figures
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.pages.base import render
from usage_pipeline.web.state import FromWeb

router = APIRouter(include_in_schema=False)


def _require_this_machine(request: Request) -> None:
    """A proxy's visitors come from elsewhere, and a foreign name may resolve to 127.0.0.1."""
    client = request.client.host if request.client else ""
    forwarded = {"x-forwarded-for", "forwarded", "x-real-ip"} & set(request.headers)
    if (
        not client
        or not ip_address(client).is_loopback
        or request.url.hostname not in LOOPBACK
        or forwarded
    ):
        raise HTTPException(403, "The development sign-in is for this machine only.")


@router.get("/sign-in")
def choose(request: Request, web: FromWeb) -> Response:
    """Users with the most usage, to pick one."""
    _require_this_machine(request)
    with web.reader.open() as published:
        users = figures.busiest_users(published, 20)
    return render(request, "sign_in.html", users=users)


@router.post("/sign-in/development")
def chosen(
    request: Request,
    web: FromWeb,
    user_id: Annotated[UUID, Form()],
    admin: Annotated[bool, Form()] = False,
) -> Response:
    """Be that user."""
    _require_this_machine(request)
    response = RedirectResponse("/usage", status_code=303)
    web.sessions.begin(response, Identity(user_id, is_admin=admin, via="development"))
    return response
