"""What all pages have: the frame around them, who looks at them, and how a failure looks."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.templating import Jinja2Templates

from usage_pipeline.web.identity import Identity
from usage_pipeline.web.pages import PAGES_DIR
from usage_pipeline.web.state import Web

_templates = Jinja2Templates(directory=PAGES_DIR / "templates")


def _quantity(value: Decimal | None) -> str:
    """Exact, with thousands apart, without zeros at the end."""
    if value is None:
        return "–"
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _percent(value: Decimal | None) -> str:
    return "–" if value is None else f"{value * 100:,.1f} %"


def _day(value: date) -> str:
    return f"{value.day} {value:%B %Y}"


_templates.env.filters.update(quantity=_quantity, percent=_percent, day=_day)


class SignInFirst(HTTPException):
    """A page that nobody sees who is not signed in."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.SEE_OTHER, headers={"Location": "/sign-in"})


def _signed_in(request: Request) -> Identity:
    web: Web = request.app.state.web
    identity = web.sessions.identity(request)
    if identity is None:
        raise SignInFirst
    return identity


SignedIn = Annotated[Identity, Depends(_signed_in)]


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A page in its frame."""
    web: Web = request.app.state.web
    shared = {
        "identity": web.sessions.identity(request),
        "csrf_token": web.sessions.csrf_token(request),
        "upgrade_url": web.settings.upgrade_url,
        "dagster_url": web.settings.dagster_url,
    }
    return _templates.TemplateResponse(request, template, {**shared, **context}, status_code=status)


def refused(request: Request, error: Exception) -> Response:
    """What is not there, not allowed, or not signed in to."""
    assert isinstance(error, HTTPException)
    if isinstance(error, SignInFirst):
        return RedirectResponse("/sign-in", status_code=error.status_code)
    phrase = HTTPStatus(error.status_code).phrase
    return render(request, "error.html", error.status_code, title=phrase, detail=error.detail)


def unavailable(request: Request, error: Exception) -> Response:
    """The database is away, or nothing is published yet."""
    return render(request, "error.html", 503, title="Not available", detail=str(error))
