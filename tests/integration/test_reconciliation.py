"""Reconciliation over a real rollup whose source, landing or published tables are tampered with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, build, roll_up, snapshot_query
from typer.testing import CliRunner

from usage_pipeline.audit.gate import ROLLUP_EQUALS_LANDING, blocking_failures
from usage_pipeline.audit.reconciliation import Line
from usage_pipeline.cli.main import app
from usage_pipeline.days import DayRange
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

ADA, BOB = (str(UUID(int=n << 96)) for n in (0xADA, 0xB0B))
METERS = """
meters:
  - {key: api_call, event_type: api_call, aggregation: sum, value: quantity, unit: calls}
  - {key: calls_made, event_type: api_call, aggregation: count, unit: calls}
  - {key: slowest, event_type: api_call, aggregation: max, value: $.ms, unit: ms}
"""


class World:
    """Three days up to yesterday; the middle one has two events of each user."""

    def __init__(self, source: AppDatabase, settings: Settings) -> None:
        self.source, self.settings = source, settings
        today = settings.today()
        self.days = DayRange(today - timedelta(days=3), today)
        self.day = today - timedelta(days=2)
        noon = settings.day_start(self.day) + timedelta(hours=12)
        self.rows = [
            (str(UUID(int=number)), user, None, "api_call", f'{{"ms": {ms}}}', quantity, noon)
            for number, user, ms, quantity in (
                (1, ADA, 10, "1.5"),
                (2, ADA, 30, "2"),
                (3, BOB, 20, "4"),
                (4, BOB, 5, "-1"),
            )
        ]
        self.reset()
        roll_up(settings, self.days)

    def reset(self) -> None:
        self.source.execute("truncate usage_events")
        self.source.insert("usage_events", self.rows)

    def reconcile(self) -> dict[str | None, Line]:
        """The middle day's lines by metric; the other days have no events and no lines."""
        lines = Rollup(self.settings).reconcile(self.days)
        assert {line.usage_date for line in lines} == {self.day}
        return {line.metric_type: line for line in lines}


@pytest.fixture(scope="module")
def shared(new_york: Any) -> World:
    return World(*new_york(METERS))


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    yield shared
    shared.reset()


def different(lines: dict[str | None, Line]) -> dict[str | None, tuple[str, ...]]:
    return {metric: line.users for metric, line in lines.items() if line.matches is False}


def test_a_rollup_proves_its_days(world: World) -> None:
    assert world.reconcile() == {
        metric: Line(world.day, metric, 4, 4, 4, total, total, total, matches=True)
        for metric, total in (
            ("api_call", Decimal("6.5")),
            ("calls_made", Decimal(4)),
            ("slowest", Decimal(50)),  # 30 of Ada, 20 of Bob
        )
    }
    noted = snapshot_query(
        world.settings,
        "select usage_date, metric_type, source_events, landed_events, published_events,"
        " source_sum, landed_sum, published_sum, matches from usage_reconciliation order by all",
    )
    assert noted == [
        (world.day, "api_call", 4, 4, 4, *[Decimal("6.5")] * 3, True),
        (world.day, "calls_made", 4, 4, 4, *[Decimal(4)] * 3, True),
        # not asked for at the source: unknown is not true
        (world.day, "slowest", None, 4, 4, None, Decimal(50), Decimal(50), None),
    ]
    assert_published_alike(world.settings, world.source.url)


def test_a_late_event_is_found_in_the_source(world: World) -> None:
    late = (str(UUID(int=9)), ADA, None, "api_call", '{"ms": 1}', "0.000000001", world.rows[0][-1])
    world.source.insert("usage_events", [late])
    lines = world.reconcile()
    assert different(lines) == {"api_call": (ADA,), "calls_made": (ADA,), "slowest": (ADA,)}
    assert (lines["api_call"].source_events, lines["api_call"].landed_events) == (5, 4)
    assert lines["api_call"].source_sum == Decimal("6.500000001")


def test_a_swap_between_two_users_is_found_and_located(world: World) -> None:
    """Counts, sums and times are as before; only whose events they are has changed."""
    world.source.execute(
        "update usage_events set user_id = case user_id when %s then %s else %s end::uuid"
        " where quantity in (2, 4)",
        (ADA, BOB, ADA),
    )
    lines = world.reconcile()
    line = lines["api_call"]
    assert (line.source_events, line.source_sum) == (line.landed_events, line.landed_sum)
    assert different(lines)["api_call"] == tuple(sorted((ADA, BOB)))


def test_contents_that_no_number_shows_are_compared(world: World) -> None:
    world.source.execute(
        'update usage_events set event_data = \'{"ms": 10, "note": 1}\' where quantity = 1.5'
    )
    assert different(world.reconcile()) == {
        "api_call": (ADA,),
        "calls_made": (ADA,),
        "slowest": (ADA,),
    }


def test_events_that_no_meter_counts_are_compared(world: World) -> None:
    event = (str(UUID(int=8)), BOB, None, "storage_used", None, "7", world.rows[0][-1])
    world.source.insert("usage_events", [event])
    assert different(world.reconcile()) == {None: (BOB,)}


def test_tampered_landing_and_tampered_published_numbers_are_found(world: World) -> None:
    path = world.settings.events_dir / f"usage_date={world.day}" / "part-1.parquet"
    landed = path.read_bytes()
    with duckdb.connect() as db:
        db.execute(
            f"copy (select * replace (quantity + (user_id = '{ADA}')::int as quantity)"
            f" from read_parquet('{path}', hive_partitioning = false))"
            f" to '{path}.new' (format parquet)"
        )
    path.with_name(path.name + ".new").replace(path)
    line = world.reconcile()["api_call"]
    assert (line.source_sum, line.landed_sum, line.published_sum) == (
        Decimal("6.5"),
        Decimal("8.5"),
        Decimal("6.5"),
    )
    path.write_bytes(landed)

    published = world.settings.snapshot_path.read_bytes()
    with duckdb.connect(str(world.settings.snapshot_path)) as db:
        db.execute(f"update usage_daily set total_quantity = 5 where user_id = '{BOB}'")
    lines = world.reconcile()
    assert different(lines) == dict.fromkeys(("api_call", "calls_made", "slowest"), (BOB,))
    world.settings.snapshot_path.write_bytes(published)
    assert different(world.reconcile()) == {}


def test_a_rollup_unlike_its_landing_is_not_published(world: World) -> None:
    before = world.settings.snapshot_path.stat().st_ino
    rollup = build(world.settings, world.days)
    with duckdb.connect(str(world.settings.warehouse_path)) as db:
        # The same sum, for other users: only the cells tell.
        db.execute(
            "update usage_event_partials_daily"
            f" set user_id = if(user_id = '{ADA}', '{BOB}', '{ADA}')::uuid"
            " where event_type = 'api_call'"
        )
    failed = {result.name: result for result in blocking_failures(rollup.audit())}
    assert failed[ROLLUP_EQUALS_LANDING].message == f"{world.day} api_call"
    with duckdb.connect(str(world.settings.warehouse_path)) as db:
        noted = db.execute("select metric_type, matches from usage_reconciliation order by 1")
        assert noted.fetchall() == [("api_call", False), ("calls_made", True), ("slowest", None)]
    assert world.settings.snapshot_path.stat().st_ino == before
    roll_up(world.settings, world.days)
    assert different(world.reconcile()) == {}


def test_the_command_lists_each_difference_and_what_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_HOME", str(world.settings.home))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", world.source.url)
    monkeypatch.setenv("USAGE_METERS_FILE", str(world.settings.meters_file))
    monkeypatch.setenv("USAGE_TIMEZONE", world.settings.timezone)
    command = ["reconcile", "--start", str(world.days.start), "--end", str(world.days.end)]
    good = CliRunner().invoke(app, command)
    assert (good.exit_code, "3 daily totals of 12 events are equal" in good.output) == (0, True)

    world.source.execute("delete from usage_events where quantity = 4")
    bad = CliRunner().invoke(app, command)
    assert bad.exit_code == 1
    assert "3 of 3 daily totals differ" in bad.output
    assert (
        f"{world.day} api_call: source 3 events, 2.5; landed 4 events, 6.5; "
        f"published 4 events, 6.5; users {BOB}\n"
    ) in bad.output
    following = world.day + timedelta(days=1)
    assert f"usage-pipeline rollup --start {world.day} --end {following}" in bad.output
