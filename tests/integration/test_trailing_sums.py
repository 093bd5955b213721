"""The running sums behind usage_summary, over random histories: always what a count anew gives.

Days are built, built again (also twice before they are summed up, as after a kill), emptied; the
last landed day moves by any number of days and back. The SQL is the pipeline's, run on tables of
its own; what it should give is counted in plain Python.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from support import AppDatabase, sql_of_models, warehouse_in_memory

FIRST, LAST = date(2024, 1, 1), date(2026, 6, 30)
DAYS = (LAST - FIRST).days
GREAT = 10**19  # above it a value is kept apart
# The first and the last day of each age, as days before the last landed one.
AGES = {7: (0, 6), 14: (7, 13), 30: (14, 29), 60: (30, 59), 365: (60, 364), 730: (365, 729)}

# (user, meter) -> events, sum, great sum
Cells = dict[tuple[int, str], tuple[int, Decimal, int | None]]

CELLS: st.SearchStrategy[Cells] = st.dictionaries(
    st.tuples(st.integers(0, 2), st.sampled_from(["api_call", "user_active"])),
    st.tuples(
        st.integers(1, 3),
        st.sampled_from([Decimal("0"), Decimal("1.000000001"), Decimal("-7"), Decimal(GREAT - 1)]),
        st.sampled_from([None, None, 9 * 10**28, -(10**20)]),
    ),
    max_size=3,
)
# Mostly near the edges of ages, seen from the last landed day, where mistakes would be.
NEAR = st.sampled_from([0, 1, 5, 6, 7, 13, 14, 29, 30, 59, 60, 364, 365, 729, 730, 731])


@dataclass(frozen=True)
class Step:
    """Some days are built, once or again and again, and the last landed day moves."""

    rebuilt: list[tuple[int, int, list[Cells]]]
    moves: int
    summed: bool


STEPS = st.builds(
    Step,
    rebuilt=st.lists(
        st.tuples(NEAR, st.integers(1, 3), st.lists(CELLS, min_size=1, max_size=2)), max_size=3
    ),
    moves=st.sampled_from([1, 1, 1, 1, 0, 2, 7, 30, 400, -1, -8]),
    summed=st.sampled_from([True, True, True, False]),
)


class World:
    """The tables that the two models read and write, and what is known of them."""

    def __init__(self, models: dict[str, str]) -> None:
        self.models = models
        self.db = warehouse_in_memory(FIRST, LAST)
        self.db.execute("""
            create table usage_partials_daily (usage_date date, user_id uuid, org_id uuid,
                metric_type varchar, event_count bigint, sum_quantity decimal(38, 9),
                sum_great decimal(38, 0));
            create table usage_replaced_partials as from usage_partials_daily;
        """)

    def begin(self) -> None:
        self.held: dict[date, Cells] = {}
        self.last = FIRST + timedelta(days=DAYS // 2)
        self.db.execute("delete from usage_partials_daily; delete from usage_replaced_partials")
        self.db.execute("drop table if exists usage_trailing_partials")
        self._land()
        self.db.execute(f"create table usage_trailing_partials as {self.models['first']}")

    def take(self, step: Step) -> None:
        for age, length, times in step.rebuilt:
            start = max(self.last - timedelta(days=age), FIRST)
            days = [start + timedelta(days=i) for i in range(length)]
            for cells in times:
                self._build(days, cells)
        self.last = min(max(self.last + timedelta(days=step.moves), FIRST), LAST)
        self._land()
        if step.summed:
            self._sum_up()

    def _build(self, days: list[date], cells: Cells) -> None:
        window = {"2024-03-30": days[0], "2024-03-31": days[-1] + timedelta(days=1)}
        keep = re.sub("2024-03-3[01]", lambda found: str(window[found[0]]), self.models["keep"])
        self.db.execute(f"insert into usage_replaced_partials {keep}")
        for each in days:
            self.held[each] = cells
            self.db.execute("delete from usage_partials_daily where usage_date = ?", [each])
            for (user, metric), (events, total, great) in cells.items():
                self.db.execute(
                    "insert into usage_partials_daily values"
                    " (?, cast(lpad(?, 32, '0') as uuid), null, ?, ?, ?, ?)",
                    [each, str(user), metric, events, total, great],
                )

    def _land(self) -> None:
        self.db.execute("delete from stg_landed_days")
        self.db.execute("insert into stg_landed_days values (?)", [self.last])

    def _sum_up(self) -> None:
        self.db.execute("begin")
        self.db.execute(f"create table summed as {self.models['sum']}")
        self.db.execute("drop table usage_trailing_partials")
        self.db.execute("alter table summed rename to usage_trailing_partials")
        self.db.execute("delete from usage_replaced_partials")
        self.db.execute("commit")

    def found(self) -> dict[tuple[int, str, int], tuple[int, Decimal]]:
        figures = ", ".join(
            f"{age}, event_count_{age}, sum_quantity_{age}, sum_great_{age}" for age in AGES
        )
        rows = self.db.execute(
            "select cast(right(cast(user_id as varchar), 1) as integer), metric_type, as_of_date,"
            f" {figures} from usage_trailing_partials"
        ).fetchall()
        totals = {}
        for user, metric, as_of, *parts in rows:
            assert as_of == self.last
            for age, events, total, great in zip(*(iter(parts),) * 4, strict=True):
                if events:
                    totals[user, metric, age] = (events, total + (great or 0))
                else:
                    assert total == 0 and not great
        return totals

    def expected(self) -> dict[tuple[int, str, int], tuple[int, Decimal]]:
        totals: dict[tuple[int, str, int], tuple[int, Decimal]] = defaultdict(
            lambda: (0, Decimal(0))
        )
        for each, cells in self.held.items():
            ages = [a for a, (near, far) in AGES.items() if near <= (self.last - each).days <= far]
            for (user, metric), (events, total, great) in cells.items():
                for age in ages:
                    counted, summed = totals[user, metric, age]
                    totals[user, metric, age] = (counted + events, summed + total + (great or 0))
        return dict(totals)


@pytest.fixture(scope="module")
def world(new_database: Any, make_settings: Any) -> World:
    database: AppDatabase = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_START_DATE="2024-03-30")
    sums, keep = "reporting/usage_trailing_partials.sql", "usage/usage_replaced_partials.sql"
    first, again = sql_of_models(settings, sums, keep)
    summing = "usage_trailing_partials"
    keeping = again["usage_replaced_partials"]
    return World({"first": first[summing], "sum": again[summing], "keep": keeping})


@profile(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_running_sums_are_the_sums_of_the_days(world: World, steps: list[Step]) -> None:
    world.begin()
    for step in steps:
        world.take(step)
        if step.summed:
            with localcontext(prec=50):  # Python's default would round 38 digits to 28
                assert world.found() == world.expected()
