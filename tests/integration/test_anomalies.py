"""Anomalies over random histories, built step by step and from nothing, against plain Python."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import forecasts
import pytest
from forecasts import BEGIN, ORGS, USERS, Key
from hypothesis import Phase, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from support import AppDatabase, sql_of_models

from usage_pipeline.alerts import anomalies

METRIC = "api_call"
CELL = st.tuples(st.sampled_from(USERS[:2]), st.sampled_from(ORGS[:2]), st.just(METRIC))
# As on most days, or with one of these instead.
USUAL = {(USERS[0], None, METRIC): Decimal(100), (USERS[1], ORGS[1], METRIC): Decimal("100.5")}
ODD = st.dictionaries(CELL, st.sampled_from([Decimal(n) for n in (0, 9, 250, 900, -50, 5000)]))


@dataclass(frozen=True)
class Step:
    """Days are built up to one before the last; one of them is odd, and one left out."""

    ends: int
    length: int
    odd: dict[Any, Decimal]
    position: int
    left_out: int | None
    moves: int
    summed: bool


STEPS = st.builds(
    Step,
    ends=st.sampled_from([0, 0, 1, 7, 29, 30, 49, 50, 90, 91]),
    length=st.sampled_from([1, 1, 3, 60]),
    odd=ODD,
    position=st.integers(0, 5),
    left_out=st.none() | st.integers(0, 59),
    moves=st.sampled_from([1, 1, 0, 2, 8, 40, -1]),
    summed=st.sampled_from([True, True, False]),
)


class World(forecasts.World):
    TABLE = "usage_anomalies"

    def take_step(self, step: Step) -> None:
        self.last += timedelta(days=step.moves)
        end = self.last - timedelta(days=step.ends)
        for number in range(step.length):
            if number != step.left_out:
                odd = step.odd if number == step.position else {}
                self.build(end - timedelta(days=number), USUAL | odd)
        self.finish(step.summed)


@pytest.fixture(scope="module")
def world(new_database: Any, make_settings: Any) -> World:
    database: AppDatabase = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_START_DATE="2024-03-30")
    first, again = sql_of_models(settings, "reporting/usage_anomalies.sql")
    return World({"first": first["usage_anomalies"], "again": again["usage_anomalies"]})


def judged(world: World) -> dict[tuple[date, Key, str], tuple[str, float, float, float]]:
    """Kind, quantity, expected and score by day, subject and rule, after docs/anomalies.md."""
    landed, newest = set(world.held), max(world.held)
    amounts = world.amounts()
    platform = amounts["platform", None, None, METRIC]
    found = {}
    for each in (d for d in landed if (newest - d).days < 91):
        days = [each - timedelta(n) for n in range(1, 30)]
        weeks = [each - timedelta(7 * n) for n in range(1, 8)]
        cells = [world.held[d] for d in days if d in landed]
        users = sum(len({user for user, *_ in cell}) for cell in cells)
        if not users:
            continue
        least = 5 * float(sum(platform[d] for d in days if d in landed)) / users
        for key, of_subject in amounts.items():
            value = {d: float(of_subject.get(d, 0)) for d in (each, *days, *weeks)}
            now = value[each]
            many = [d for d in weeks if d in landed and value[d] >= least and value[d] > 0]
            if not ((now > 0 and now >= least) or len(many) >= 4):
                continue
            mean = sum(value[d] for d in days) / 29
            used = [d for d in (*days, *weeks) if d in of_subject and d in landed]
            was_there = any((each - d).days >= 23 for d in used)
            if landed >= {*days} and was_there and mean > 0 and now > 3 * mean and now >= least:
                found[each, key, "mean_29"] = ("spike", now, mean, now / mean)
            middle = statistics.median(value[d] for d in weeks)
            if landed >= {*weeks} and middle > 0:
                distance = statistics.median(abs(value[d] - middle) for d in weeks)
                score = (now - middle) / max(1.4826 * distance, 0.1 * middle)
                spike = score > 6 and now >= 2 * middle and now >= least
                drop = score < -6 and 2 * now <= middle and middle >= least
                if spike or drop:
                    kind = "spike" if spike else "drop"
                    found[each, key, "weekday_median"] = (kind, now, middle, score)
    return found


@profile(max_examples=25, deadline=None, phases=[Phase.generate])
@given(st.lists(STEPS, min_size=2, max_size=7))
def test_days_are_judged_by_what_was_before_them(world: World, steps: list[Step]) -> None:
    world.begin()
    for number in range(100):
        world.build(BEGIN - timedelta(days=number), USUAL)
    for step in steps:
        world.take_step(step)
        if step.summed:
            assert world.as_left() == world.from_nothing()
            wanted = judged(world)
            found = {}
            for row in world.rows():
                user, org = (None if row[c] is None else str(row[c]) for c in ("user_id", "org_id"))
                key = (row["scope"], user, org, row["metric_type"])
                found[row["usage_date"], key, row["rule"]] = (
                    row["kind"],
                    *(float(row[name]) for name in ("quantity", "expected", "score")),
                )
            assert found.keys() == wanted.keys()
            for at, (kind, *numbers) in wanted.items():
                assert found[at][0] == kind
                assert all(
                    math.isclose(a, b, rel_tol=1e-8, abs_tol=1e-8)
                    for a, b in zip(found[at][1:], numbers, strict=True)
                )


def test_organisations_are_told_of_odd_days_that_are_new() -> None:
    """Published are the 1st and, since the last look, again the 1st, and the 2nd and 3rd."""
    acme, other = UUID(int=1), UUID(int=2)
    since = datetime(2024, 5, 2, tzinfo=UTC)
    with duckdb.connect() as db:
        db.execute(f"""
            create table usage_daily as
            select date '2024-05-01' as usage_date, timestamptz '2024-05-01 01:00:00Z' as created_at
            union all select date '2024-05-01', timestamptz '2024-05-04 01:00:00Z'
            union all select date '2024-05-02', timestamptz '2024-05-04 01:00:00Z'
            union all select date '2024-05-03', timestamptz '2024-05-04 01:00:00Z';
            create table usage_anomalies as
            select usage_date, scope, null::uuid as user_id, org_id::uuid as org_id,
                'api_call' as metric_type, 'mean_29' as rule, 'spike' as kind,
                9::decimal(38, 9) as quantity, 2.5::decimal(38, 9) as expected,
                3.6::decimal(38, 9) as score
            from (values
                (date '2024-05-01', 'org', '{acme}'), (date '2024-05-02', 'org', '{acme}'),
                (date '2024-05-03', 'org', '{acme}'), (date '2024-05-03', 'org', '{other}'),
                (date '2024-05-03', 'platform', null)) as odd (usage_date, scope, org_id)
        """)
        told = anomalies.messages(db, {acme}, since, "snap")
        again = anomalies.messages(db, {acme}, since, "another")
        assert anomalies.messages(db, {acme}, datetime(2024, 5, 5, tzinfo=UTC), "snap") == []
    assert [(m.org_id, m.payload["usage_date"]) for m in told] == [
        (acme, "2024-05-02"),
        (acme, "2024-05-03"),
    ]
    assert told[0].payload["quantity"] == "9" and told[0].payload["expected"] == "2.5"
    assert [m.key for m in told] == [m.key for m in again]  # so that a fact is told once
