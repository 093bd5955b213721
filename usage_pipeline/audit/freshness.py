"""What readers see, and whether it is as new as it should be.

Judged by the published snapshot alone: what is landed or built is not published, and nothing need
run for it to become old.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import duckdb

from usage_pipeline.days import DayRange, next_month, ranges_of_days
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.serving import published
from usage_pipeline.serving.tables import SERVED_TABLES, ServedTable
from usage_pipeline.settings import Settings

DUE = time(6)  # local time by which a day is published: five hours after its night begins


@dataclass(frozen=True)
class PublishedTable:
    """One table of the snapshot: rows, and the newest day or first day of a month that it has
    (None when it has none); `age` is the time since that day or month, as far as it is published,
    ended."""

    name: str
    newest: date | None
    rows: int
    age: timedelta | None


@dataclass(frozen=True)
class Freshness:
    """Whether all days are published that should be by now.

    Attributes:
        newest: None when nothing is published.
        missing: the first days from `USAGE_START_DATE` on that are not; empty when fresh.
        due_at: when the first of them should have been.
        due: days before this one should be published.
    """

    newest: date | None
    missing: DayRange
    due_at: datetime
    due: date

    @property
    def fresh(self) -> bool:
        return self.missing.start >= self.missing.end

    def __str__(self) -> str:
        if self.fresh:
            return f"Fresh: published to {self.newest}." if self.newest else "No day is due yet."
        due = f"{self.due_at:%Y-%m-%d %H:%M %Z}"
        return f"Late: {self.missing.start} is not published; it was due at {due}."


def freshness(settings: Settings, now: datetime | None = None) -> Freshness:
    """The state of what readers see; a day is due at 06:00 of the next in `USAGE_TIMEZONE`."""
    local = (now or datetime.now(UTC)).astimezone(settings.zone)
    due = local.date() - timedelta(days=0 if local.time() >= DUE else 1)  # days before this one
    days = _published_days(settings)
    gaps = ranges_of_days(set(DayRange(settings.start_date, due).days()) - days)
    missing = gaps[0] if gaps else DayRange(due, due)
    due_at = datetime.combine(missing.start + timedelta(days=1), DUE, settings.zone)
    return Freshness(max(days, default=None), missing, due_at, due)


def newest_day(settings: Settings) -> date | None:
    """The newest published day; None when nothing is published."""
    return max(_published_days(settings), default=None)


def last_publish(settings: Settings) -> tuple[datetime, str] | None:
    """When and by which run the snapshot was published; None when nothing is."""
    with open_duckdb(settings, ":memory:") as db:
        if not _attach(db, settings):
            return None
        return db.execute("select published_at, run_id from published.main.snapshot").fetchone()


def published_tables(settings: Settings) -> list[PublishedTable]:
    """The tables that readers find in the snapshot; none when nothing is published."""
    newest_published = newest_day(settings)
    if newest_published is None:
        return []
    published_to = settings.day_start(newest_published + timedelta(days=1))
    found = []
    with open_duckdb(settings, ":memory:") as db:
        _attach(db, settings)
        for table in SERVED_TABLES:
            newest = f"max(cast({table.dated} as date))" if table.dated else "null"
            day, rows = db.execute(
                f"select {newest}, count(*) from published.{table.name}"
            ).fetchall()[0]
            ended = min(settings.day_start(_end(table, day)), published_to) if day else None
            age = datetime.now(UTC) - ended if ended else None
            found.append(PublishedTable(table.name, day, rows, age))
    return found


def _published_days(settings: Settings) -> set[date]:
    with open_duckdb(settings, ":memory:") as db:
        if not _attach(db, settings):
            return set()
        rows = db.execute("select usage_date from published.published_days").fetchall()
    return {day for (day,) in rows}


def _end(table: ServedTable, day: date) -> date:
    return next_month(day) if table.grain == "month" else day + timedelta(days=1)


def _attach(db: duckdb.DuckDBPyConnection, settings: Settings) -> bool:
    """The snapshot as `published`; False when there is none, or nothing was published into it."""
    if not published.exists(settings):
        return False
    published.attach(settings, db)
    try:
        db.execute("from published.usage_daily limit 0")
    except duckdb.CatalogException:
        return False
    return True
