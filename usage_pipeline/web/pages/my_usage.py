"""A user's usage: personal, in all, or of an organisation they are of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from itertools import chain

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.serving.exports import stream_events
from usage_pipeline.web import figures
from usage_pipeline.web.figures import Period, State, Subject
from usage_pipeline.web.identity import MANAGERS, Identity
from usage_pipeline.web.pages.base import (
    SignedIn,
    not_there,
    plain,
    render,
    require_patience,
    unchanged,
)
from usage_pipeline.web.pages.charts import chart_script_address
from usage_pipeline.web.pages.downloads import MEDIA_TYPE, csv_file, headers_of
from usage_pipeline.web.pages.overview import overview
from usage_pipeline.web.pages.subjects import Choice, choices, chosen, month_of, period_of
from usage_pipeline.web.reader import Published, Row
from usage_pipeline.web.state import FromWeb, Web

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
    *,
    org: str | None = None,
    period: str = "month",
    metric: str | None = None,
) -> Response:
    """Cards of metrics, limits, and one metric's days."""
    if identity.user_id is None and identity.is_admin:
        return RedirectResponse("/platform", status_code=303)
    offered, choice = _choice(web, identity, org)
    with web.reader.open() as published:
        state = figures.state(published)
        tag, not_modified = unchanged(request, identity, offered, state.snapshot_id)
        if not_modified:
            return not_modified
        when = period_of(state, period)
        shown = overview(published, state, choice.subject, when, metric)
        limits = _limits(published, identity, offered, choice) if _has_today(state, when) else None
        own = _own(published, identity, choice, when)
    return render(
        request,
        "my_usage.html",
        tag=tag,
        chart_script=chart_script_address(),
        choices=offered,
        choice=choice,
        manages=choice.role in MANAGERS,
        month=when.start if when.window is None else state.months[0],
        names={each.subject.org_id: each.name for each in offered if each.subject.org_id},
        metric=metric,
        period=when,
        state=state,
        raw_events=web.settings.land_event_data and not identity.org_id,
        shown=shown,
        limits=limits,
        own=own,
    )


def _choice(web: Web, identity: Identity, org: str | None) -> tuple[list[Choice], Choice]:
    if identity.user_id is None:
        raise not_there()
    offered = choices(identity, web.members.orgs_of(identity.user_id))
    return offered, chosen(offered, org)


def _has_today(state: State, period: Period) -> bool:
    """Whether limits, which are of the running month, belong to the period."""
    return period.end > state.as_of_date


def _limits(
    published: Published, identity: Identity, offered: Sequence[Choice], choice: Choice
) -> list[Row]:
    """Limits of the choice, and those that its plan sets for the reader as a member."""
    shown = [each.subject for each in offered if choice.key in ("all", each.key)]
    personal = any(subject.scope == "personal" for subject in shown)
    return figures.limits(
        published,
        personal=identity.user_id if personal else None,
        orgs=[subject.org_id for subject in shown if subject.org_id],
        member=identity.user_id,
    )


def _own(
    published: Published, identity: Identity, choice: Choice, period: Period
) -> dict[str, Decimal | None]:
    """What of an organisation's totals is the reader's own, by metric."""
    if choice.subject.scope != "org":
        return {}
    member = Subject("member", identity.user_id, choice.subject.org_id)
    totals = figures.totals(published, member, period)
    return {total.metric_type: total.quantity for total in totals}


@router.get("/usage/totals.csv")
def totals_file(
    web: FromWeb, identity: SignedIn, org: str | None = None, period: str = "month"
) -> Response:
    """The cards."""
    _, choice = _choice(web, identity, org)
    with web.reader.open() as published:
        state = figures.state(published)
        when = period_of(state, period)
        totals = figures.totals(published, choice.subject, when)
    return csv_file(
        f"usage-{choice.key}-{when.key}-totals.csv",
        (
            *("period_start", "period_end", "metric_type", "unit", "total_quantity"),
            *("previous_quantity", "change_ratio", "event_count"),
        ),
        (
            (
                *(when.start, when.end, total.metric_type, state.meter(total.metric_type).unit),
                *(plain(total.quantity), plain(total.previous_quantity)),
                *(plain(total.change_ratio), total.event_count),
            )
            for total in totals
        ),
    )


@router.get("/usage/days.csv")
def days_file(
    web: FromWeb, identity: SignedIn, org: str | None = None, period: str = "month"
) -> Response:
    """The days that the cards add up, in the columns of the monthly exports."""
    _, choice = _choice(web, identity, org)
    with web.reader.open() as published:
        when = period_of(figures.state(published), period)
        rows = figures.rows_by_day(published, choice.subject, when)
    return csv_file(
        f"usage-{choice.key}-{when.key}-days.csv",
        ("usage_date", "org_id", "metric_type", "total_quantity", "event_count"),
        (
            (
                *(row["usage_date"], row["org_id"], row["metric_type"]),
                *(plain(row["total_quantity"]), row["event_count"]),
            )
            for row in rows
        ),
    )


@router.get("/usage/events.csv")
def events_file(web: FromWeb, identity: SignedIn, month: str | None = None) -> Response:
    """The reader's own raw events of a month, in all organisations and personally."""
    if identity.user_id is None or identity.org_id:
        raise not_there()
    with web.reader.open() as published:
        first: date = month_of(figures.state(published), month)
    require_patience(web, identity, "export")
    try:
        lines = stream_events(web.settings, first, user_id=identity.user_id)
    except UsagePipelineError as error:
        raise HTTPException(404, f"{error.problem}.") from None
    header, some = next(lines), next(lines, None)
    if some is None:
        raise HTTPException(404, f"You have no events in {first:%Y-%m}.")
    return StreamingResponse(
        chain([header, some], lines),
        media_type=MEDIA_TYPE,
        headers=headers_of(f"usage-events-{first:%Y-%m}.csv"),
    )
