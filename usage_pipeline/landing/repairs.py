"""Which landed days are extracted again, and which may not be replaced.

A day whose source has fewer events than it had is kept and says so; see `lost_events`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import duckdb

from usage_pipeline.app_db.fingerprints import source_fingerprints
from usage_pipeline.app_db.session import count_changes
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import disk_is_full
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.landed_days import (
    MANIFEST,
    Manifest,
    data_files,
    landed_days,
    landed_manifests,
    partition,
)
from usage_pipeline.serving import published
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import Settings

EVENTS_SEARCHED = 10_000_000  # of other days, for events that moved; takes about a second

_REFUSED_SHOWN = 5


class Moved(NamedTuple):
    """Events that a landed day has no longer, and the days where they stand now."""

    events: int
    to: frozenset[date]


NOT_MOVED = Moved(0, frozenset())


def at_stake(
    settings: Settings,
    day: date,
    manifest: Manifest | None,
    published: Mapping[date, lost_events.PublishedDay],
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
        lost_events.found_again(settings, day)
        return
    # Killed anywhere in here, the day is damaged still, and the next run comes here again.
    damaged = lost_events.set_aside(settings, day)
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
                if not lost_events.is_correction(settings, day, had, found):
                    fewer[day] = had, found
    if fewer:
        shown = [
            f"{day} (has {had:,}, source {found:,})"
            for day, (had, found) in sorted(fewer.items())[:_REFUSED_SHOWN]
        ]
        more = f" and {len(fewer) - len(shown)} more days" if len(fewer) > len(shown) else ""
        raise UsagePipelineError(
            f"USAGE_TIMEZONE was {', '.join(zones)} and is {settings.timezone}, so all days are cut"
            f" anew, but the source has fewer events of {', '.join(shown)}{more}",
            f"Set it to {zones[0]} again, or take what the source has: "
            + lost_events.allowing([DayRange(min(fewer), max(fewer) + timedelta(days=1))]),
        )


def refused_days(settings: Settings) -> dict[date, Manifest]:
    """Days that keep more events than the source has, oldest first."""
    return {day: m for day, m in landed_manifests(settings).items() if m.refused}


def refusal(refused: Iterable[Manifest]) -> UsagePipelineError:
    """What to tell an operator of refused days, and what to do."""
    days = {date.fromisoformat(manifest.usage_date): manifest for manifest in refused}
    shown = [
        f"{day} (has {m.rows:,}, source {m.refused_rows:,}{', files damaged' if m.lost else ''})"
        for day, m in list(days.items())[:_REFUSED_SHOWN]
    ]
    more = f" and {len(days) - len(shown)} more days" if len(days) > len(shown) else ""
    return UsagePipelineError(
        f"The source has fewer events than landed or published, so nothing was changed for "
        f"{', '.join(shown)}{more}",
        "Bring the events back into the source and roll the days up, or take what it has: "
        + lost_events.allowing(ranges_of_days(days)),
    )


def moved_from(
    settings: Settings,
    extracted: Sequence[Manifest],
    folder: Path,
    *,
    apart_from: Collection[date],
    whatever_size: Collection[date] = (),
) -> dict[date, Moved]:
    """Landed days that hold events which stand in newly extracted days now.

    All other days are searched while they have few events; beyond that those of the look-back
    window since whose landing rows were changed, as Postgres counts, and the published invalid
    events, which are few always.

    Args:
        extracted: the manifests of the new days.
        folder: where their partitions are.
        apart_from: days that are extracted already.
        whatever_size: days that are searched in any case.

    Raises:
        UsagePipelineError: a landed file is damaged; names it.
    """
    new = [
        path
        for manifest in extracted
        if manifest.rows
        for path in data_files(folder, date.fromisoformat(manifest.usage_date))
    ]
    if not new:
        return {}
    known = {
        day: manifest
        for day, manifest in landed_manifests(settings).items()
        if day not in apart_from and manifest.fits(data_files(settings.events_dir, day))
    }
    if sum(manifest.rows for manifest in known.values()) > EVENTS_SEARCHED:
        first, now = settings.today() - timedelta(settings.lookback_days), count_changes(settings)
        changed = {d for d, m in known.items() if m.rows_changed not in ("", now) and d >= first}
        changed |= known.keys() & set(whatever_size)
    else:
        changed = set(known)
    kind = _id_type(extracted[0])
    old: dict[str, list[Path]] = {}
    for day in changed:
        old.setdefault(_id_type(known[day]), []).extend(data_files(settings.events_dir, day))
    searched = [_ids(files, stored, kind) for stored, files in old.items()]
    with open_duckdb(settings, ":memory:") as db:
        if lost_events.published_days(settings):
            published.attach(settings, db)
            searched.append(
                f"select try_cast(event_id as {kind}), usage_date"
                " from published.main.invalid_usage_events"
            )
        if not searched:
            return {}
        try:
            rows = db.execute(
                "select old.usage_date, count(distinct id), list(distinct new.usage_date)"
                f" from ({' union all '.join(searched)}) as old (id, usage_date)"
                f" inner join ({_ids(new, kind, kind)}) as new using (id) group by old.usage_date"
            ).fetchall()
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            if disk_is_full(error):
                raise
            raise UsagePipelineError(
                f"What is landed cannot be read: {str(error).splitlines()[0]}",
                "Delete the named landing file; the next run extracts that day again",
            ) from error
    return {day: Moved(events, frozenset(to)) for day, events, to in rows if day in known}


def _id_type(manifest: Manifest) -> str:
    return "uuid" if "id" in manifest.uuids else "varchar"


def _ids(files: Sequence[Path], stored: str, kind: str) -> str:
    """SQL: ids as one type; text that is no UUID cannot be one of them."""
    listed = ", ".join(f"'{quoted(path)}'" for path in files)
    events = landed_events(f"[{listed}]", stored)
    return f"select try_cast(id as {kind}) as id, usage_date from {events}"


def changed_days(settings: Settings, days: DayRange) -> dict[date, str]:
    """Landed days whose source differs from what was landed, with a text that tells the difference
    from any other: when the day was landed, and the source's fingerprint now.

    One grouped query over the range in Postgres, whatever the number of days.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    landed = {d: m for d, m in landed_manifests(settings).items() if days.start <= d < days.end}
    now = source_fingerprints(settings, days)
    return {
        day: f"{manifest.extracted_at} {now[day]}"
        for day, manifest in landed.items()
        if now[day] != (manifest.refused or manifest.fingerprint)
    }


def days_to_repair(settings: Settings, needs_event_data: bool) -> list[date]:
    """Landed days that have to be extracted again before anything reads landing.

    A file is missing or has another size than its manifest says, the manifest is unreadable, the
    day was cut in another time zone or by another release, `event_data` is needed and absent, or a
    published day is not landed at all. A day that was refused is not tried again for that.
    """
    manifests = landed_manifests(settings)
    days = []
    for day in sorted({*landed_days(settings), *lost_events.published_days(settings)}):
        manifest = manifests.get(day)
        if (
            manifest is None
            or not manifest.fits(data_files(settings.events_dir, day))
            or manifest.timezone != settings.timezone
            or (needs_event_data and not manifest.event_data and not manifest.refused)
        ):
            days.append(day)
    return days
