"""Runs whose process was killed: the next command ends them, and no others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from dagster._time import get_current_datetime

from usage_pipeline.infra.processes import process, this_process
from usage_pipeline.orchestration import launch
from usage_pipeline.orchestration.jobs import NIGHTLY
from usage_pipeline.orchestration.launch import _PROCESS_TAG, _bury_dead_runs
from usage_pipeline.orchestration.names import WAREHOUSE_POOL

STATUS = dg.DagsterRunStatus


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    owner: str | None,
    age: timedelta = timedelta(),
) -> str:
    run = dg.DagsterRun(
        NIGHTLY,
        run_id=str(uuid4()),
        status=status,
        tags={_PROCESS_TAG: owner} if owner else {},
    )
    instance.run_storage.add_historical_run(run, get_current_datetime() - age)
    return run.run_id


def test_runs_of_killed_processes_end_before_and_after_their_start(
    instance: dg.DagsterInstance,
) -> None:
    child = subprocess.Popen(["sleep", "60"])
    killed = process(child.pid)
    child.kill()
    child.wait()
    old = timedelta(hours=1)
    dead = {
        add_run(instance, status, killed)
        for status in (STATUS.NOT_STARTED, STATUS.STARTING, STATUS.STARTED, STATUS.CANCELING)
    } | {add_run(instance, STATUS.NOT_STARTED, None, old)}  # no daemon will ever launch it
    living = {
        add_run(instance, STATUS.NOT_STARTED, this_process(), old),
        add_run(instance, STATUS.STARTED, this_process(), old),
        add_run(instance, STATUS.NOT_STARTED, None),  # just being launched
    }
    _bury_dead_runs(instance)
    failed = {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[STATUS.FAILURE]))}
    assert failed == dead
    assert {run.run_id for run in instance.get_runs()} == dead | living


def test_a_daemon_that_was_killed_just_before_is_found_dead_while_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last heartbeat is recent, so its run, which has the pool, is not failed at first."""

    @dg.op(pool=WAREHOUSE_POOL)
    def build() -> None: ...

    @dg.job(name=NIGHTLY, executor_def=dg.in_process_executor)
    def nightly() -> None:
        build()

    monkeypatch.setattr(launch, "_LOOK_SECONDS", 0.2)
    told: list[str] = []

    def waiting(holder: str) -> None:  # the heartbeat grows old
        told.append(holder)
        monkeypatch.setattr(launch, "_DAEMON_SILENCE_SECONDS", -1)

    with dg.DagsterInstance.local_temp() as instance:
        instance.event_log_storage.set_concurrency_slots(WAREHOUSE_POOL, 1)
        dead = add_run(instance, STATUS.STARTED, None)
        instance.event_log_storage.claim_concurrency_slot(WAREHOUSE_POOL, dead, "build")
        now = get_current_datetime().timestamp()
        instance.add_daemon_heartbeat(DaemonHeartbeat(now, "SCHEDULER", "1", []))
        defs = dg.Definitions(jobs=[nightly])
        run_id = launch._run(defs, instance, NIGHTLY, {}, waiting)
        assert told[0] == f"run {dead[:8]}"
        assert instance.get_run_by_id(dead).status == STATUS.FAILURE  # type: ignore[union-attr]
        assert instance.get_run_by_id(run_id).status == STATUS.SUCCESS  # type: ignore[union-attr]
