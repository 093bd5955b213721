"""The local days with their instants, which SQL joins to."""

from __future__ import annotations

from datetime import timedelta

from usage_pipeline.days import DayRange
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import open_duckdb, write_parquet
from usage_pipeline.settings import Settings


def land_calendar(settings: Settings) -> None:
    """Write the local days from the first partition's month on, with their instants.

    Python's time zone data is the only judge of when a day begins; SQL joins to this table.
    """
    first, last = settings.start_date.replace(day=1), settings.today() + timedelta(days=400)
    days = DayRange(first, last).days()
    starts = [settings.day_start(day) for day in [*days, last]]
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    with scratch(settings) as work, open_duckdb(settings, ":memory:") as db:
        db.execute(
            "create table calendar as select unnest(?::date[]) as calendar_date, "
            "unnest(?::timestamptz[]) as starts_at, unnest(?::timestamptz[]) as ends_at",
            [days, starts[:-1], starts[1:]],
        )
        write_parquet(db, "calendar", work / "calendar.parquet")
        (work / "calendar.parquet").replace(settings.landing_dir / "calendar.parquet")
