"""What follows a run: months follow days, exports follow a month that is over."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from usage_pipeline.days import next_month
from usage_pipeline.orchestration.internals.job_type import AssetJob
from usage_pipeline.orchestration.jobs import MONTHLY, NIGHTLY
from usage_pipeline.orchestration.names import CHAINED_TAG, DAYS_TAG, USAGE_DAILY
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
            "When the last day of a month is published, writes the month's CSV exports; when other "
            "days of a month that was exported before are published again, refreshes them."
        ),
    )
    def month_closed(
        context: dg.RunStatusSensorContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        if run.job_name != MONTHLY or DAYS_TAG not in run.tags:
            yield dg.SkipReason(f"run {run.run_id} published no days that a sensor chained")
            return
        days = {day for each in days_of_run(run.tags) for day in each.days()}
        due = [
            month
            for month in sorted({day.replace(day=1) for day in days})
            if next_month(month) - timedelta(days=1) in days or exports.is_exported(settings, month)
        ]
        if not due:
            yield dg.SkipReason(f"run {run.run_id} closed no month and changed no exported one")
        for month in due:
            yield dg.RunRequest(
                run_key=f"{run.run_id} {month:%Y-%m}", partition_key=month.isoformat()
            )

    return month_closed
