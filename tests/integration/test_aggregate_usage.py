"""`usage_aggregations` against a PL/pgSQL function over the source, on a million sample events."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import AppDatabase, days, roll_up

from usage_pipeline.app_db.sample import load_sample
from usage_pipeline.settings import Settings

REPOSITORY = Path(__file__).parents[2]
EVENTS = 1_000_000
RANGE = days("2025-03-01", "2025-04-01")  # the clock goes forward on the 9th
ZONE = "America/New_York"
COLUMNS = (
    "user_id, org_id, period_type, period_start, period_end, metric_type, total_quantity,"
    " {event_count}"
)


@pytest.fixture(scope="module")
def database(new_database: Any, make_settings: Any) -> AppDatabase:
    database: AppDatabase = new_database()
    settings: Settings = make_settings(
        USAGE_APP_DATABASE_URL=database.url, USAGE_TIMEZONE=ZONE, USAGE_START_DATE="2025-03-01"
    )
    load_sample(
        database.url,
        events=EVENTS,
        days=len(RANGE.days()),
        users=3_000,
        seed=1,
        end=RANGE.end,
        zone=settings.zone,
    )
    database.execute((REPOSITORY / "bench" / "aggregate_usage.sql").read_text())
    roll_up(settings, RANGE)
    return database


def aggregate(database: AppDatabase, period_type: str, start: date, end: date) -> None:
    at = [f"{day} 00:00 {ZONE}" for day in (start, end)]
    database.execute("select aggregate_usage(%s, %s, %s)", [period_type, *at])


def test_usage_aggregations_equal_the_function_in_the_database(database: AppDatabase) -> None:
    for day in RANGE.days():
        aggregate(database, "daily", day, day + timedelta(days=1))
    aggregate(database, "monthly", *RANGE)

    theirs = f"select {COLUMNS.format(event_count='event_count')} from public.usage_aggregations"
    ours = COLUMNS.format(event_count="(metadata ->> 'event_count')::bigint")
    ours = f"select {ours} from usage.usage_aggregations"
    assert database.query(f"({theirs}) except all ({ours})") == []
    assert database.query(f"({ours}) except all ({theirs})") == []
    ((invalid,),) = database.query("select count(*) from usage.invalid_usage_events")
    assert 0 < invalid < EVENTS / 1000
    assert database.query(
        "select period_type, sum(event_count) from public.usage_aggregations group by 1 order by 1"
    ) == [("daily", EVENTS - invalid), ("monthly", EVENTS - invalid)]
