"""Random histories of the source and of rollups, against plain SQL over the source.

Events are inserted, corrected, moved, deleted, in days that are rolled up or not, and days are
rolled up in any order and any number of times. Whatever the history: what is published is what
SQL finds for these days, no event is landed twice, each publish is explained by the ledger, the
sensor's query and `reconcile` find what else has changed, and the tables then equal SQL over the
source.

`make test` tries a few histories; `make faults` tries many.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from support import AppDatabase, assert_published_alike, days, roll_up, snapshot_query

from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.landing.stale_days import changed_days
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

DAYS = days("2024-01-29", "2024-02-03")
ORACLE = """
    select {period}, user_id::text, org_id::text, event_type,
           sum(quantity::numeric(38, 9)), count(*)
    from usage_events
    where quantity not in ('NaN', 'Infinity')
      and (created_at at time zone 'UTC')::date = any(%s)
    group by 1, 2, 3, 4
"""
CELL = "user_id::text, org_id::text, metric_type, total_quantity, event_count"
Cells = dict[tuple[Any, ...], tuple[Decimal, int]]


@dataclass(frozen=True)
class Event:
    day: int
    second: int
    user: int
    org: int | None
    event_type: str
    quantity: str

    def row(self, number: int) -> tuple[Any, ...]:
        org = None if self.org is None else str(UUID(int=100 + self.org))
        created = datetime(2024, 1, 29, tzinfo=UTC) + timedelta(days=self.day, seconds=self.second)
        user, name = str(UUID(int=1 + self.user)), str(UUID(int=1000 + number))
        return name, user, org, self.event_type, None, self.quantity, created


@dataclass(frozen=True)
class Change:
    """Events that come in; and of those that are there, some that go and some that are replaced."""

    new: list[Event]
    gone: list[int]
    replaced: list[tuple[int, Event]]


EVENTS = st.builds(
    Event,
    day=st.integers(0, len(DAYS.days()) - 1),
    second=st.sampled_from([0, 1, 43_200, 86_399]),
    user=st.integers(0, 2),
    org=st.sampled_from([None, 0, 1]),
    event_type=st.sampled_from(["api_call", "ai_tokens_used"]),
    quantity=st.one_of(
        st.decimals("-1e6", "1e6", places=9).map(str),
        st.sampled_from(["0", "1", "-1", "NaN", "Infinity", "0.0000000005", "1e28"]),
    ),
)
CHANGES = st.builds(
    Change,
    new=st.lists(EVENTS, max_size=8),
    gone=st.lists(st.integers(0, 99), max_size=2),
    replaced=st.lists(st.tuples(st.integers(0, 99), EVENTS), max_size=3),
)
ROLLUPS = st.tuples(st.integers(0, 4), st.integers(1, 5)).map(
    lambda cut: DayRange(
        DAYS.days()[cut[0]], min(DAYS.days()[cut[0]] + timedelta(cut[1]), DAYS.end)
    )
)
HISTORIES = st.lists(st.tuples(CHANGES, ROLLUPS), min_size=1, max_size=3)


class World:
    """One source and one home; every history begins with empty ones."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self._empty = settings.home.with_name("empty")
        Rollup(settings).transformer.manifest_path()
        shutil.copytree(settings.home, self._empty)

    def begin(self) -> None:
        self.database.execute("truncate usage_events; drop schema if exists usage cascade")
        shutil.rmtree(self.settings.home)
        shutil.copytree(self._empty, self.settings.home)
        self._events, self._runs = 0, 0

    def change(self, change: Change) -> None:
        known = [i for (i,) in self.database.query("select id::text from usage_events order by 1")]
        if change.new:
            rows = [event.row(self._events + i) for i, event in enumerate(change.new)]
            self.database.insert("usage_events", rows)
            self._events += len(rows)
        if known:
            for number in change.gone:
                self.database.execute(
                    "delete from usage_events where id = %s", [known[number % len(known)]]
                )
            for number, event in change.replaced:
                self.database.execute(
                    "update usage_events set user_id = %s, org_id = %s, event_type = %s,"
                    " quantity = %s, created_at = %s where id = %s",
                    [*event.row(0)[1:4], *event.row(0)[5:], known[number % len(known)]],
                )

    def roll_up(self, ranges: Sequence[DayRange]) -> None:
        """Every number that this changes on days published before is a row of the ledger."""
        before = self.published() if self._runs else {}
        known = (
            snapshot_query(self.settings, "select usage_date from published_days")
            if self._runs
            else []
        )
        self._runs += 1
        run = f"run {self._runs}"
        roll_up(self.settings, *ranges, run_id=run)
        after = self.published()
        none = (Decimal(0), 0)
        expected = {
            cell: (*before.get(cell, none), *after.get(cell, none))
            for cell in before.keys() | after.keys()
            if (cell[0],) in known and before.get(cell) != after.get(cell)
        }
        ledger = snapshot_query(
            self.settings,
            "select usage_date, user_id::text, org_id::text, metric_type, old_quantity,"
            " old_event_count, new_quantity, new_event_count from usage_restatements"
            f" where run_id = '{run}'",
        )
        assert {row[:4]: row[4:] for row in ledger} == expected
        assert len(ledger) == len(expected)
        files = f"read_parquet('{self.settings.events_dir}/*/part-*.parquet')"
        assert (
            duckdb.sql(f"select id from {files} group by id having count(*) > 1").fetchall() == []
        )

    def published(self) -> Cells:
        rows = snapshot_query(self.settings, f"select usage_date, {CELL} from usage_daily")
        return {row[:4]: row[4:] for row in rows}

    def assert_equals_plain_sql(self, of: Sequence[date]) -> None:
        daily = self.database.query(
            ORACLE.format(period="(created_at at time zone 'UTC')::date"), [list(of)]
        )
        found = self.published()
        assert {cell: found[cell] for cell in found if cell[0] in of} == {
            row[:4]: row[4:] for row in daily
        }

    def assert_all_equals_plain_sql(self) -> None:
        landed = list(landed_manifests(self.settings))
        self.assert_equals_plain_sql(landed)
        monthly = self.database.query(
            ORACLE.format(period="date_trunc('month', created_at at time zone 'UTC')::date"),
            [landed],
        )
        found = snapshot_query(self.settings, f"select month, {CELL} from usage_monthly")
        assert sorted(found, key=str) == sorted(monthly, key=str)
        assert_published_alike(self.settings, self.database.url)


@pytest.fixture(scope="module")
def world(new_database: Any, make_settings: Any) -> World:
    database: AppDatabase = new_database()
    return World(database, make_settings(USAGE_APP_DATABASE_URL=database.url))


def test_any_history_ends_in_what_plain_sql_finds(world: World, tries: profile) -> None:
    @tries
    @given(HISTORIES)
    def any_history(history: list[tuple[Change, DayRange]]) -> None:
        world.begin()
        for change, ranges in history:
            world.change(change)
            world.roll_up([ranges])
            world.assert_equals_plain_sql(ranges.days())
        sensed = changed_days(world.settings, DAYS)
        if sensed:
            world.roll_up(ranges_of_days(sensed))
        lines = Rollup(world.settings).reconcile(DAYS)
        landed = landed_manifests(world.settings)
        unlike = {line.usage_date for line in lines if not line.matches} & landed.keys()
        if unlike:
            world.roll_up(ranges_of_days(unlike))
        world.assert_all_equals_plain_sql()

    any_history()
