"""What was used: summaries, totals by period, limits, and raw events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from itsdangerous import BadSignature, URLSafeSerializer
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from usage_pipeline.serving.exports import stream_events
from usage_pipeline.web import figures
from usage_pipeline.web.api.answers import of_snapshot, plain, rows_as_json
from usage_pipeline.web.api.callers import MONTH, Day, UsageReader, Whose, for_whom
from usage_pipeline.web.api.problems import Problem, documented, too_many
from usage_pipeline.web.rates import HEAVY
from usage_pipeline.web.reader import Published
from usage_pipeline.web.session import web_secret
from usage_pipeline.web.state import FromWeb, Web

router = APIRouter(prefix="/api/usage", tags=["usage"])
_REFUSALS = (401, 403, 422)
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "Not Modified"}}


class AskedSummary(Whose):
    """Which summary."""

    period: figures.Window = Field("month", description="Trailing 7, 30 or 365 days.")


class AskedTotals(Whose):
    """Which totals, and which page of them."""

    period_type: Literal["daily", "monthly"] = "daily"
    start: Day | None = Field(None, description="The first day, or an instant.")
    end: Day | None = Field(None, description="The day after the last, or an instant.")
    metric_type: str | None = Field(None, max_length=200)
    limit: int = Field(100, ge=1, le=1000)
    cursor: str | None = Field(None, max_length=500, description="`next_cursor` of a page.")


class AskedEvents(Whose):
    """Which events."""

    month: str = Field(pattern=MONTH, examples=["2026-05"])


class SummaryItem(BaseModel):
    """One metric; quantities are exact decimals, null where they cannot be held."""

    metric_type: str
    total_quantity: str | None
    previous_quantity: str | None
    change_ratio: str | None
    event_count: int


class Summary(BaseModel):
    """Usage of a trailing window of days, `[window_start, window_end)`."""

    as_of_date: date | None
    window_start: date | None
    window_end: date | None
    items: list[SummaryItem]
    snapshot_id: str


class Aggregation(BaseModel):
    """A day's or month's total of a metric."""

    id: UUID
    user_id: UUID | None
    org_id: UUID | None
    period_type: Literal["daily", "monthly"]
    period_start: datetime
    period_end: datetime
    metric_type: str
    total_quantity: str | None
    metadata: dict[str, int]
    created_at: datetime
    updated_at: datetime


class Aggregations(BaseModel):
    """A page of totals."""

    items: list[Aggregation]
    next_cursor: str | None
    snapshot_id: str


class Limit(BaseModel):
    """A metric of the running month beside its limit; null is unlimited or unknown."""

    scope: Literal["user", "org", "member"]
    user_id: UUID | None
    org_id: UUID | None
    metric_type: str
    month: date
    plan: str | None
    used_quantity: str | None
    limit_quantity: str | None
    used_ratio: str | None
    status: str | None


class Limits(BaseModel):
    """All limits of a user or an organisation."""

    items: list[Limit]
    snapshot_id: str


@router.get(
    "/summary",
    response_model=Summary,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "as_of_date": "2026-05-31",
                        "window_start": "2026-05-02",
                        "window_end": "2026-06-01",
                        "items": [
                            {
                                "metric_type": "api_call",
                                "total_quantity": "12.5",
                                "previous_quantity": "10",
                                "change_ratio": "0.25",
                                "event_count": 7,
                            }
                        ],
                        "snapshot_id": "20260601T010203-1f",
                    }
                }
            }
        },
        **_UNCHANGED,
        **documented(*_REFUSALS),
    },
)
def summary(
    request: Request,
    web: FromWeb,
    caller: UsageReader,
    asked: Annotated[AskedSummary, Query()],
) -> Response:
    """Totals of a week, month or year, beside those of the time before; with org_id, the
    organisation's."""
    subject = for_whom(web, caller, asked)

    def answer(published: Published) -> Mapping[str, Any]:
        rows = figures.summary(
            published,
            asked.period,
            user_id=None if asked.org_id else subject,
            org_id=asked.org_id,
        )
        window = ("as_of_date", "window_start", "window_end")
        first = rows[0] if rows else dict.fromkeys(window)
        items = [{name: row[name] for name in row if name not in window} for row in rows]
        return {**{name: plain(first[name]) for name in window}, "items": rows_as_json(items)}

    return of_snapshot(request, web, caller, answer)


@router.get(
    "/aggregated",
    response_model=Aggregations,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "items": [
                            {
                                "id": "0b6e1f9e-3c0e-4a55-9d0f-6a3f0f4f1a10",
                                "user_id": "7f1c9d52-0000-4000-8000-000000000000",
                                "org_id": None,
                                "period_type": "daily",
                                "period_start": "2026-05-03T00:00:00Z",
                                "period_end": "2026-05-04T00:00:00Z",
                                "metric_type": "api_call",
                                "total_quantity": "12.5",
                                "metadata": {"event_count": 7, "active_days": 1},
                                "created_at": "2026-05-04T01:02:03Z",
                                "updated_at": "2026-05-04T01:02:03Z",
                            }
                        ],
                        "next_cursor": None,
                        "snapshot_id": "20260601T010203-1f",
                    }
                }
            }
        },
        **_UNCHANGED,
        **documented(*_REFUSALS),
    },
)
def aggregated(
    request: Request,
    web: FromWeb,
    caller: UsageReader,
    asked: Annotated[AskedTotals, Query()],
) -> Response:
    """Totals by day or month, the oldest first. A user's are over all organisations, or of one; a
    key or an admin who names an organisation alone gets those of all its members."""
    subject = for_whom(web, caller, asked)
    filters = {
        "user_id": subject,
        "org_id": asked.org_id,
        "metric_type": asked.metric_type,
        "start": asked.start and _instant(web, asked.start),
        "end": asked.end and _instant(web, asked.end),
    }
    question = json.dumps([asked.period_type, filters], default=str)
    digest = hashlib.sha256(question.encode()).hexdigest()
    pages = URLSafeSerializer(web_secret(web.settings), salt="cursor")
    after = _place(pages, asked.cursor, digest) if asked.cursor else None

    def answer(published: Published) -> Mapping[str, Any]:
        rows = _aggregations(published, asked.period_type, filters, after, asked.limit + 1)
        last = rows[asked.limit - 1] if len(rows) > asked.limit else None
        items = rows_as_json(rows[: asked.limit])
        for item in items:  # text in DuckDB
            if isinstance(item["metadata"], str):
                item["metadata"] = json.loads(item["metadata"])
        place = last and [last["period_start"].isoformat(), str(last["id"]), digest]
        return {"items": items, "next_cursor": pages.dumps(place) if place else None}

    return of_snapshot(request, web, caller, answer)


def _instant(web: Web, given: date) -> datetime:
    try:
        if isinstance(given, datetime):
            return given.astimezone(UTC)  # offsets of a day are none to Postgres
        return web.settings.day_start(given)
    except OverflowError:
        raise Problem(422, "There is no such day.") from None


def _place(pages: URLSafeSerializer, cursor: str, asked: str) -> tuple[datetime, UUID]:
    try:
        at, row, filters = pages.loads(cursor)
    except BadSignature:
        filters = None
    if filters != asked:
        raise Problem(422, "The cursor is not of this question.")
    return datetime.fromisoformat(at), UUID(row)


def _aggregations(
    published: Published,
    period_type: str,
    filters: Mapping[str, Any],
    after: tuple[datetime, UUID] | None,
    most: int,
) -> list[Mapping[str, Any]]:
    conditions = {
        "user_id": "user_id = :user_id",
        "org_id": "org_id = :org_id",
        "metric_type": "metric_type = :metric_type",
        "start": "period_start >= :start",
        "end": "period_start < :end",
    }
    given = {name: value for name, value in filters.items() if value is not None}
    where = ["period_type = :period_type", *(conditions[name] for name in given)]
    if after:
        where += ["period_start >= :at", "(period_start > :at or id > :row)"]
        given |= {"at": after[0], "row": after[1]}
    return published.rows(
        f"""
        select id, user_id, org_id, period_type, period_start, period_end, metric_type,
            total_quantity, metadata, created_at, updated_at
        from usage_aggregations
        where {" and ".join(where)}
        order by period_start, id
        limit :most
        """,
        period_type=period_type,
        most=most,
        **given,
    )


@router.get(
    "/limits",
    response_model=Limits,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "items": [
                            {
                                "scope": "user",
                                "user_id": "7f1c9d52-0000-4000-8000-000000000000",
                                "org_id": None,
                                "metric_type": "api_call",
                                "month": "2026-05-01",
                                "plan": "free",
                                "used_quantity": "800",
                                "limit_quantity": "1000",
                                "used_ratio": "0.8",
                                "status": "warning",
                            }
                        ],
                        "snapshot_id": "20260601T010203-1f",
                    }
                }
            }
        },
        **_UNCHANGED,
        **documented(*_REFUSALS),
    },
)
def limits(
    request: Request,
    web: FromWeb,
    caller: UsageReader,
    asked: Annotated[Whose, Query()],
) -> Response:
    """The running month beside the limits of plans: a user's own and as a member, or, with org_id,
    the organisation's and the user's in it."""
    subject = for_whom(web, caller, asked)

    def answer(published: Published) -> Mapping[str, Any]:
        return {"items": rows_as_json(_limits(published, subject, asked.org_id))}

    return of_snapshot(request, web, caller, answer)


def _limits(
    published: Published, user_id: UUID | None, org_id: UUID | None
) -> list[Mapping[str, Any]]:
    whose = {"user_id": user_id, "org_id": org_id}
    given = {name: value for name, value in whose.items() if value}
    own = " and ".join(f"{name} = :{name}" for name in given)
    where = f"scope = 'org' and org_id = :org_id or scope = 'member' and {own}" if org_id else own
    return published.rows(
        f"""
        select *
        from usage_limit_status
        where {where}
        order by scope desc, org_id, user_id, metric_type
        """,
        **given,
    )


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events of the month as they were landed, by time.",
            "content": {
                "text/csv": {
                    "schema": {"type": "string"},
                    "example": "created_at,id,org_id,event_type,quantity,event_data\n",
                }
            },
        },
        **documented(*_REFUSALS),
    },
)
def export(
    web: FromWeb,
    caller: UsageReader,
    asked: Annotated[AskedEvents, Query()],
) -> Response:
    """Raw events of a month as CSV. Two a second, after a pause six at once."""
    subject = for_whom(web, caller, asked)
    first = date.fromisoformat(f"{asked.month}-01")
    if wait := web.rates.take(f"export {caller.key_id or caller.user_id}", HEAVY):
        raise too_many(wait)
    lines = stream_events(web.settings, first, user_id=subject, org_id=asked.org_id)
    return StreamingResponse(
        lines,
        media_type="text/csv",
        headers={
            "Content-Disposition": f'attachment; filename="usage-events-{asked.month}.csv"',
            "Cache-Control": "private, no-store",
        },
    )
