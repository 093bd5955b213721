"""The sensor `late_events`, over a real source whose landed days change."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from support import AppDatabase, triggers

from usage_pipeline.landing import land_events
from usage_pipeline.orchestration.partitions import days_of_run
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import DayRange

USER = str(uuid4())


class Source:
    """A source with one event a day for 40 days, all landed, and its sensor."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self.today = settings.today()
        self.cursor: str | None = None
        self.run_keys: list[str | None] = []
        self.sensor = triggers(settings)["late_events"]
        for ago in range(1, 41):
            self.add(ago)
        land_events(settings, [self.day(ago) for ago in range(1, 41)])

    def day(self, ago: int) -> date:
        return self.today - timedelta(days=ago)

    def add(self, ago: int, quantity: str = "1") -> str:
        """An event in the middle of the day `ago` days ago; gives its id."""
        event = str(uuid4())
        start, end = self.settings.day_bounds(self.day(ago))
        self.database.insert(
            "usage_events",
            [(event, USER, None, "api_call", None, quantity, start + (end - start) / 2)],
        )
        return event

    def tick(self) -> list[DayRange]:
        """What one evaluation asks for; the cursor is kept as the daemon would."""
        with dg.build_sensor_context(cursor=self.cursor) as context:
            asked = [a for a in self.sensor(context) if isinstance(a, dg.RunRequest)]  # type: ignore[union-attr]
            self.cursor = context.cursor
        self.run_keys += [request.run_key for request in asked]
        ranges = [days_of_run(dict(request.tags)) for request in asked]
        return [days for days in ranges if days is not None]

    def ranges(self, *ago: tuple[int, int]) -> list[DayRange]:
        """Ranges from the day `first` days ago to the day `last` days ago, both included."""
        return [DayRange(self.day(first), self.day(last - 1)) for first, last in ago]


@pytest.fixture
def make_source(new_database: Any, make_settings: Any) -> Any:
    def make(**variables: Any) -> Source:
        database = new_database()
        return Source(database, make_settings(USAGE_APP_DATABASE_URL=database.url, **variables))

    return make


def test_nothing_changed_asks_for_nothing(make_source: Any) -> None:
    source = make_source(USAGE_TIMEZONE="America/New_York")
    assert source.tick() == []
    source.add(0)  # today is not landed; its night is to come
    assert source.tick() == []


def test_exactly_the_changed_days_are_asked_for_once(make_source: Any) -> None:
    source = make_source(USAGE_TIMEZONE="America/New_York")
    for ago in (30, 29, 28, 10, 1):
        source.add(ago)
    assert source.tick() == source.ranges((30, 28), (10, 10), (1, 1))
    assert source.tick() == []  # the runs are queued, or failed; the same state is not asked again


def test_a_second_change_of_a_day_is_asked_for_and_only_that(make_source: Any) -> None:
    source = make_source()
    source.add(5)
    source.add(3)
    assert source.tick() == source.ranges((5, 5), (3, 3))
    source.add(4)
    source.add(3)
    assert source.tick() == source.ranges((4, 3))  # day 5 waits for its run


def test_corrections_deletions_and_moves_are_changes(make_source: Any) -> None:
    source = make_source()
    events = {ago: source.add(ago, "0.000000001") for ago in (20, 15, 12, 9)}
    land_events(source.settings, [source.day(ago) for ago in events])
    assert source.tick() == []
    execute = source.database.execute
    execute("update usage_events set quantity = 0.000000002 where id = %s", (events[20],))
    execute("delete from usage_events where id = %s", (events[15],))
    execute("update usage_events set quantity = 'NaN' where id = %s", (events[12],))
    execute(
        "update usage_events set created_at = created_at - interval '1 day' where id = %s",
        (events[9],),
    )
    assert source.tick() == source.ranges((20, 20), (15, 15), (12, 12), (10, 9))


def test_a_state_that_was_landed_and_comes_back_is_a_change_again(make_source: Any) -> None:
    source = make_source()
    event = source.add(7, "2")
    assert source.tick() == source.ranges((7, 7))
    land_events(source.settings, [source.day(7)])
    assert source.tick() == []
    source.database.execute("delete from usage_events where id = %s", (event,))
    assert source.tick() == source.ranges((7, 7))
    land_events(source.settings, [source.day(7)])
    assert source.tick() == []
    source.database.insert(
        "usage_events",
        [(event, USER, None, "api_call", None, 2, source.settings.day_start(source.day(7)))],
    )
    assert source.tick() == source.ranges((7, 7))
    # The daemon starts no second run for a key that it knows, however long ago that was.
    assert len(set(source.run_keys)) == 3


def test_the_look_back_window_ends(make_source: Any) -> None:
    source = make_source(USAGE_LOOKBACK_DAYS=6)
    source.add(7)
    assert source.tick() == []
    source.add(6)
    assert source.tick() == source.ranges((6, 6))


def test_days_that_were_never_landed_are_left_to_a_backfill(make_source: Any) -> None:
    source = make_source(USAGE_LOOKBACK_DAYS=100)
    source.add(60)
    assert source.tick() == []


def test_duplicates_are_part_of_the_fingerprint(new_database: Any, make_settings: Any) -> None:
    database = new_database()
    database.execute("alter table usage_events drop constraint usage_events_pkey")
    source = Source(database, make_settings(USAGE_APP_DATABASE_URL=database.url))
    twin = source.add(3)
    database.execute("insert into usage_events select * from usage_events where id = %s", (twin,))
    assert source.tick() == source.ranges((3, 3))
    land_events(source.settings, [source.day(3)])
    assert source.tick() == []


def test_a_thousand_changed_days_are_asked_for_over_several_ticks(
    new_database: Any, make_settings: Any
) -> None:
    database = new_database()
    settings = make_settings(
        USAGE_APP_DATABASE_URL=database.url,
        USAGE_LOOKBACK_DAYS=2500,
        USAGE_START_DATE="2018-01-01",
    )
    source = Source(database, settings)
    changed = [source.day(ago) for ago in range(50, 2050, 2)]
    land_events(settings, [source.day(ago) for ago in range(49, 2051)])
    for ago in range(50, 2050, 2):
        source.add(ago)
    asked: list[date] = []
    while ranges := source.tick():
        asked += [day for days in ranges for day in days.days()]
    assert sorted(asked) == sorted(changed)  # each once, and none of the days between them
