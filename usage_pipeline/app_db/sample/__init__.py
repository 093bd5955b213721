"""A synthetic history of a SaaS application, for demos, tests and benchmarks.

Here is what `usage-pipeline app-db load-sample` does. The pipeline proper never imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.app_db.sample.accounts import account_tables, invent_orgs, invent_users
from usage_pipeline.app_db.sample.columns import SECOND, Columns, copy_columns
from usage_pipeline.app_db.sample.events import (
    CORRECTION,
    choose_oddities,
    expected_use,
    invent_events,
)
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.postgres import connect

__all__ = ["SampleReport", "load_sample"]


@dataclass(frozen=True)
class SampleReport:
    """What was loaded. `last_day` is inclusive; broken, late and corrected count events."""

    events: int
    users: int
    orgs: int
    first_day: date
    last_day: date
    seconds: float
    broken: int
    late: int
    corrected: int


def load_sample(
    url: str,
    *,
    events: int,
    days: int,
    users: int,
    seed: int,
    end: date | None,
    zone: ZoneInfo,
    progress: Callable[[int], None] | None = None,
) -> SampleReport:
    """Fill the application's empty tables; the same arguments give the same rows, ids included.

    Everything happens in one transaction. Memory is bounded but for two bytes per event.

    Args:
        url: the application database; its tables exist (`usage-pipeline app-db init`).
        events: exactly this many rows of `usage_events`.
        days: how many local days they cover.
        users: rows of `users`; there is one org for about eight.
        seed: of all random draws.
        end: the first day without events; None is today in `zone`.
        zone: defines the days.
        progress: called with the number of events loaded so far.

    Raises:
        UsagePipelineError: an argument is out of range, `users` or `usage_events` hold rows,
            or the database fails. Nothing is written then.
    """
    clock = time.monotonic()
    today = datetime.now(zone).date()
    end = end or today
    _require_at_least(1, events=events, days=days, users=users)
    _require_at_least(0, seed=seed)
    if end > today:
        raise UsagePipelineError(
            f"The sample's end {end} lies in the future", f"Give {today} or an earlier day"
        )
    first_day = end - timedelta(days=days)
    period = _midnight(first_day, zone), _midnight(end, zone)

    rng = np.random.default_rng(seed)
    people = invent_users(rng, users, *period)
    orgs = invent_orgs(rng, people, period[1])
    oddities = choose_oddities(rng, events)
    demand = expected_use(people, orgs, period, events)
    with connect(url) as connection, connection.cursor() as cursor:
        _require_empty_tables(cursor)
        cursor.execute("set local time zone 'UTC'")
        for table, columns in account_tables(rng, people, orgs, period[1], demand):
            copy_columns(cursor, table, columns)
        # Building this index at the end is cheaper than keeping it up; the primary key stays.
        cursor.execute("drop index if exists usage_events_created_at_idx")
        loaded = 0
        for chunk in _prefetched(invent_events(rng, people, orgs, period, oddities)):
            copy_columns(cursor, "usage_events", chunk)
            loaded += len(chunk["id"])
            if progress:
                progress(loaded)
        cursor.execute("create index usage_events_created_at_idx on usage_events (created_at)")
        cursor.execute("analyze users, orgs, org_members, subscriptions, usage_events")
    return SampleReport(
        events=loaded,
        users=users,
        orgs=len(orgs.ids),
        first_day=first_day,
        last_day=end - timedelta(days=1),
        seconds=time.monotonic() - clock,
        broken=int(np.count_nonzero(oddities.defects % CORRECTION)),
        late=int(np.count_nonzero(oddities.late)),
        corrected=int(np.count_nonzero(oddities.defects == CORRECTION)),
    )


def _require_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UsagePipelineError(
                f"A sample cannot have {name} = {value}", f"Give a whole number from {least} up"
            )


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * SECOND


def _require_empty_tables(cursor: Cursor) -> None:
    # The lock makes a second load wait and then see the rows of the first.
    cursor.execute("lock table users, usage_events in share row exclusive mode")
    for table in ("users", "usage_events"):
        cursor.execute(f"select from {table} limit 1")
        if cursor.rowcount:
            raise UsagePipelineError(
                f"Table {table} already holds rows, and a sample is never added to them",
                "Load the sample into an empty database, or delete the rows first",
            )


def _prefetched(chunks: Iterator[Columns]) -> Iterator[Columns]:
    """The chunks, each made while Postgres is busy with the one before."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = worker.submit(next, chunks, None)
            yield chunk
