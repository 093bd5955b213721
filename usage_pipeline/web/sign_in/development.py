"""Who sits at this machine picks whom to be: for development and demos, on loopback only."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from usage_pipeline.web.identity import Identity
from usage_pipeline.web.state import FromWeb
from usage_pipeline.web.this_machine import is_this_machine

router = APIRouter(include_in_schema=False)


@router.post("/sign-in/development")
def chosen(
    request: Request,
    web: FromWeb,
    user_id: Annotated[UUID, Form()],
    admin: Annotated[bool, Form()] = False,
) -> Response:
    """Be that user."""
    if not is_this_machine(request):
        raise HTTPException(403, "The development sign-in is for this machine only.")
    if not web.members.is_active(user_id):
        raise HTTPException(403, "The application has no such user.")
    response = RedirectResponse("/usage", status_code=303)
    web.sessions.begin(response, Identity(user_id, is_admin=admin, via="development"))
    return response
