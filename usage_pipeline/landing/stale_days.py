"""Which landed days are extracted again: those that the source has otherwise now, and those that
cannot be read, or not as they are cut."""

from __future__ import annotations

from datetime import date

from usage_pipeline.app_db.fingerprints import source_fingerprints
from usage_pipeline.days import DayRange
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.landed_days import data_files, landed_days, landed_manifests
from usage_pipeline.settings import Settings


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
