"""The sensor `late_events`, over a real source whose landed days change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from support import AppDatabase, triggers

from usage_pipeline.days import DayRange
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.orchestration.jobs import NIGHTLY
from usage_pipeline.orchestration.partitions import days_of_run
from usage_pipeline.settings import Settings

USER = str(uuid4())


class Source:
    """A source with one event a day for 40 days, all landed, and its sensor."""

    def __init__(
        self, database: AppDatabase, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        self.database, self.settings = database, settings
        self.today = settings.today()
        self.cursor: str | None = None
        self.run_keys: list[str] = []
        self.instance = instance
        self.sensor = triggers(settings)["late_events"]
        self.add_all(range(1, 41))
        land_events(settings, [self.day(ago) for ago in range(1, 41)])

    def day(self, ago: int) -> date:
        return self.today - timedelta(days=ago)

    def add(self, ago: int, quantity: str = "1") -> str:
        """An event in the middle of the day `ago` days ago; gives its id."""
        (event,) = self.add_all([ago], quantity)
        return event

    def add_all(self, agos: Iterable[int], quantity: str = "1") -> list[str]:
        """An event in the middle of each day; gives their ids."""
        rows = []
        for ago in agos:
            start, end = self.settings.day_bounds(self.day(ago))
            noon = start + (end - start) / 2
            rows.append((str(uuid4()), USER, None, "api_call", None, quantity, noon))
        self.database.insert("usage_events", rows)
        return [event for event, *_ in rows]

    def tick(self, *, makes_runs: bool = True) -> list[DayRange]:
        """What one evaluation asks for, in one run. As the daemon does, keeps the cursor and makes
        that run, with a key that no run had before; or it ends before it makes it."""
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            asked = [a for a in self.sensor(context) if isinstance(a, dg.RunRequest)]
            self.cursor = context.cursor
        assert len(asked) <= 1
        for request in asked:
            assert request.run_key
            assert request.run_key not in self.run_keys
            self.run_keys.append(request.run_key)
            if makes_runs:
                tags = {**request.tags, "dagster/run_key": request.run_key}
                self.instance.add_run(dg.DagsterRun(NIGHTLY, run_id=str(uuid4()), tags=tags))
        return [days for request in asked for days in days_of_run(request.tags)]

    def end_runs(self, how: dg.DagsterEventType) -> None:
        """All runs that have not ended end in this way."""
        waiting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED])
        for run in self.instance.get_runs(waiting):
            event = dg.DagsterEvent(event_type_value=how.value, job_name=run.job_name)
            self.instance.report_dagster_event(event, run.run_id)

    def ranges(self, *ago: tuple[int, int]) -> list[DayRange]:
        """Ranges from the day `first` days ago to the day `last` days ago, both included."""
        return [DayRange(self.day(first), self.day(last - 1)) for first, last in ago]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def make_source(new_database: Any, make_settings: Any, instance: dg.DagsterInstance) -> Any:
    def make(**variables: Any) -> Source:
        database = new_database()
        settings = make_settings(USAGE_APP_DATABASE_URL=database.url, **variables)
        return Source(database, settings, instance)

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
    assert source.tick() == []  # the runs are queued


@pytest.mark.parametrize("how", [dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED])
def test_a_day_whose_run_did_not_land_it_is_asked_for_again(make_source: Any, how: Any) -> None:
    source = make_source()
    source.add(10)
    source.add(3)
    for _ in range(3):  # each attempt with a key that the daemon has not seen
        assert source.tick() == source.ranges((10, 10), (3, 3))
        assert source.tick() == []
        source.end_runs(how)
    land_events(source.settings, [source.day(10)])
    assert source.tick() == source.ranges((3, 3))


def test_a_day_whose_run_was_never_made_is_asked_for_again(make_source: Any) -> None:
    source = make_source()
    source.add(10)
    assert source.tick(makes_runs=False) == source.ranges((10, 10))
    assert source.tick() == source.ranges((10, 10))
    assert source.tick() == []


def test_the_cursor_of_an_older_release_asks_for_nothing(make_source: Any) -> None:
    source = make_source()
    source.add(3)
    source.cursor = json.dumps({str(source.day(3)): "2026-11-24T01:00:00+00:00 1 1 -"})
    assert source.tick() == source.ranges((3, 3))
    assert source.tick() == []


def test_a_run_that_kept_its_day_on_purpose_is_not_repeated(make_source: Any) -> None:
    source = make_source()
    source.add(10)
    assert source.tick() == source.ranges((10, 10))
    source.end_runs(dg.DagsterEventType.RUN_SUCCESS)
    assert source.tick() == []
    source.add(10)
    assert source.tick() == source.ranges((10, 10))


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


def test_duplicates_are_part_of_the_fingerprint(
    new_database: Any, make_settings: Any, instance: dg.DagsterInstance
) -> None:
    database = new_database()
    database.execute("alter table usage_events drop constraint usage_events_pkey")
    source = Source(database, make_settings(USAGE_APP_DATABASE_URL=database.url), instance)
    twin = source.add(3)
    database.execute("insert into usage_events select * from usage_events where id = %s", (twin,))
    assert source.tick() == source.ranges((3, 3))
    land_events(source.settings, [source.day(3)])
    assert source.tick() == []


def test_a_thousand_changed_days_are_asked_for_over_several_ticks(
    new_database: Any, make_settings: Any, instance: dg.DagsterInstance
) -> None:
    database = new_database()
    settings = make_settings(
        USAGE_APP_DATABASE_URL=database.url,
        USAGE_LOOKBACK_DAYS=2500,
        USAGE_START_DATE="2018-01-01",
    )
    source = Source(database, settings, instance)
    changed = [source.day(ago) for ago in range(50, 2050, 2)]
    land_events(settings, [source.day(ago) for ago in range(49, 2051)])
    source.add_all(range(50, 2050, 2))
    asked: list[date] = []
    while ranges := source.tick():
        asked += [day for days in ranges for day in days.days()]
    assert sorted(asked) == sorted(changed)  # each once, and none of the days between them
