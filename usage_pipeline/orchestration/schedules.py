"""Schedules: what the clock starts. What follows a run is a sensor."""

from datetime import timedelta

import dagster as dg

from usage_pipeline.days import DayRange
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.orchestration.jobs import NIGHTLY
from usage_pipeline.orchestration.maintenance import MAINTENANCE
from usage_pipeline.orchestration.partitions import Partitions, day_range_tags
from usage_pipeline.settings import Settings


def build_schedules(settings: Settings, partitions: Partitions) -> list[dg.ScheduleDefinition]:
    """`nightly_rollup` at 01:00 local time for the day just ended, `maintenance` on Sundays."""

    @dg.schedule(
        name="nightly_rollup",
        job_name=NIGHTLY,
        cron_schedule="0 1 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Rolls up the day just ended at 01:00 in USAGE_TIMEZONE, and with it the nights that "
            "were missed before, at most USAGE_LOOKBACK_DAYS. Months and publishing follow by the "
            "sensor months_follow_days; on the 1st, month_closed exports the month."
        ),
    )
    def nightly_rollup(
        context: dg.ScheduleEvaluationContext,
    ) -> dg.RunRequest | dg.SkipReason:
        ticked = context.scheduled_execution_time.astimezone(settings.zone)
        day = ticked.date() - timedelta(days=1)
        if day < settings.start_date:
            return dg.SkipReason(f"{day} is before USAGE_START_DATE {settings.start_date}")
        earlier = [landed for landed in landed_manifests(settings) if landed < day]
        # One range up to the newest landed day: with a gap further back, a backfill was meant.
        missed = (day - max(earlier)).days - 1 if earlier else 0
        first = day - timedelta(days=min(missed, settings.lookback_days))
        if first == day:
            return dg.RunRequest(run_key=day.isoformat(), partition_key=day.isoformat())
        days = DayRange(first, day + timedelta(days=1))
        return dg.RunRequest(run_key=str(days), tags=day_range_tags(days))

    weekly_maintenance = dg.ScheduleDefinition(
        name="maintenance",
        job_name=MAINTENANCE,
        cron_schedule="0 12 * * 0",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="On Sundays at 12:00 in USAGE_TIMEZONE, far from the nightly rollup.",
    )
    return [nightly_rollup, weekly_maintenance]
