"""Sensors: what follows the end of a run, and what follows a change in the source."""

from collections.abc import Sequence

import dagster as dg

from usage_pipeline.orchestration.internals.job_type import AssetJob
from usage_pipeline.orchestration.jobs import DELIVERY, EXPORTS, MONTHLY, NIGHTLY
from usage_pipeline.orchestration.sensors.chain import month_closed, months_follow_days
from usage_pipeline.orchestration.sensors.delivery import messages_are_due
from usage_pipeline.orchestration.sensors.failures import run_failed
from usage_pipeline.orchestration.sensors.freshness import published_is_fresh
from usage_pipeline.orchestration.sensors.late_events import late_events
from usage_pipeline.settings import Settings


def build_sensors(settings: Settings, jobs: Sequence[AssetJob]) -> list[dg.SensorDefinition]:
    """All sensors, for the jobs that they start."""
    by_name = {job.name: job for job in jobs}
    return [
        late_events(settings, by_name[NIGHTLY]),
        published_is_fresh(settings),
        months_follow_days(by_name[MONTHLY]),
        month_closed(settings, by_name[EXPORTS]),
        messages_are_due(settings, by_name[DELIVERY]),
        run_failed(settings),
    ]
