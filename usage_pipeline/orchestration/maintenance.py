"""The job `maintenance`: deletes what nobody needs any more, and Dagster's old records."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from usage_pipeline.alerts import outbox
from usage_pipeline.operations import old_files
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.internals.old_runs import forget_old_runs
from usage_pipeline.rollup import Rollup

MAINTENANCE = "maintenance"


@dg.op(description="Deletes old runs, logs, SQL and messages, and landed days that no total needs.")
def clean_up(context: dg.OpExecutionContext, rollup: dg.ResourceParam[Rollup]) -> None:
    settings = rollup.settings
    before = datetime.now(UTC) - timedelta(days=settings.run_retention_days)
    runs = forget_old_runs(context.instance, before)
    files = old_files.remove_old_files(settings, before)
    with one_line_failures():
        days = old_files.remove_landed_days(settings)
        messages = outbox.prune(settings, before)
    context.add_output_metadata(
        {
            "runs removed": runs.removed,
            "old runs kept as the latest": runs.kept,
            "log entries removed": runs.events,
            "files of logs and SQL removed": files.count,
            "messages removed": messages,
            "landed days removed": days.count,
            "old landed days kept for totals": days.kept,
            "bytes freed": files.bytes + days.bytes,
        }
    )


def build_maintenance() -> dg.JobDefinition:
    """One job of one step; it takes no pool, so no rollup waits for it."""

    @dg.job(name=MAINTENANCE, description="Retention: see docs/operations.md, Dagster's data.")
    def maintenance_job() -> None:
        clean_up()

    return maintenance_job
