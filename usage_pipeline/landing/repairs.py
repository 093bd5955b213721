"""Which landed days are extracted again, and which may not be replaced.

A day whose source has fewer events than it had is kept and says so; see `lost_events`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from usage_pipeline.app_db.fingerprints import source_fingerprints
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.landed_days import (
    MANIFEST,
    Manifest,
    data_files,
    landed_days,
    landed_manifests,
    partition,
)
from usage_pipeline.settings import Settings

_REFUSED_SHOWN = 5


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
        f"{day} (has {m.rows:,}, source {m.refused_rows:,}{', files damaged' if m.lost else ''}"
        f"{', some of them counted twice' if m.twice else ''})"
        for day, m in list(days.items())[:_REFUSED_SHOWN]
    ]
    more = f" and {len(days) - len(shown)} more days" if len(days) > len(shown) else ""
    return UsagePipelineError(
        f"The source has fewer events than landed or published, so nothing was changed for "
        f"{', '.join(shown)}{more}",
        "Bring the events back into the source and roll the days up, or take what it has: "
        + lost_events.allowing(ranges_of_days(days)),
    )


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
