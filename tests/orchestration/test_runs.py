"""One real rollup through Dagster's jobs, recorded in Postgres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from support import AppDatabase, days, snapshot_query

from usage_pipeline.definitions import build_defs
from usage_pipeline.orchestration.checks import GATE, GATE_ASSET
from usage_pipeline.orchestration.jobs import MONTHLY, NIGHTLY
from usage_pipeline.orchestration.launch import dagster_instance, run_rollup
from usage_pipeline.settings import load_settings


def test_a_rollup_is_recorded_as_two_runs_with_a_materialisation_per_partition(
    new_database: Any, short_tmp: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source: AppDatabase = new_database()
    source.insert(
        "usage_events",
        [
            (str(UUID(int=n)), str(UUID(int=7)), None, "api_call", None, n, f"{day}T12:00Z")
            for n, day in ((1, "2024-02-29"), (2, "2024-03-01"))
        ],
    )
    home = short_tmp()
    monkeypatch.chdir(home)
    monkeypatch.setenv("USAGE_HOME", str(home / "home"))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", source.url)
    monkeypatch.setenv("DAGSTER_PG_URL", new_database(schema=False).url)
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
        assert metadata["dagster/row_count"].value == 2
        assert metadata["days"].value == 3

        gate = dg.AssetCheckKey(GATE_ASSET, GATE)
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([gate])
        assert latest[gate].status.value == "SUCCEEDED"
        for name in ("snapshot", "parquet", "postgres"):
            key = dg.AssetKey(["publishing", name])
            assert instance.get_latest_materialization_event(key) is not None

    assert snapshot_query(settings, "select run_id from snapshot") == [(monthly,)]
    assert snapshot_query(
        settings, "select month, total_quantity from platform_usage_monthly order by 1"
    ) == [(range_.start.replace(day=1), 1), (range_.end.replace(day=1), 2)]
