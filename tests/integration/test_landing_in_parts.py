"""New days are put in place while a long run goes on, unless an event could be counted twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, day, roll_up, snapshot_query

from usage_pipeline.landing import extraction, moved_events, replacement
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

ADA = str(UUID(int=0xADA << 96))
DAYS = [date(2024, 3, 1) + timedelta(days=n) for n in range(5)]
OLD, A, B, C, LAST = DAYS


def _id(on: date, n: int) -> str:
    return str(UUID(int=(on.toordinal() << 32) + n))


class Place:
    """A source with two events on each of five days, of which none is landed."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self.replaced: list[set[date]] = []
        database.insert(
            "usage_events",
            [
                (_id(on, n), ADA, None, "api_call", None, 1 + n, f"{on}T1{n}:00Z")
                for on in DAYS
                for n in range(2)
            ],
        )

    def move(self, event: str, to: date) -> None:
        self.database.execute(
            "update usage_events set created_at = %s where id = %s", (f"{to}T15:00Z", event)
        )

    def land(self, *days: date) -> None:
        land_events(self.settings, days, replacing=self._replacing)

    @contextmanager
    def _replacing(self, days: Collection[date]) -> Iterator[None]:
        before = landed_manifests(self.settings)
        yield
        after = landed_manifests(self.settings)
        self.replaced.append({on for on in after if after[on] != before.get(on)})
        files = f"'{self.settings.events_dir}/*/part-*.parquet'"
        twice = f"select id from {landed_events(files)} group by id having count(*) > 1"
        assert duckdb.sql(twice).fetchall() == []


@pytest.fixture
def place(new_database: Any, make_settings: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(replacement, "EVENTS_AT_ONCE", 1)
    database = new_database()
    return Place(database, make_settings(USAGE_APP_DATABASE_URL=database.url))


def test_new_days_are_put_in_place_as_they_come_and_landed_ones_together(place: Place) -> None:
    place.land(OLD)
    place.land(OLD, A, B)
    assert place.replaced == [{OLD}, set(), {A}, {B}, {OLD}]


def test_so_many_events_are_put_in_place_together(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacement, "EVENTS_AT_ONCE", 4)
    place.land(*DAYS)
    assert place.replaced == [{OLD, A}, {B, C}, {LAST}]


def test_an_event_of_a_landed_day_comes_in_when_it_leaves_the_other(place: Place) -> None:
    place.land(OLD)
    place.replaced.clear()
    place.move(_id(OLD, 0), B)
    place.land(A, B, C)
    assert place.replaced == [{A}, set(), {C}, {OLD, B}]
    assert {on: m.rows for on, m in landed_manifests(place.settings).items()} == {
        OLD: 1,
        A: 2,
        B: 3,
        C: 2,
    }


@pytest.mark.parametrize("searched", [0, 1000])
def test_also_when_the_landed_day_is_one_of_those_asked_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, searched: int
) -> None:
    """However many events are landed, and though no row was changed since, as Postgres counts."""
    place.land(OLD)
    place.move(_id(OLD, 0), B)
    monkeypatch.setattr(moved_events, "EVENTS_SEARCHED", searched)
    place.replaced.clear()
    land_events(
        place.settings, [OLD, A, B], replacing=place._replacing, may_lose={OLD: float("inf")}
    )
    assert place.replaced == [{A}, set(), {OLD, B}]


def test_days_cut_for_another_time_zone_change_together(place: Place, make_settings: Any) -> None:
    place.land(OLD)
    place.replaced.clear()
    place.settings = make_settings(
        USAGE_APP_DATABASE_URL=place.database.url,
        USAGE_HOME=place.settings.home,
        USAGE_TIMEZONE="Asia/Tokyo",
    )
    place.land(OLD, A, B)
    assert place.replaced == [{OLD, A, B}]


def test_nobody_waits_for_a_busy_run_while_the_source_is_open(place: Place) -> None:
    with writer.exclusive(place.settings, "building"):
        place.land(A, B)
    assert place.replaced == [{A, B}]


def test_what_a_run_had_landed_when_it_ended_is_not_extracted_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = extraction._extract_day

    def fail_on_b(settings: Settings, source: Any, on: date, *more: Any) -> Any:
        if on == B:
            raise SystemExit
        return extract(settings, source, on, *more)

    monkeypatch.setattr(extraction, "_extract_day", fail_on_b)
    rollup = Rollup(place.settings)
    with pytest.raises(SystemExit):
        rollup.land_events([OLD, A, B, C])
    first = landed_manifests(place.settings)
    assert list(first) == [OLD, A]
    assert [str(days) for days in rollup.pending.unbuilt()] == ["[2024-03-01, 2024-03-03)"]
    assert [str(days) for days in rollup.pending.ranges()] == ["[2024-03-01, 2024-03-05)"]

    monkeypatch.setattr(extraction, "_extract_day", extract)
    roll_up(place.settings, day(LAST.isoformat()))
    second = landed_manifests(place.settings)
    assert list(second) == DAYS
    assert {on: second[on] for on in first} == first
    assert_published_alike(place.settings, place.database.url)
    assert snapshot_query(
        place.settings, "select usage_date, total_quantity, event_count from usage_daily order by 1"
    ) == [(on, 3, 2) for on in DAYS]
