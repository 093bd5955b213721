"""What all pages have: the frame around them, who looks at them, and how a failure looks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date, datetime
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.templating import Jinja2Templates

from usage_pipeline.app_db.fingerprints import EXACT
from usage_pipeline.meters.meter import Meter
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.pages import PAGES_DIR
from usage_pipeline.web.rates import HEAVY
from usage_pipeline.web.state import Web

_templates = Jinja2Templates(directory=PAGES_DIR / "templates")

_templates.env.auto_reload = False  # they are the installed package's

NONE = "–"
_SPACE = "\N{NO-BREAK SPACE}"
_Scales = tuple[tuple[int, str], ...]
_LARGE: _Scales = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_BYTES: _Scales = (
    (10**15, "PB"),
    (10**12, "TB"),
    (10**9, "GB"),
    (10**6, "MB"),
    (10**3, "kB"),
    (1, "B"),
)


def exact(value: Decimal | int | None) -> str:
    """All digits, with thousands apart, without zeros at the end."""
    if value is None:
        return NONE
    text = f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain(value: Decimal | None) -> str:
    """All digits, for programs; empty for an unknown."""
    return "" if value is None else exact(value).replace(",", "")


def human(value: Decimal | int | None, unit: str = "") -> str:
    """As people say it: `1.23 M`; bytes by their own names. Small numbers keep two decimals."""
    if value is None:
        return NONE
    number = Decimal(value)
    scales = _BYTES if unit == "bytes" else _LARGE if abs(number) >= 100_000 else ()
    for size, name in scales:
        if abs(number) >= size or size == 1:
            scaled = EXACT.divide(number, size)
            digits = Decimal(1).scaleb(-max(0, 2 - max(0, scaled.adjusted())))
            return f"{exact(scaled.quantize(digits, ROUND_HALF_UP, EXACT))}{_SPACE}{name}"
    return exact(number.quantize(Decimal("0.01"), ROUND_HALF_UP, EXACT))


def percent(value: Decimal | None, digits: int = 1) -> str:
    """Rounded down, so that 100 % is said of nothing that is less."""
    if value is None:
        return NONE
    step = Decimal(1).scaleb(-digits)
    return f"{value.scaleb(2, EXACT).quantize(step, ROUND_DOWN, EXACT):,f}{_SPACE}%"


def share_of_limit(row: Mapping[str, Any]) -> Decimal | None:
    """The used share of a limit, of more digits than `used_ratio` has, which is rounded to nine: so
    the status and the percentage agree."""
    if row["used_ratio"] is None:
        return None
    return EXACT.divide(row["used_quantity"], row["limit_quantity"])


def change(value: Decimal) -> str:
    """How much more or less, without its sign."""
    hundredths = value.copy_abs().scaleb(2, EXACT)
    return f"{hundredths.quantize(Decimal('0.1'), ROUND_HALF_UP, EXACT):,f}{_SPACE}%"


def day(value: date) -> str:
    return f"{value.day} {value:%B %Y}"


def short_day(value: date) -> str:
    return f"{value.day}{_SPACE}{value:%b}"


def month(value: date) -> str:
    return f"{value:%B %Y}"


def moment(value: datetime) -> str:
    return f"{value.day} {value:%B %Y, %H:%M} UTC"


def title(meter: Meter) -> str:
    """What a meter is called on a page."""
    return meter.description or meter.key.replace("_", " ").capitalize()


def unit(meter: Meter) -> str:
    """The unit to be said after a number of `human`, which says bytes itself."""
    return "" if meter.unit == "bytes" else meter.unit


_templates.env.filters.update(
    change=change,
    day=day,
    exact=exact,
    human=human,
    moment=moment,
    month=month,
    percent=percent,
    share_of_limit=share_of_limit,
    short_day=short_day,
    title_of=title,
    unit_of=unit,
)


@cache
def static_version() -> str:
    """Changes with what browsers keep: static files, and pages of these templates."""
    digest = hashlib.sha256()
    for path in sorted(PAGES_DIR.glob("[st]*/*.*")):  # static and templates
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_templates.env.globals["static_version"] = static_version


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


def require_patience(web: Web, identity: Identity, what: str) -> None:
    """That somebody does not ask too often for what costs much.

    Raises:
        HTTPException: they do.
    """
    if web.rates.take(f"{what} {identity.user_id or identity.via}", HEAVY):
        raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, "Wait a moment, and ask again.")


def not_there() -> HTTPException:
    """Also of what somebody may not see: that it exists is not told."""
    return HTTPException(HTTPStatus.NOT_FOUND, "There is no such page, or it is not yours to see.")


def unchanged(request: Request, *of: object) -> tuple[str, Response | None]:
    """The tag of a page that is made of these and nothing else, and the answer to a browser that
    has it already."""
    web: Web = request.app.state.web
    parts = (static_version(), web.sessions.csrf_token(request), str(request.url), *of)
    tag = f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'
    if tag in request.headers.get("if-none-match", ""):
        return tag, Response(
            status_code=HTTPStatus.NOT_MODIFIED,
            headers={"ETag": tag, "Cache-Control": "private, no-cache"},
        )
    return tag, None


def render(
    request: Request, template: str, status: int = 200, *, tag: str = "", **context: Any
) -> Response:
    """A page in its frame."""
    web: Web = request.app.state.web
    shared = {
        "identity": web.sessions.identity(request),
        "csrf_token": web.sessions.csrf_token(request),
        "upgrade_url": web.settings.upgrade_url,
        "dagster_url": web.settings.dagster_url,
        "timezone": web.settings.timezone,
    }
    response = _templates.TemplateResponse(
        request, template, {**shared, **context}, status_code=status
    )
    response.headers["Cache-Control"] = "private, no-cache" if tag else "private, no-store"
    if tag:
        response.headers["ETag"] = tag
    return response


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
