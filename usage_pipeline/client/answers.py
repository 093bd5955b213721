"""What is read, as types. Quantities are decimals, days are dates, instants have a time zone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints
from uuid import UUID

from usage_pipeline.client.errors import UsageError


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """A meter over a window, beside the window of equal length before it.

    Attributes:
        total_quantity: None where the total has too many digits to be held.
        change_ratio: 0.25 is a quarter more; None from nothing.
    """

    metric_type: str
    total_quantity: Decimal | None
    previous_quantity: Decimal | None
    change_ratio: Decimal | None
    event_count: int


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """Days `[window_start, window_end)`, up to the newest one that is rolled up.

    Attributes:
        items: one for each meter with an event in one of the two windows; without any, the days
            may be None.
    """

    as_of_date: date | None
    window_start: date | None
    window_end: date | None
    snapshot_id: str | None
    items: tuple[MetricSummary, ...]


@dataclass(frozen=True, slots=True)
class UsageAggregation:
    """A day's or month's total of a user, an organisation (None: personal use) and a meter.

    Attributes:
        period_start: first instant; `period_end` is the first one after it.
        total_quantity: None where the total has too many digits to be held.
        metadata: `event_count` and `active_days`.
    """

    id: UUID
    user_id: UUID | None
    org_id: UUID | None
    period_type: str
    period_start: datetime
    period_end: datetime
    metric_type: str
    total_quantity: Decimal | None
    metadata: Mapping[str, int]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class UsageLimit:
    """The running month beside what the plan includes.

    Attributes:
        scope: `user`, `org`, or `member` of an organisation.
        limit_quantity: None is unlimited, or unknown where the status is None.
        status: `ok`, `warning` from 0.8 of the limit, `exceeded` from all of it.
        projected_quantity: what the month is expected to end with, and between what it should;
            None where there is no forecast.
        projected_limit_date: when the limit is expected to be reached; None where it is not.
    """

    scope: str
    user_id: UUID | None
    org_id: UUID | None
    metric_type: str
    month: date
    plan: str | None
    used_quantity: Decimal | None
    limit_quantity: Decimal | None
    used_ratio: Decimal | None
    status: str | None
    projected_quantity: Decimal | None = None
    projected_low: Decimal | None = None
    projected_high: Decimal | None = None
    projected_limit_date: date | None = None


_Row = TypeVar("_Row", MetricSummary, UsageAggregation, UsageLimit)
_HINTS: dict[Any, dict[str, Any]] = {
    kind: get_type_hints(kind) for kind in (MetricSummary, UsageAggregation, UsageLimit)
}
_READ: dict[Any, Callable[[Any], Any]] = {
    Decimal: lambda value: Decimal(str(value)),
    UUID: lambda value: UUID(str(value)),
    datetime: lambda v: v if isinstance(v, datetime) else datetime.fromisoformat(v),
    date: lambda v: v if isinstance(v, date) else date.fromisoformat(v),
}


def read(kind: type[_Row], row: Mapping[str, Any]) -> _Row:
    """A row of the API's or the database's.

    Raises:
        UsageError: a column is missing, or is not of its type.
    """
    try:
        hints = _HINTS[kind]
        return kind(**{n: _value(hint, row[n]) for n, hint in hints.items() if n in row})
    except (TypeError, ValueError, InvalidOperation) as error:
        raise UsageError("The answer is not understood", f"{kind.__name__}: {error!r}") from error


def read_summary(answer: Any) -> UsageSummary:
    """Days, and items below them.

    Raises:
        UsageError: as `read`.
    """
    rows, _ = read_page(answer)
    day = _READ[date]
    try:
        as_of, start, end = (
            None if answer[name] is None else day(answer[name])
            for name in ("as_of_date", "window_start", "window_end")
        )
        snapshot = answer["snapshot_id"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("The answer is not understood", f"UsageSummary: {error!r}") from error
    return UsageSummary(as_of, start, end, snapshot, tuple(read(MetricSummary, r) for r in rows))


def read_page(answer: Any) -> tuple[list[Mapping[str, Any]], str | None]:
    """The rows of an answer, and where the next ones begin.

    Raises:
        UsageError: it has no rows.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
        raise UsageError("The answer is not understood", "it has no items")
    return answer["items"], answer.get("next_cursor")


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, UnionType):
        if value is None:
            return None
        hint = get_args(hint)[0]
    if value is None:
        raise TypeError("null")
    return _READ.get(hint, lambda same: same)(value)
