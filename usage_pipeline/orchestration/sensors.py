"""Sensors: what follows the end of a run."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import dagster as dg
import requests
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from usage_pipeline.app_db import redact
from usage_pipeline.orchestration.jobs import EXPORTS, MONTHLY, NIGHTLY
from usage_pipeline.orchestration.partitions import days_of_run, month_range_tags
from usage_pipeline.settings import Settings

CHAINED_TAG = "usage/chained"  # "no" on runs of the command line, which chains the jobs itself
DAYS_END_TAG = "usage/days_end"
USAGE_DAILY = dg.AssetKey(["usage", "usage_daily"])
WEBHOOK_TIMEOUT_SECONDS = 10


def build_sensors(
    settings: Settings, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> list[dg.SensorDefinition]:
    """`months_follow_days`, `month_closed` and `run_failed`."""
    by_name = {job.name: job for job in jobs}

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="months_follow_days",
        request_job=by_name[MONTHLY],
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
        days = days_of_run(dict(run.tags))
        built_days = run.job_name == NIGHTLY or USAGE_DAILY in (run.asset_selection or ())
        if not built_days or days is None or run.tags.get(CHAINED_TAG) == "no":
            yield dg.SkipReason(f"run {run.run_id} built no days that wait for their months")
            return
        yield dg.RunRequest(
            run_key=run.run_id,
            tags={**month_range_tags(days), DAYS_END_TAG: days.end.isoformat()},
        )

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="month_closed",
        request_job=by_name[EXPORTS],
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="When the last day of a month is published, writes the month's CSV exports.",
    )
    def month_closed(
        context: dg.RunStatusSensorContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        days_end = run.tags.get(DAYS_END_TAG, "")
        if run.job_name != MONTHLY or not days_end.endswith("-01"):
            yield dg.SkipReason(f"run {run.run_id} closed no month")
            return
        last_day = date.fromisoformat(days_end) - timedelta(days=1)
        yield dg.RunRequest(
            run_key=run.run_id,
            partition_key=last_day.replace(day=1).isoformat(),
        )

    @dg.run_failure_sensor(
        name="run_failed",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Logs a failed run and posts it to USAGE_FAILURE_WEBHOOK_URL when that is set.",
    )
    def run_failed(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        message = redact(context.failure_event.message or "no message")
        context.log.error(f"{run.job_name} failed in run {run.run_id}: {message}")
        if settings.failure_webhook_url:
            response = requests.post(
                settings.failure_webhook_url.get_secret_value(),
                json={"job": run.job_name, "run_id": run.run_id, "message": message},
                timeout=WEBHOOK_TIMEOUT_SECONDS,
            )
            response.raise_for_status()

    return [months_follow_days, month_closed, run_failed]
