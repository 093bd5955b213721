"""What the source holds by day: rows, exact sums, and a text that tells states apart."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any

from psycopg2.extensions import connection as PostgresConnection
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.app_db.session import ids_are_unique, source_query
from usage_pipeline.days import DayRange
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.settings import Settings

FINGERPRINT_TIMEOUT = "5min"  # of the grouped query over the look-back window
EXACT = Context(prec=60)  # more digits than sums of quantities have, or ratios of two in percent
# The greatest number that still rounds to 29 integer digits. NaN and Infinity compare greater.
_LARGEST_QUANTITY = "99999999999999999999999999999.9999999995"
FITS = f"quantity > -{_LARGEST_QUANTITY} and quantity < {_LARGEST_QUANTITY}"
# In Postgres. Rounding costs as much as adding up, and few numbers have to be.
_ROUNDED = "case when scale(quantity) > 9 then round(quantity, 9) else quantity end"
# The arguments of `fingerprint`.
FINGERPRINT = f"count(*), coalesce(sum(case when {FITS} then {_ROUNDED} end), 0), max(created_at)"
EMPTY = "0 0 -"  # the fingerprint of a day without events


def fingerprint(rows: int, total: Decimal, last: datetime | None) -> str:
    """What decides whether a day of the source has changed: rows, exact sum, last created_at."""
    moment = last.astimezone(UTC).isoformat() if last else "-"
    return f"{rows} {total.normalize(EXACT):f} {moment}"


def source_fingerprints(settings: Settings, days: DayRange) -> dict[date, str]:
    """The fingerprint of each day of the range in the source, empty days included."""
    with connect(app_database_url(settings)) as postgres:
        found = {
            day: fingerprint(*figures)
            for day, *figures in _by_day(settings, postgres, days, FINGERPRINT)
        }
    return {day: found.get(day, EMPTY) for day in days.days()}


def source_totals(
    settings: Settings, ranges: Iterable[DayRange]
) -> dict[date, dict[str, tuple[int, Decimal]]]:
    """Valid events and their exact sum in the source, per day and event type, by Postgres's sums.

    Without days where ids may be duplicates: which of them count takes more than a grouped query.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    found: dict[date, dict[str, tuple[int, Decimal]]] = {}
    figures = f"event_type::text, count(*), sum({_ROUNDED})"
    with connect(app_database_url(settings)) as postgres:
        if not ids_are_unique(postgres, source_query("usage_events")):
            return {}
        for days in ranges:
            found |= {day: {} for day in days.days()}
            for day, event_type, events, total in _by_day(
                settings, postgres, days, figures, f" and {FITS}", "event_type"
            ):
                found[day][event_type] = events, total
    return found


def has_events(settings: Settings, days: DayRange) -> bool:
    """Whether the source has an event of these days.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    start, end = (settings.day_start(day).isoformat() for day in days)
    with connect(app_database_url(settings)) as postgres, postgres.cursor() as cursor:
        _read_only(cursor)
        cursor.execute(
            f"select exists (select from ({source_query('usage_events')}) as events"
            f" where created_at >= '{start}' and created_at < '{end}')"
        )
        return cursor.fetchall() == [(True,)]


def _read_only(cursor: Cursor) -> None:
    cursor.execute(
        f"set transaction read only; set local statement_timeout = '{FINGERPRINT_TIMEOUT}';"
        # Nobody waits for it, and two workers would take a quarter more of the source's time.
        " set local max_parallel_workers_per_gather = 0"
    )


def _by_day(
    settings: Settings,
    postgres: PostgresConnection,
    days: DayRange,
    figures: str,
    only: str = "",
    *also_by: str,
) -> list[tuple[Any, ...]]:
    """Figures of the source's events by day: one grouped query over one index range."""
    every = days.days()
    # The bounds come from here, so that Postgres's time zone data has no say in what a day is.
    bounds = [settings.day_start(day) for day in [*every, days.end]]
    # A night asks for one day, and saves a fifth of the query's work.
    bucket = "width_bucket(created_at, %(bounds)s::timestamptz[]) - 1" if every[1:] else "0"
    with postgres.cursor() as cursor:
        _read_only(cursor)
        cursor.execute(
            f"select {bucket} as day, {figures} "
            f"from ({source_query('usage_events')}) as events "
            f"where created_at >= %(start)s and created_at < %(end)s{only} "
            f"group by {', '.join(['day', *also_by])}",
            {"bounds": bounds, "start": bounds[0], "end": bounds[-1]},
        )
        return [(every[at], *row) for at, *row in cursor.fetchall()]
