"""Running the jobs from the command line, in this process, recorded like any other run."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import DBAPIError

from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.infra.database_urls import dagster_database_url
from usage_pipeline.infra.postgres import database_error
from usage_pipeline.infra.processes import lives, this_process
from usage_pipeline.orchestration.failures import expected_words, unexpected_error
from usage_pipeline.orchestration.jobs import MONTHLY, NIGHTLY
from usage_pipeline.orchestration.names import CHAINED_TAG, WAREHOUSE_POOL
from usage_pipeline.orchestration.partitions import day_range_tags, month_range_tags
from usage_pipeline.settings import Settings

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# The daemon retries crashed runs, but a command's user sees the failure and decides.
_CLI_TAGS = {CHAINED_TAG: "no", "dagster/max_retries": "0"}
_PROCESS_TAG = "usage/process"
_DAEMON_SILENCE_SECONDS = 120
_LOOK_SECONDS = 15  # between looks at the runs that a run may be waiting for
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def prepare_dagster_home(settings: Settings) -> None:
    """Make `$USAGE_HOME/dagster` DAGSTER_HOME, with the project's dagster.yaml in it."""
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("dagster.yaml"), settings.dagster_home)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    # A minute, Dagster's default, is short for a grouped query over a large source.
    os.environ.setdefault("DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS", "360")


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance in Postgres; the embedded server stays up as long as it is open.

    Raises:
        UsagePipelineError: its database fails, also inside the block.
    """
    prepare_dagster_home(settings)
    url = dagster_database_url(settings)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except (DBAPIError, DagsterPostgresException) as error:
        raise database_error(error, url, "DAGSTER_PG_URL") from error


def run_rollup(
    defs: dg.Definitions,
    settings: Settings,
    days: DayRange,
    waiting: Callable[[str], None] = lambda holder: None,
) -> list[str]:
    """Roll up days and their months as two runs; gives the run ids.

    Args:
        waiting: called with the run that has the pool, now and again while this one waits for it.

    Raises:
        UsagePipelineError: the failure of the first step that failed, in its own words.
    """
    # Dagster warns of each attempt to connect; what came of them is said once.
    logging.getLogger().addHandler(logging.NullHandler())
    with (
        dagster_instance(settings) as instance,
        interrupts.stopping(lambda: _cancel_own_runs(instance)),
    ):
        _bury_dead_runs(instance)
        return [
            _run(defs, instance, NIGHTLY, day_range_tags(days), waiting),
            _run(defs, instance, MONTHLY, month_range_tags(days), waiting),
        ]


def submit_rollup(settings: Settings, days: DayRange) -> str:
    """Queue the nightly job for days, whose months follow it; gives the run's id.

    Raises:
        UsagePipelineError: the Dagster webserver of `USAGE_DAGSTER_URL` does not take it.
    """
    address = urlsplit(settings.dagster_url)
    try:
        client = DagsterGraphQLClient(
            address.hostname or "", address.port, use_https=address.scheme == "https"
        )
        return str(client.submit_job_execution(NIGHTLY, tags=day_range_tags(days)))
    except DagsterGraphQLClientError as error:
        raise UsagePipelineError(
            f"Dagster at {settings.dagster_url} does not start the rollup",
            "Start `usage-pipeline up`, or correct USAGE_DAGSTER_URL",
        ) from error


def _cancel_own_runs(instance: dg.DagsterInstance) -> None:
    """Record this process's unfinished run as canceled, and free its pool slots."""
    own = dg.RunsFilter(statuses=_UNFINISHED, tags={_PROCESS_TAG: this_process()})
    for run in instance.get_runs(own):
        instance.report_run_canceled(run, "The command was stopped.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _bury_dead_runs(instance: dg.DagsterInstance) -> None:
    """Fail the runs whose process was killed, and free the pool slots they still hold.

    The daemon does so for the runs it launched. A command's runs are nobody's, and without a
    daemon so are the daemon's; the next command would wait for their slot for ever.
    """
    heartbeats = instance.get_daemon_heartbeats().values()
    newest = max((beat.timestamp for beat in heartbeats), default=0.0)
    daemon_lives = time.time() - newest < _DAEMON_SILENCE_SECONDS
    launching = time.time() - instance.run_monitoring_start_timeout_seconds
    for record in instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED)):
        run = record.dagster_run
        owner = run.tags.get(_PROCESS_TAG)
        if run.status == dg.DagsterRunStatus.NOT_STARTED and owner is None:
            # The webserver or a daemon that just began may be about to launch it.
            alive = daemon_lives or record.create_timestamp.timestamp() > launching
        else:
            alive = daemon_lives if owner is None else lives(owner)
        if not alive:
            instance.report_run_failed(run, "The process of this run was killed.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _run(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    tags: dict[str, str],
    waiting: Callable[[str], None],
) -> str:
    # In the main thread, Dagster takes signals over and records a stop as a failed step.
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(
            defs.resolve_job_def(job).execute_in_process,
            instance=instance,
            tags={**tags, **_CLI_TAGS, _PROCESS_TAG: this_process()},
            run_config=_QUIET,
            raise_on_error=False,
        )
        while not wait([run], _LOOK_SECONDS).done:
            # A daemon that was killed just before this command is found dead only now.
            _bury_dead_runs(instance)
            if holder := _holder_of_pool(instance):
                waiting(holder)
        result = run.result()
    if not result.success:
        raise _failure(result)
    return result.run_id


def _holder_of_pool(instance: dg.DagsterInstance) -> str | None:
    """The run that has the pool while a step of this process waits for it."""
    own = dg.RunsFilter(statuses=_UNFINISHED, tags={_PROCESS_TAG: this_process()})
    mine = {run.run_id for run in instance.get_runs(own)}
    pool = instance.event_log_storage.get_concurrency_info(WAREHOUSE_POOL)
    others = sorted(pool.active_run_ids - mine)
    return f"run {others[0][:8]}" if others and pool.pending_run_ids & mine else None


def _failure(result: dg.ExecuteInProcessResult) -> UsagePipelineError:
    failed = next((event for event in result.all_events if event.is_step_failure), None)
    if failed is None:
        return UsagePipelineError(
            f"Run {result.run_id} failed before its first step", "Read it in the Dagster UI"
        )
    if words := expected_words(failed):
        problem, _, remedy = words.rpartition(". ") if words.count(". ") else (words, "", "")
        return UsagePipelineError(problem or words, remedy or "Correct it and run again")
    error = unexpected_error(failed)
    text = f"{error.cls_name}: {error.message}" if error else "no message"
    return UsagePipelineError(
        f"Step {failed.step_key} failed ({text.splitlines()[0]})",
        f"Run again with --debug, or read run {result.run_id} in the Dagster UI",
    )
