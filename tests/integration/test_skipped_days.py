"""Days that a zone skipped when it moved across the date line: empty days, not errors."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest
from support import AppDatabase, days, roll_up, snapshot_query

USER = str(UUID(int=7))


@pytest.mark.parametrize(
    ("zone", "first_day", "midnight"),
    [
        # The second day is skipped: the third begins at the instant at which it would have.
        ("Pacific/Apia", "2011-12-29", "2011-12-30T10:00Z"),
        ("Pacific/Kwajalein", "1993-08-20", "1993-08-21T12:00Z"),
        ("Pacific/Kiritimati", "1994-12-30", "1994-12-31T10:00Z"),
    ],
)
def test_a_skipped_day_is_an_empty_day(
    new_database: Any, make_settings: Any, zone: str, first_day: str, midnight: str
) -> None:
    before, skipped, after, end = (
        str(date.fromisoformat(first_day) + timedelta(days=n)) for n in range(4)
    )
    database: AppDatabase = new_database()
    database.insert("users", [(USER, None, "1990-01-01T00:00Z", None)])
    database.execute(
        "insert into usage_events select ('00000000-0000-0000-0000-00000000000' || n)::uuid, %s, "
        "null, 'api_call', null, n, %s::timestamptz + (n - 2) * interval '1 second' "
        "from generate_series(1, 3) as n",  # the last second of `before`, then two of `after`
        (USER, midnight),
    )
    settings = make_settings(
        USAGE_APP_DATABASE_URL=database.url, USAGE_TIMEZONE=zone, USAGE_START_DATE=before
    )
    roll_up(settings, days(before, end))
    assert snapshot_query(
        settings, "select usage_date::text, total_quantity::int from usage_daily order by all"
    ) == [(before, 1), (after, 5)]
    assert snapshot_query(
        settings,
        "select metric_date::text, event_count::int, active_users::int "
        "from platform_metrics_daily order by all",
    ) == [(before, 1, 1), (skipped, 0, 0), (after, 2, 1)]
    ids = "select count(*), count(distinct id) from usage_aggregations where period_type = 'daily'"
    assert snapshot_query(settings, ids) == [(2, 2)]
    assert database.query(ids.replace("from ", "from usage.")) == [(2, 2)]
