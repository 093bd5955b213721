"""What must not be lost: events of a day that the source has no longer, and that are published.

An extraction with fewer events than the day has is a correction or a loss. It is a correction in
the look-back window and up to a share, or when an operator says so; else the day is refused, and
keeps what it has, and its manifest says so. `replacement` asks here.

A refused day whose files are damaged cannot be built any more. It is *lost*: its files are set
aside, and its rows in the warehouse stay what they were when they could be built.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import duckdb

from usage_pipeline.app_db.fingerprints import source_fingerprints
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.landing.landed_days import (
    MANIFEST,
    Manifest,
    data_files,
    landed_manifests,
    partition,
    partitions_in,
)
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings

_DAYS_SHOWN = _RANGES_SHOWN = 5


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


def at_stake(
    settings: Settings,
    day: date,
    manifest: Manifest | None,
    published: Mapping[date, PublishedDay],
) -> Manifest | None:
    """What the day has that could be lost: sound files, or rows that are published.

    Without sound files it is a manifest without files; None when there is nothing to lose.
    """
    if manifest and manifest.files and manifest.fits(data_files(settings.events_dir, day)):
        return manifest
    if day not in published:
        return None
    if manifest:
        return replace(manifest, files={}, previous_files={})
    found = published[day]
    last, read = (
        moment.astimezone(UTC).isoformat() if moment else None
        for moment in (found.last_event_at, found.extracted_at)
    )
    return Manifest(
        usage_date=day.isoformat(),
        timezone=settings.timezone,
        event_data=settings.land_event_data,
        rows=found.events,
        invalid_rows=0,
        duplicate_rows=0,
        sum_quantity=format(found.sum_quantity or Decimal(0), "f"),
        max_created_at=last,
        fingerprint="",
        extracted_at=read or datetime.min.replace(tzinfo=UTC).isoformat(),
        files={},
    )


def refuse(settings: Settings, day: date, kept: Manifest, temporary: Path) -> None:
    """Write the manifest of a day that keeps what it has; set its files aside if damaged."""
    temporary.write_text(json.dumps(asdict(kept), indent=1))
    target = partition(settings.events_dir, day) / MANIFEST
    target.parent.mkdir(parents=True, exist_ok=True)
    if not kept.lost:
        temporary.replace(target)
        found_again(settings, day)
        return
    # Killed anywhere in here, the day is damaged still, and the next run comes here again.
    damaged = set_aside(settings, day)
    temporary.replace(target)
    for path in data_files(settings.events_dir, day):
        path.replace(damaged / path.name)


def require_events_to_recut(settings: Settings, recut: Mapping[date, Manifest]) -> None:
    """Days of another time zone are cut anew together, or not at all, because events move between
    them. The source is asked for the days as they were cut: none may lack events.

    Raises:
        UsagePipelineError: some do, or the source cannot be read.
    """
    fewer: dict[date, tuple[int, int]] = {}
    zones = sorted({manifest.timezone for manifest in recut.values()})
    for zone in zones:
        then = settings.model_copy(update={"timezone": zone})
        for days in ranges_of_days(day for day, m in recut.items() if m.timezone == zone):
            for day, state in source_fingerprints(then, days).items():
                had, found = recut[day].rows + recut[day].duplicate_rows, int(state.split()[0])
                if not is_correction(settings, day, had, found):
                    fewer[day] = had, found
    if fewer:
        shown = [
            f"{day} (has {had:,}, source {found:,})"
            for day, (had, found) in sorted(fewer.items())[:_DAYS_SHOWN]
        ]
        more = f" and {len(fewer) - len(shown)} more days" if len(fewer) > len(shown) else ""
        raise UsagePipelineError(
            f"USAGE_TIMEZONE was {', '.join(zones)} and is {settings.timezone}, so all days are cut"
            f" anew, but the source has fewer events of {', '.join(shown)}{more}",
            f"Set it to {zones[0]} again, or take what the source has: "
            + allowing([DayRange(min(fewer), max(fewer) + timedelta(days=1))]),
        )


def refused_days(settings: Settings) -> dict[date, Manifest]:
    """Days that keep more events than the source has, oldest first."""
    return {day: m for day, m in landed_manifests(settings).items() if m.refused}


def refusal(refused: Iterable[Manifest]) -> UsagePipelineError:
    """What to tell an operator of refused days, and what to do."""
    days = {date.fromisoformat(manifest.usage_date): manifest for manifest in refused}
    shown = [
        f"{day} (has {m.rows:,}, source {m.refused_rows:,}{', files damaged' if m.lost else ''}"
        f"{', some of them counted twice' if m.twice else ''})"
        for day, m in list(days.items())[:_DAYS_SHOWN]
    ]
    more = f" and {len(days) - len(shown)} more days" if len(days) > len(shown) else ""
    return UsagePipelineError(
        f"The source has fewer events than landed or published, so nothing was changed for "
        f"{', '.join(shown)}{more}",
        "Bring the events back into the source and roll the days up, or take what it has: "
        + allowing(ranges_of_days(days)),
    )


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
