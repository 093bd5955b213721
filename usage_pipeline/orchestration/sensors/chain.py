"""What follows a run: months follow days, exports follow a month that is over."""

from collections.abc import Iterator

import dagster as dg

from usage_pipeline.orchestration.internals.job_type import AssetJob
from usage_pipeline.orchestration.jobs import MONTHLY, NIGHTLY
from usage_pipeline.orchestration.names import CHAINED_TAG, USAGE_DAILY
from usage_pipeline.orchestration.partitions import days_of_run, month_tags
from usage_pipeline.serving import exports
from usage_pipeline.settings import Settings


def months_follow_days(job: AssetJob) -> dg.SensorDefinition:
    """Starts `monthly_rollup`."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="months_follow_days",
        request_job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description=(
            "When days were built, by the schedule or a backfill, builds their months and "
            "publishes. Chained rather than scheduled, so that it cannot race the nightly run."
        ),
    )
    def months_follow_days(
        context: dg.RunStatusSensorContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        ranges = days_of_run(run.tags)
        built_days = run.job_name == NIGHTLY or USAGE_DAILY in (run.asset_selection or ())
        if not built_days or not ranges or run.tags.get(CHAINED_TAG) == "no":
            yield dg.SkipReason(f"run {run.run_id} built no days that wait for their months")
            return
        yield dg.RunRequest(run_key=run.run_id, tags=month_tags(ranges))

    return months_follow_days


def month_closed(settings: Settings, job: AssetJob) -> dg.SensorDefinition:
    """Starts `monthly_exports`."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="month_closed",
        request_job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description=(
            "When something was published, writes the CSV exports of each month that is over, is "
            "published whole, and was not exported as it is now: new, changed since, or its run "
            "failed. Exports of a month that is not over are refreshed likewise."
        ),
    )
    def month_closed(
        context: dg.RunStatusSensorContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        due = exports.due_months(settings) if run.job_name == MONTHLY else []
        if not due:
            yield dg.SkipReason(f"after run {run.run_id} no month has to be exported")
        for month in due:
            yield dg.RunRequest(
                run_key=f"{run.run_id} {month:%Y-%m}", partition_key=month.isoformat()
            )

    return month_closed
