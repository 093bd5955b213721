"""Schedules: what the clock starts. What follows a run is a sensor."""

from datetime import timedelta

import dagster as dg

from usage_pipeline.orchestration.jobs import NIGHTLY
from usage_pipeline.orchestration.partitions import Partitions
from usage_pipeline.settings import Settings


def build_schedules(settings: Settings, partitions: Partitions) -> list[dg.ScheduleDefinition]:
    """`nightly_rollup` at 01:00 local time for the day just ended."""

    @dg.schedule(
        name="nightly_rollup",
        job_name=NIGHTLY,
        cron_schedule="0 1 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Rolls up the day just ended at 01:00 in USAGE_TIMEZONE. Its months and the publishing "
            "follow by the sensor months_follow_days; on the 1st, month_closed exports the month."
        ),
    )
    def nightly_rollup(
        context: dg.ScheduleEvaluationContext,
    ) -> dg.RunRequest | dg.SkipReason:
        ticked = context.scheduled_execution_time.astimezone(settings.zone)
        day = ticked.date() - timedelta(days=1)
        if day < settings.start_date:
            return dg.SkipReason(f"{day} is before USAGE_START_DATE {settings.start_date}")
        return dg.RunRequest(run_key=day.isoformat(), partition_key=day.isoformat())

    return [nightly_rollup]
