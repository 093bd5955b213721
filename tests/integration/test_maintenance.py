"""Maintenance: what goes, what has to stay, and that a second time finds nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from support import (
    AppDatabase,
    assert_published_alike,
    day,
    days,
    numbers_only,
    roll_up,
)

from usage_pipeline.cli.options import check_range
from usage_pipeline.definitions import build_defs
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.landed_days import partition
from usage_pipeline.landing.stale_days import changed_days, days_to_repair
from usage_pipeline.operations.old_files import Removed, remove_landed_days, remove_old_files
from usage_pipeline.orchestration.internals.old_runs import forget_old_runs
from usage_pipeline.orchestration.jobs import NIGHTLY
from usage_pipeline.orchestration.launch import dagster_instance, run_rollup
from usage_pipeline.orchestration.maintenance import MAINTENANCE
from usage_pipeline.orchestration.state import asset_states
from usage_pipeline.serving.exports import export_user_events
from usage_pipeline.settings import Settings, load_settings

TWO_DAYS_AGO = time.time() - 2 * 86_400


# --- files ---------------------------------------------------------------------------------


def written(path: Path, at: float | None = None) -> Path:
    """A file of three bytes, written at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("abc")
    if at:
        for each in (path, path.parent):
            os.utime(each, (at, at))
    return path


def test_logs_and_sql_older_than_asked_for_go(make_settings: Any) -> None:
    settings: Settings = make_settings()
    before = datetime.now(UTC) - timedelta(days=1)
    logs, dbt = settings.dagster_home / "storage", settings.dbt_target_dir
    written(logs / "old" / "a.out", TWO_DAYS_AGO)
    new_log = written(logs / "new" / "a.out")
    written(dbt / "run" / "models" / "renamed.sql", TWO_DAYS_AGO)
    kept = {written(dbt / "run" / "models" / "model.sql")}
    kept.add(written(dbt / "manifest.json", TWO_DAYS_AGO))
    assert remove_old_files(settings, before) == Removed(count=2, bytes=6)
    assert list(logs.rglob("*.out")) == [new_log]
    assert not (logs / "old").exists()
    assert {path for path in dbt.rglob("*") if path.is_file()} == kept
    assert remove_old_files(settings, before) == Removed()


# --- landing -------------------------------------------------------------------------------


@pytest.fixture
def source(new_database: Any) -> AppDatabase:
    """One event on each of four days around a month's end: 1, 2, 4 and 8."""
    database: AppDatabase = new_database()
    database.insert(
        "usage_events",
        [
            (str(UUID(int=n)), str(UUID(int=7)), None, "api_call", None, n, f"{on}T12:00Z")
            for n, on in (
                (1, "2024-03-29"),
                (2, "2024-03-30"),
                (4, "2024-03-31"),
                (8, "2024-04-01"),
            )
        ],
    )
    return database


def partitions(settings: Settings) -> list[str]:
    return sorted(path.name[-10:] for path in settings.events_dir.glob("usage_date=*"))


def test_only_days_that_no_total_depends_on_are_removed_from_landing(
    source: AppDatabase, make_settings: Any, tmp_path: Path
) -> None:
    """The start moves to 03-31, so March is 4 and April 8; 1 and 2 are landed for nothing."""
    everything: Settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    roll_up(everything, days("2024-03-29", "2024-04-02"))
    variables = {
        "USAGE_APP_DATABASE_URL": source.url,
        "USAGE_HOME": everything.home,
        "USAGE_START_DATE": "2024-03-31",
    }
    moved = make_settings(**variables)
    short = make_settings(**variables, USAGE_LANDING_RETENTION_DAYS=30)
    long = make_settings(**variables, USAGE_LANDING_RETENTION_DAYS=36_500)

    # 03-29 and 03-30 are published until the next rollup
    assert remove_landed_days(short) == Removed(kept=4)
    roll_up(moved, day("2024-04-01"))
    published = assert_published_alike(moved, source.url)
    assert totals(published, "usage_daily", "usage_date") == [("2024-03-31", 4), ("2024-04-01", 8)]
    assert totals(published, "platform_usage_monthly", "month") == [
        ("2024-03-01", 4),
        ("2024-04-01", 8),
    ]
    assert [
        (str(row["usage_date"]), row["old_quantity"], row["new_quantity"], row["cause"])
        for row in published["usage_restatements"]
    ] == [("2024-03-29", 1, 0, "rebuild"), ("2024-03-30", 2, 0, "rebuild")]

    exported = export_user_events(moved, date(2024, 3, 1), UUID(int=7)).read_text()
    assert [line[:10] for line in exported.splitlines()[1:]] == ["2024-03-31"]

    assert remove_landed_days(moved) == Removed()  # no age is set
    assert remove_landed_days(long) == Removed()
    assert len(partitions(moved)) == 4
    size = sum(
        file.stat().st_size
        for on in ("2024-03-29", "2024-03-30")
        for file in partition(moved.events_dir, date.fromisoformat(on)).iterdir()
    )
    assert remove_landed_days(short) == Removed(count=2, bytes=size, kept=2)
    assert partitions(moved) == ["2024-03-31", "2024-04-01"]
    assert remove_landed_days(short) == Removed(kept=2)

    # Built again from landing, what is published stays as it is. Other meters throw the warehouse
    # away; the new one counts events that there are none of.
    meters = tmp_path / "meters.yml"
    meters.write_text(
        moved.meters_file.read_text()
        + "  - {key: made, event_type: record_created, aggregation: count, description: Made}\n"
    )
    roll_up(make_settings(**variables, USAGE_METERS_FILE=meters), day("2024-04-01"))
    again = assert_published_alike(moved, source.url)
    assert numbers_only(again) == numbers_only(published)
    assert again["usage_restatements"] == published["usage_restatements"]

    # Nobody asks for the days that went.
    source.execute("update usage_events set quantity = 16 where created_at < '2024-03-30'")
    assert changed_days(moved, days("2024-03-01", "2024-04-02")) == {}
    assert days_to_repair(moved, needs_event_data=True) == []
    with pytest.raises(UsagePipelineError, match="2024-03-29 is before the first partition"):
        check_range(moved, day("2024-03-29"))


def totals(tables: Any, name: str, column: str) -> list[tuple[str, Any]]:
    return sorted((str(row[column]), row["total_quantity"]) for row in tables[name])


# --- Dagster -------------------------------------------------------------------------------


@pytest.fixture
def instance(
    source: AppDatabase,
    new_database: Any,
    short_tmp: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dg.DagsterInstance]:
    home = short_tmp()
    monkeypatch.chdir(home)
    monkeypatch.setenv("USAGE_HOME", str(home / "home"))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", source.url)
    monkeypatch.setenv("USAGE_START_DATE", "2024-03-29")
    monkeypatch.setenv("DAGSTER_PG_URL", new_database(schema=False).url)
    monkeypatch.setenv("DAGSTER_HOME", "")  # set by the launch, restored here
    with dagster_instance(load_settings()) as opened:
        yield opened


def latest_materialisations(instance: dg.DagsterInstance, defs: dg.Definitions) -> Any:
    return {
        key: (
            instance.event_log_storage.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION
            ),
            instance.get_latest_materialization_event(key),
        )
        for key in defs.resolve_asset_graph().materializable_asset_keys
    }


def latest_checks(instance: dg.DagsterInstance, defs: dg.Definitions) -> Any:
    keys = list(defs.resolve_asset_graph().asset_check_keys)
    return instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)


def counted(defs: dg.Definitions, settings: Settings) -> list[tuple[str, ...]]:
    """What `status` says of the assets, without the age of the last run."""
    return [
        (key, last, done, failed) for key, last, _, done, failed in asset_states(defs, settings)
    ]


def test_superseded_runs_are_forgotten_and_what_status_says_is_not(
    instance: dg.DagsterInstance, source: AppDatabase
) -> None:
    """Three rollups: two days, the second of them again, and a third that fails to land its day.

    The first nightly run holds 03-29 still. The first monthly run is superseded whole.
    """
    settings = load_settings()
    defs = build_defs(settings)
    first, first_month = run_rollup(defs, settings, days("2024-03-29", "2024-03-31"))
    second, second_month = run_rollup(defs, settings, day("2024-03-30"))
    source.execute("alter table usage_events rename quantity to amount")
    nightly = defs.resolve_job_def(NIGHTLY)
    failing = nightly.execute_in_process(
        instance=instance, partition_key="2024-03-31", raise_on_error=False
    )
    assert not failing.success

    states = counted(defs, settings)
    assert ("landing/usage_events", "2024-03-30", "2", "1") in states
    materialised = latest_materialisations(instance, defs)
    checked = latest_checks(instance, defs)

    now = datetime.now(UTC)
    yesterday = forget_old_runs(instance, now - timedelta(days=1))
    assert (yesterday.removed, yesterday.kept, yesterday.events) == (0, 0, 0)
    assert len(instance.get_runs()) == 5

    forgotten = forget_old_runs(instance, now + timedelta(minutes=1))
    assert (forgotten.removed, forgotten.kept) == (1, 4)
    assert forgotten.events > 100
    runs = {run.run_id for run in instance.get_runs()}
    assert runs == {first, second, second_month, failing.run_id}
    assert instance.all_logs(first_month) == []
    kept = instance.all_logs(first, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert {entry.get_dagster_event().partition for entry in kept} == {"2024-03-29"}

    assert counted(defs, settings) == states
    assert latest_materialisations(instance, defs) == materialised
    assert latest_checks(instance, defs) == checked
    # Dagster keeps partition status in a cache; without it, it counts the events again.
    instance.wipe_asset_cached_status(list(materialised))
    assert counted(defs, settings) == states

    again = forget_old_runs(instance, now + timedelta(minutes=1))
    assert (again.removed, again.kept, again.events) == (0, 4, 0)


def test_the_job_runs_and_says_what_it_did(instance: dg.DagsterInstance) -> None:
    settings = load_settings()
    written(settings.dbt_target_dir / "run" / "renamed.sql", time.time() - 91 * 86_400)
    job = build_defs(settings).resolve_job_def(MAINTENANCE)
    result = job.execute_in_process(instance=instance)
    (output,) = [event for event in result.all_events if event.is_successful_output]
    figures = {name: value.value for name, value in output.step_output_data.metadata.items()}
    assert figures["files of logs and SQL removed"] == 1
    assert figures["bytes freed"] == 3
    assert figures["runs removed"] == figures["landed days removed"] == 0
