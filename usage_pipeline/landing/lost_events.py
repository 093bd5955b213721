"""What must not be lost: events of a day that the source has no longer, and that are published.

An extraction with fewer events than the day has is a correction or a loss. It is a correction in
the look-back window and up to a share, or when an operator says so; else the day is refused, and
keeps what it has. `extraction` asks here, and remembers a refusal in the day's manifest.

A refused day whose files are damaged cannot be built any more. It is *lost*: its files are set
aside, and its rows in the warehouse stay what they were when they could be built.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import duckdb

from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.landing.landed_days import Manifest, landed_manifests, partitions_in
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings

_RANGES_SHOWN = 5


class PublishedDay(NamedTuple):
    """What a day was made of when it was published last; None where older releases kept nothing."""

    events: int
    sum_quantity: Decimal | None
    last_event_at: datetime | None
    extracted_at: datetime | None


def published_days(settings: Settings) -> dict[date, PublishedDay]:
    """The published days from `USAGE_START_DATE` on, those without events left out."""
    if not published.exists(settings):
        return {}
    with open_duckdb(settings, ":memory:") as db:
        published.attach(settings, db)
        try:
            rows = db.execute(
                "select usage_date, coalesce(landed_events, 1), sum_quantity, last_event_at,"
                " extracted_at from published.main.published_days"
                " where landed_events is distinct from 0 and usage_date >= ?",
                [settings.start_date],
            ).fetchall()
        except duckdb.CatalogException:  # of a release that kept no ledger
            return {}
    return {day: PublishedDay(*figures) for day, *figures in rows}


def events_had(settings: Settings) -> dict[date, int]:
    """How many events each day has, landed or else published."""
    had = {day: found.events for day, found in published_days(settings).items()}
    return had | {day: manifest.rows for day, manifest in landed_manifests(settings).items()}


def fewer_events(
    had: Mapping[date, int], landed: Iterable[Manifest]
) -> dict[date, tuple[int, int]]:
    """The days that have fewer events than they had: how many they had, and have."""
    has = {date.fromisoformat(manifest.usage_date): manifest.rows for manifest in landed}
    return {day: (had[day], has[day]) for day in sorted(has) if has[day] < had.get(day, 0)}


def is_correction(settings: Settings, day: date, had: int, found: int) -> bool:
    """Whether a day may go from `had` to `found` events without an operator's word."""
    recent = day >= settings.today() - timedelta(days=settings.lookback_days)
    return found >= had or (recent and had - found <= settings.max_lost_share * had)


def set_aside(settings: Settings, day: date) -> Path:
    """Make the day a lost one; gives the directory for its damaged files."""
    folder = settings.damaged_dir / f"usage_date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lost_days(settings: Settings) -> set[date]:
    """Days whose landed events are gone, here and in the source."""
    return set(partitions_in(settings.damaged_dir))


def found_again(settings: Settings, day: date) -> None:
    """The day is landed well: it is no lost one, and its damaged files are not needed."""
    shutil.rmtree(settings.damaged_dir / f"usage_date={day}", ignore_errors=True)


def require_kept(settings: Settings, landed: Collection[date]) -> None:
    """Refuse to publish when the warehouse lacks published rows that it cannot build again.

    Args:
        landed: days with a partition. The caller is the single writer.

    Raises:
        UsagePipelineError: names the days.
    """
    lost = lost_days(settings)
    days = [day for day in published_days(settings) if day in lost or day not in landed]
    if not days:
        return
    cells = "usage_date, user_id, org_id, metric_type, total_quantity, event_count"
    with open_duckdb(settings, ":memory:") as db:
        db.execute(f"attach '{quoted(settings.warehouse_path)}' as warehouse (read_only)")
        published.attach(settings, db)
        gone = db.execute(
            f"select distinct usage_date from (select {cells} from published.main.usage_daily"
            f" where usage_date in (select unnest($days::date[]))"
            f" except all select {cells} from warehouse.main.usage_daily"
            f" where usage_date in (select unnest($days::date[])))",
            {"days": days},
        ).fetchall()
    if gone:
        ranges = ranges_of_days(day for (day,) in gone)
        raise UsagePipelineError(
            f"Nothing is published, because published events of {', '.join(map(str, ranges))} "
            "are neither landed nor in the source any more",
            "Put the days' directories back below landing/usage_events and roll the days up, or "
            f"take what the source has: {allowing(ranges)}",
        )


def allowing(ranges: Sequence[DayRange]) -> str:
    """The commands that take what the source has of these days, and of none between them, which
    may have lost their source as well."""
    shown = "; ".join(
        f"usage-pipeline rollup --start {days.start} --end {days.end} --allow-fewer-events"
        for days in ranges[:_RANGES_SHOWN]
    )
    more = len(ranges) - _RANGES_SHOWN
    return f"{shown}; and {more} more ranges" if more > 0 else shown
