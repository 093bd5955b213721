"""One real rollup through Dagster's jobs, recorded in Postgres."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from support import AppDatabase, days, snapshot_query

from usage_pipeline.audit.notices import notices
from usage_pipeline.definitions import build_defs
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.orchestration.checks.audit import GATE
from usage_pipeline.orchestration.failures import expected_words
from usage_pipeline.orchestration.internals.storage import BulkEventLogStorage
from usage_pipeline.orchestration.jobs import MONTHLY, NIGHTLY
from usage_pipeline.orchestration.launch import dagster_instance, run_rollup
from usage_pipeline.orchestration.names import USAGE_DAILY
from usage_pipeline.orchestration.partitions import day_tags, month_range_tags
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import load_settings
from usage_pipeline.warehouse.transform import NodeResult

PERSON = "7f1c9d52-3b0e-4c55-9a07-1d2f6c8e4b90"


def test_a_rollup_is_recorded_as_two_runs_with_a_materialisation_per_partition(
    new_database: Any, short_tmp: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source: AppDatabase = new_database()
    source.execute("alter table usage_events alter event_type type text")
    source.insert(
        "usage_events",
        [
            (
                str(UUID(int=n)),
                PERSON,
                None,
                type_,
                '{"mail": "ada@example.com"}',
                n,
                f"{day}T12:00Z",
            )
            for n, type_, day in (
                (1, "api_call", "2024-02-29"),
                (2, "api_call", "2024-03-01"),
                (3, "unheard_of", "2024-03-01"),  # shown by invalid_usage_events
            )
        ],
    )
    home = short_tmp()
    monkeypatch.chdir(home)
    monkeypatch.setenv("USAGE_HOME", str(home / "home"))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", source.url)
    storage = new_database(schema=False)
    monkeypatch.setenv("DAGSTER_PG_URL", storage.url)
    monkeypatch.setenv("DAGSTER_HOME", "")  # set by the launch, restored here
    settings = load_settings()
    range_ = days("2024-02-28", "2024-03-02")  # its first day is empty

    nightly, monthly = run_rollup(build_defs(settings), settings, range_)

    with dagster_instance(settings) as instance:
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        runs = {run.run_id: run for run in instance.get_runs()}
        assert {nightly: NIGHTLY, monthly: MONTHLY} == {k: r.job_name for k, r in runs.items()}
        assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs.values())

        daily = {"2024-02-28", "2024-02-29", "2024-03-01"}
        for path in (("landing", "usage_events"), ("usage", "usage_daily")):
            assert instance.get_materialized_partitions(dg.AssetKey(path)) == daily
        months = {"2024-02-01", "2024-03-01"}
        assert (
            instance.get_materialized_partitions(dg.AssetKey(["usage", "usage_monthly"])) == months
        )

        event = instance.get_latest_materialization_event(dg.AssetKey(["landing", "usage_events"]))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert metadata["days"].value == 3
        assert_partitions_show_their_own(instance)

        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([GATE])
        assert latest[GATE].status.value == "SUCCEEDED"
        for name in ("snapshot", "parquet", "postgres"):
            key = dg.AssetKey(["publishing", name])
            assert instance.get_latest_materialization_event(key) is not None

        # Dagster's log shows rows, but tells nobody whose they are.
        for table in ("usage_daily", "invalid_usage_events"):
            event = instance.get_latest_materialization_event(dg.AssetKey(["usage", table]))
            assert event is not None
            assert event.asset_materialization is not None
            preview = str(event.asset_materialization.metadata["preview"].value)
            assert "| id 1 |" in preview
            assert PERSON[:4] not in preview
    for table in ("event_logs", "asset_keys", "asset_check_executions"):
        found = storage.query(
            f"select count(*), count(*) filter (where t::text like any (%s)) from {table} as t",
            ([f"%{PERSON}%", "%ada@example.com%"],),
        )
        assert found[0][0] > 0, table
        assert found[0][1] == 0, table

    assert snapshot_query(settings, "select run_id from snapshot") == [(monthly,)]
    assert snapshot_query(
        settings, "select month, total_quantity from platform_usage_monthly order by 1"
    ) == [(range_.start.replace(day=1), 1), (range_.end.replace(day=1), 2)]


def test_a_table_or_column_that_a_migration_adds_is_found(new_database: Any) -> None:
    database: AppDatabase = new_database(schema=False)
    storage = BulkEventLogStorage(database.url)
    assert storage.has_asset_key_col("last_run_id")
    assert not storage.has_table("dynasties")
    assert not storage.has_asset_key_col("dynasty")
    database.execute("create table dynasties (id int)")
    database.execute("alter table asset_keys add dynasty text")
    assert storage.has_table("dynasties")
    assert storage.has_asset_key_col("dynasty")


def metadata_of(instance: dg.DagsterInstance, *path: str) -> Mapping[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(path))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization.metadata


def assert_partitions_show_their_own(instance: dg.DagsterInstance) -> None:
    days = {"2024-02-28": 0, "2024-02-29": 1}
    assert rows_by_partition(instance, "landing", "usage_events") == {**days, "2024-03-01": 2}
    # one of the last day's two events is of no known type
    assert rows_by_partition(instance, "usage", "usage_daily") == {**days, "2024-03-01": 1}
    months = {"2024-02-01": 1, "2024-03-01": 1}
    assert rows_by_partition(instance, "usage", "usage_monthly") == months
    event = instance.get_latest_materialization_event(dg.AssetKey(["reporting", "usage_summary"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    # one user and the platform, over a week, a month and a year
    assert metadata["dagster/row_count"].value == 6
    assert "api_call" in str(metadata["preview"].value)
    for path, shown in (
        ("usage_events", "| id 1 | id 2 |  | api_call |"),
        ("calendar", "starts_at"),
    ):
        records = instance.fetch_materializations(dg.AssetKey(["landing", path]), limit=9).records
        previews = [
            r.asset_materialization.metadata["preview"].value
            for r in records
            if r.asset_materialization and "preview" in r.asset_materialization.metadata
        ]
        assert any(shown in str(preview) for preview in previews), previews


def rows_by_partition(instance: dg.DagsterInstance, *path: str) -> dict[str | None, Any]:
    """The row count that the UI shows of each partition."""
    found = instance.fetch_materializations(dg.AssetKey(path), limit=100).records
    materializations = [record.asset_materialization for record in reversed(found)]
    return {m.partition: m.metadata["dagster/row_count"].value for m in materializations if m}


def test_days_that_a_run_repairs_are_recorded_with_it(
    new_database: Any, short_tmp: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source: AppDatabase = new_database()
    source.insert(
        "usage_events",
        [
            (str(UUID(int=n)), PERSON, None, "api_call", None, 1, f"2024-02-{n:02}T12:00Z")
            for n in range(1, 6)
        ],
    )
    home = short_tmp()
    monkeypatch.chdir(home)
    monkeypatch.setenv("USAGE_HOME", str(home / "home"))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", source.url)
    monkeypatch.setenv("DAGSTER_PG_URL", new_database(schema=False).url)
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings = load_settings()
    settings.home.mkdir()
    Rollup(settings).pending.add(set(days("2024-02-01", "2024-02-05").days()))  # then it died

    run_rollup(build_defs(settings), settings, days("2024-02-05", "2024-02-06"))

    with dagster_instance(settings) as instance:
        expected = {f"2024-02-{n:02}": 1 for n in range(1, 6)}
        for path in (("landing", "usage_events"), ("usage", "usage_daily")):
            assert rows_by_partition(instance, *path) == expected
            assert instance.get_materialized_partitions(dg.AssetKey(path)) == expected.keys()

    # Two late ranges are one run, which is recorded with the days of both.
    source.insert(
        "usage_events",
        [
            (str(UUID(int=10 + n)), PERSON, None, "api_call", None, 1, f"2024-02-{n:02}T13:00Z")
            for n in (1, 4)
        ],
    )
    ranges = [days("2024-02-01", "2024-02-02"), days("2024-02-04", "2024-02-05")]
    with dagster_instance(settings) as instance:
        run = (
            build_defs(settings)
            .resolve_job_def(NIGHTLY)
            .execute_in_process(instance=instance, tags=day_tags(ranges))
        )
        expected |= {"2024-02-01": 2, "2024-02-04": 2}
        assert rows_by_partition(instance, "landing", "usage_events") == expected
        found = instance.fetch_materializations(USAGE_DAILY, limit=2).records
        assert {(r.run_id, r.partition_key) for r in found} == {
            (run.run_id, "2024-02-01"),
            (run.run_id, "2024-02-04"),
        }

        # A shut gate says what shut it, to the webhook and at the prompt alike.
        shut = NodeResult("test.usage_pipeline.nobody_did_this", "fail", 0.0, 1, "")
        monkeypatch.setattr(Rollup, "audit", lambda self: [shut])
        monthly = (
            build_defs(settings)
            .resolve_job_def(MONTHLY)
            .execute_in_process(
                instance=instance, tags=month_range_tags(ranges[0]), raise_on_error=False
            )
        )
        failed = [event for event in monthly.all_events if event.is_step_failure]
        assert [event.step_key for event in failed] == ["audit"]
        words = str(expected_words(failed[0]))
        assert words.startswith("Blocking checks failed: nobody_did_this. ")
        (gate,) = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [GATE]
        ).values()
        assert gate.status.value == "FAILED"


def test_limits_that_cannot_be_compared_fail_the_run_and_take_nothing_back(
    new_database: Any, short_tmp: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source: AppDatabase = new_database()
    event = (str(UUID(int=1)), PERSON, None, "api_call", None, 9, "2024-02-01T12:00Z")
    source.insert("usage_events", [event])
    source.execute(
        "insert into plan_limits values ('free', 'api_call', 10);"
        f" insert into users values ('{PERSON}', null, '2024-01-01', null);"
        # where the alerts are to go
        " create schema usage; create table usage.usage_alerts (somebody_elses text)"
    )
    home = short_tmp()
    monkeypatch.chdir(home)
    monkeypatch.setenv("USAGE_HOME", str(home / "home"))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", source.url)
    monkeypatch.setenv("DAGSTER_PG_URL", new_database(schema=False).url)
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings = load_settings()
    defs, day = build_defs(settings), days("2024-02-01", "2024-02-02")
    alerts = dg.AssetKey(["publishing", "usage_alerts"])
    check = dg.AssetCheckKey(alerts, "alerts_are_raised")

    with pytest.raises(UsagePipelineError, match="Published, but not compared with limits"):
        run_rollup(defs, settings, day)

    status = "select used_quantity, status from usage.usage_limit_status"
    assert source.query(status) == [(9, "warning")]
    assert [line.partition(":")[0] for line in notices(settings)] == ["alerts_are_raised"]
    with dagster_instance(settings) as instance:
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key
        assert latest([check])[check].status.value == "FAILED"

        source.execute("drop table usage.usage_alerts")
        job = defs.resolve_job_def(MONTHLY)
        job.execute_in_process(
            instance=instance, tags=month_range_tags(day), asset_selection=[alerts]
        )
        assert latest([check])[check].status.value == "SUCCEEDED"
        event_of = instance.get_latest_materialization_event(alerts)
        assert event_of is not None
        assert event_of.asset_materialization is not None
        metadata = event_of.asset_materialization.metadata
        assert (metadata["raised"].value, metadata["messages"].value) == (1, 0)
        assert "first look" in str(metadata["remark"].value)
        assert "| api_call | 80% | 1 |" in str(metadata["raised by threshold"].value)
        shown = metadata_of(instance, "reporting", "usage_limits_monthly")
        row = "| api_call |  0 | 1 (100.0%) | 0 (0.0%) | 0 |"  # below, from 80 %, exceeded, unknown
        assert row in str(shown["status"].value)
        shown = metadata_of(instance, "publishing", "usage_snapshots")
        ((snapshot,),) = snapshot_query(settings, "select snapshot_id from snapshot")
        assert f" | {snapshot} | " in str(shown["newest"].value)
        assert "id 1" in str(metadata["preview"].value)
        assert PERSON[:8] not in str(metadata)
    assert notices(settings) == []
