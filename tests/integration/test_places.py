"""What is published, tampered with in one place at a time: found, named, and repaired."""

from __future__ import annotations

import shutil
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, roll_up
from typer.testing import CliRunner

from usage_pipeline.app_db.sample import load_sample
from usage_pipeline.audit.places import LINES_A_TABLE, PLACES, Unlike
from usage_pipeline.cli.main import app
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import published
from usage_pipeline.serving.tables import SERVED_TABLES
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

METERS = """
meters:
  - {key: api_call, event_type: api_call, aggregation: sum, value: quantity, unit: calls,
     dimensions: {path: $.path}}
  - {key: tokens, event_type: ai_tokens_used, aggregation: sum, value: quantity, unit: tokens}
  - {key: most_tokens, event_type: ai_tokens_used, aggregation: max, value: quantity}
"""
# One more in the last digit of one column of each table.
DIGIT = {
    **dict.fromkeys((table.name for table in SERVED_TABLES), "total_quantity"),
    "usage_limits_monthly": "used_quantity",
    "platform_metrics_daily": "stickiness",
    "platform_metrics_monthly": "total_users",
    "subscriptions_by_plan_daily": "active_subscriptions",
    "user_retention_monthly": "cohort_users",
    "invalid_usage_events": "reason",
    "usage_restatements": "new_quantity",
    "usage_reconciliation": "landed_sum",
    "calendar": "ends_at",
    "usage_forecast_models": "level",
    "usage_forecast_accuracy": "mase",
    "usage_anomalies": "quantity",
    "snapshot": "run_id",
    "usage_snapshots": "run_id",
}


def raised(column: str) -> str:
    """The column with its last digit, or letter, another one."""
    if column in ("reason", "run_id"):
        return f"{column} || 'x'"
    if column == "ends_at":
        return f"{column} + interval '1 second'"
    whole = column.endswith(("users", "subscriptions"))
    return f"coalesce({column}, 0) + {1 if whole else '0.000000001'}"


class World:
    """Days enough for forecasts, with an invalid event, an odd day and a restatement."""

    def __init__(self, source: AppDatabase, settings: Settings) -> None:
        self.source, self.settings = source, settings
        today = settings.today()
        load_sample(
            source.url, events=900, days=30, users=40, seed=1, end=today, zone=settings.zone
        )
        source.execute(
            "update usage_events set quantity = 'NaN' where id = (select min(id::text)::uuid"
            " from usage_events where event_type = 'api_call')"
        )
        source.execute(  # odd, on the only day with 29 before it
            "update usage_events set quantity = 1000 where created_at = (select max(created_at)"
            " from usage_events where event_type = 'api_call')"
        )
        self.days = DayRange(today - timedelta(days=30), today)
        roll_up(settings, self.days)
        shutil.copy(settings.snapshot_path, self.older)
        source.execute("update usage_events set quantity = quantity + 1")
        roll_up(settings, self.days)
        self.published = assert_published_alike(settings, source.url)
        assert all(self.published.values()), "every table has rows to tamper with"

    @property
    def older(self) -> Path:
        return self.settings.home / "older.duckdb"

    def compare(self) -> dict[tuple[str, str], Unlike]:
        found = Rollup(self.settings).compare_places(self.days)
        return {(unlike.place, unlike.table): unlike for unlike in found}

    def repair(self) -> dict[tuple[str, str], Unlike]:
        found = Rollup(self.settings).repair_places(self.days)
        return {(unlike.place, unlike.table): unlike for unlike in found}

    def tamper(self, place: str, table: str) -> None:
        column = DIGIT[table]
        value = raised(column)
        if place == "postgres":
            self.source.execute(
                f"update usage.{table} set {column} = {value}"
                f" where ctid = (select min(ctid) from usage.{table})"
            )
        elif place == "snapshot":
            with duckdb.connect(str(self.settings.snapshot_path)) as db:
                db.execute(
                    f"update {table} set {column} = {value}"
                    f" where rowid = (select min(rowid) from {table})"
                )
        else:
            path = max(self.files(table))
            with duckdb.connect() as db:
                rows = f"read_parquet('{path}', hive_partitioning = false)"
                ((kind,),) = db.execute(f"select typeof({column}) from {rows} limit 1").fetchall()
                db.execute(
                    f"copy (select * replace (cast(if(row_number() over () = 1, {value}, {column})"
                    f" as {kind}) as {column}) from {rows}) to '{path}.new' (format parquet)"
                )
            path.with_name(path.name + ".new").replace(path)

    def files(self, table: str) -> list[Path]:
        return list((self.settings.serving_dir / "parquet" / table).rglob("*.parquet"))

    def assert_whole(self) -> None:
        assert self.compare() == {}
        assert assert_published_alike(self.settings, self.source.url) == self.published


@pytest.fixture(scope="module")
def shared(new_york: Any) -> World:
    return World(*new_york(METERS))


@pytest.fixture
def world(shared: World, copy_of: Any) -> World:
    """For the test to change."""
    world = copy(shared)
    world.source, world.settings = copy_of(shared.source, shared.settings)
    return world


@pytest.mark.parametrize("place", PLACES)
def test_one_digit_in_each_table_is_found_named_and_repaired(world: World, place: str) -> None:
    world.assert_whole()
    for table in DIGIT:
        world.tamper(place, table)

    found = world.compare()

    # usage_aggregations, a view, is none of them.
    assert set(found) == {(place, table) for table in DIGIT}
    for (_, table), unlike in found.items():
        (line,) = unlike.lines
        assert unlike.rows == 1
        assert line.startswith(f"{place} {table} ")
        assert f": {DIGIT[table]} is " in line
    assert set(world.repair()) == set(found)
    world.assert_whole()


@pytest.mark.parametrize("harm", ["an older file", "no ledger", "no table"])
def test_nothing_is_taken_over_from_what_readers_have(world: World, harm: str) -> None:
    """Neither ledger nor identity: the pipeline's own state has them."""
    path = world.settings.snapshot_path
    if harm == "an older file":
        shutil.copy(world.older, path)
    else:
        with duckdb.connect(str(path)) as db:
            change = "delete from" if harm == "no ledger" else "drop table"
            db.execute(f"{change} usage_restatements")
    found = world.compare()
    assert ("snapshot", "usage_restatements") in found
    assert {place for place, _ in found} == {"snapshot"}
    world.repair()
    world.assert_whole()
    with published.reading(world.settings) as db:
        assert db.execute("select count(*) from usage_restatements").fetchall() == [
            (len(world.published["usage_restatements"]),)
        ]


@pytest.mark.parametrize("period", ["daily", "monthly"])
def test_both_periods_of_usage_aggregations_are_compared(world: World, period: str) -> None:
    ((query,),) = world.source.query("select pg_get_viewdef('usage.usage_aggregations'::regclass)")
    columns = ", ".join(world.published["usage_aggregations"][0])
    raised = f"case period_type when '{period}' then total_quantity + 0.01 else total_quantity end"
    raised = columns.replace("total_quantity", f"({raised})::numeric(38, 9) as total_quantity")
    world.source.execute(
        "drop view usage.usage_aggregations;"
        f"create view usage.usage_aggregations as select {raised} from ({query.rstrip(';')}) as v"
    )
    found = world.compare()
    assert set(found) == {("postgres", "usage_aggregations")}
    rows = [r for r in world.published["usage_aggregations"] if r["period_type"] == period]
    assert found["postgres", "usage_aggregations"].rows == len(rows)
    world.repair()
    world.assert_whole()


def test_rows_that_are_missing_or_too_many_are_found_and_repaired(world: World) -> None:
    world.source.execute(
        "delete from usage.usage_daily where metric_type = 'tokens';"
        "insert into usage.platform_usage_daily select usage_date, 'made_up', 1, 1, 1, 1"
        " from usage.platform_usage_daily limit 1"
    )
    with duckdb.connect(str(world.settings.snapshot_path)) as db:
        db.execute("insert into org_usage_daily from org_usage_daily limit 1")

    found = world.compare()

    (twice,) = found["snapshot", "org_usage_daily"].lines
    assert "more than once" in twice
    (made_up,) = found["postgres", "platform_usage_daily"].lines
    assert "metric_type=made_up: the row is not in the warehouse" in made_up
    missing = found["postgres", "usage_daily"]
    assert missing.rows > LINES_A_TABLE == len(missing.lines)
    assert all(line.endswith(": the row is missing") for line in missing.lines)
    world.repair()
    world.assert_whole()


def test_a_place_that_lost_a_table_is_made_whole(world: World) -> None:
    world.source.execute(
        "drop table usage.usage_monthly cascade; alter table usage.usage_daily add column note text"
    )
    shutil.rmtree(world.settings.serving_dir / "parquet" / "usage_daily")
    for path in world.files("org_usage_monthly"):
        path.write_bytes(b"PAR1 no more PAR1")
    (path,) = world.files("usage_summary")
    shutil.copy(path, path.with_name("copy.parquet"))

    found = world.compare()

    assert {key: unlike.unusable for key, unlike in found.items()} == {
        ("parquet", "org_usage_monthly"): True,
        ("parquet", "usage_daily"): True,
        ("parquet", "usage_summary"): False,
        ("postgres", "usage_daily"): True,
        ("postgres", "usage_monthly"): True,
    }
    # and the view that went with it is there again, as assert_whole sees
    world.repair()
    world.assert_whole()


def test_days_outside_the_range_are_not_read(world: World) -> None:
    world.source.execute(
        "update usage.usage_daily set event_count = 99 where usage_date = %s", (world.days.start,)
    )
    later = DayRange(world.days.start + timedelta(days=1), world.days.end)
    assert Rollup(world.settings).compare_places(later) == []
    assert set(world.compare()) == {("postgres", "usage_daily")}


def test_a_place_that_carries_another_state_is_repaired_beyond_the_range(world: World) -> None:
    world.source.execute(
        "update usage.snapshot set snapshot_id = 'older';"
        "update usage.usage_daily set event_count = 99 where usage_date = %s",
        (world.days.start,),
    )
    last = DayRange(world.days.end - timedelta(days=1), world.days.end)
    assert [u.table for u in Rollup(world.settings).repair_places(last)] == ["snapshot"]
    world.assert_whole()


def test_what_all_places_agree_on_is_not_repaired(world: World) -> None:
    """It was published; only a rollup changes it, and records that."""
    with duckdb.connect(str(world.settings.warehouse_path)) as db:
        db.execute(f"attach '{world.settings.snapshot_path}' as published (read_only)")
        db.execute("update platform_usage_daily set active_orgs = active_orgs + 1")
    with pytest.raises(UsagePipelineError, match="agree on platform_usage_daily"):
        world.repair()
    roll_up(world.settings, world.days)
    assert world.compare() == {}


def test_no_repair_from_a_warehouse_that_is_not_what_is_published(world: World) -> None:
    settings = world.settings
    with duckdb.connect(str(settings.warehouse_path)) as db:
        db.execute("update usage_event_partials_daily set sum_quantity = sum_quantity + 1")
    with pytest.raises(UsagePipelineError, match="not what is landed"):
        world.repair()
    world.tamper("postgres", "usage_monthly")
    settings.warehouse_path.unlink()
    with pytest.raises(UsagePipelineError, match="waiting are"):
        world.repair()
    (unlike,) = world.compare().values()
    assert "in what was published" in unlike.lines[0]
    roll_up(settings, world.days)
    world.repair()
    world.assert_whole()


def test_the_command_lists_repairs_and_compares_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_HOME", str(world.settings.home))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", world.source.url)
    monkeypatch.setenv("USAGE_METERS_FILE", str(world.settings.meters_file))
    monkeypatch.setenv("USAGE_TIMEZONE", world.settings.timezone)
    command = ["reconcile", "--start", str(world.days.start), "--end", str(world.days.end)]
    run = CliRunner().invoke
    assert run(app, command).exit_code == 0
    world.tamper("postgres", "usage_daily")

    bad = run(app, command)
    assert bad.exit_code == 1
    assert "postgres usage_daily usage_date=" in bad.output
    assert "--repair" in bad.output
    repaired = run(app, [*command, "--repair"])
    assert (repaired.exit_code, "Repaired 1 table(s)" in repaired.output) == (0, True)
    assert run(app, command).exit_code == 0

    with writer.exclusive(world.settings, "building daily models"):
        during = run(app, command)
    assert during.exit_code == 1
    assert "building daily models" in str(during.exception)


def test_a_table_without_rows_can_be_read_from_parquet(
    new_database: Any, make_settings: Any
) -> None:
    source = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    yesterday = settings.today() - timedelta(days=1)
    roll_up(settings, DayRange(yesterday, settings.today()))
    names = [path.name for path in (settings.serving_dir / "parquet").iterdir()]
    assert {*names} - {"_snapshot.json"} == {"snapshot", *(t.name for t in SERVED_TABLES)}
    with duckdb.connect() as db:
        for table in SERVED_TABLES:
            glob = f"{settings.serving_dir}/parquet/{table.name}/**/*.parquet"
            columns = db.execute(f"describe from read_parquet('{glob}')").fetchall()
            with duckdb.connect(str(settings.snapshot_path), read_only=True) as published:
                wanted = published.execute(f"describe {table.name}").fetchall()
            hive = {"month"} if table.dated else set()
            assert {c[0] for c in columns} == {c[0] for c in wanted} | hive
        ((snapshot_id,),) = db.execute(
            f"select snapshot_id from '{settings.serving_dir}/parquet/snapshot/*.parquet'"
        ).fetchall()
    assert source.query("select snapshot_id from usage.snapshot") == [(snapshot_id,)]
    noon = settings.day_start(yesterday)
    user = "00000ada-0000-4000-8000-000000000000"
    source.insert("usage_events", [(user, user, None, "api_call", None, 1, noon)])
    roll_up(settings, DayRange(yesterday, settings.today()))
    paths = list((settings.serving_dir / "parquet" / "usage_daily").rglob("*.parquet"))
    assert [path.name for path in paths] == ["data.parquet"]
