"""Where a browser signs in and out, and the application's own tokens made into sessions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from usage_pipeline.web import figures
from usage_pipeline.web.credentials.tokens import BadToken
from usage_pipeline.web.pages.base import render
from usage_pipeline.web.session import OwnForm
from usage_pipeline.web.state import FromWeb
from usage_pipeline.web.this_machine import is_this_machine

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
def sign_in(request: Request, web: FromWeb) -> Response:
    """The ways that there are; in development, users with the most usage to pick one."""
    users = None
    if web.settings.development and is_this_machine(request):
        with web.reader.open() as published:
            users = figures.busiest_users(published, 20)
    return render(request, "sign_in.html", users=users, oidc=web.oidc is not None)


@router.post("/sign-in/token")
def by_token(web: FromWeb, token: Annotated[str, Form(max_length=16_384)]) -> Response:
    """A session for who has a token of the application; its pages send it as a form."""
    try:
        identity = web.tokens.identity(token)
    except BadToken as error:
        raise HTTPException(401, f"The token is not valid ({error}).") from None
    if identity.user_id is None or not web.members.is_active(identity.user_id):
        raise HTTPException(401, "The application has no such user.")
    response = RedirectResponse("/usage", status_code=303)
    web.sessions.begin(response, identity)
    return response


@router.post("/sign-out")
def sign_out(web: FromWeb, own_form: OwnForm) -> Response:
    """End the session of this browser."""
    response = RedirectResponse("/sign-in", status_code=303)
    web.sessions.end(response)
    return response
