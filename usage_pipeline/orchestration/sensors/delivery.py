"""What starts sending."""

import time
from collections.abc import Iterator

import dagster as dg

from usage_pipeline.alerts import outbox
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.internals.job_type import AssetJob
from usage_pipeline.settings import Settings

LOOK_SECONDS = 30
PAUSE_SECONDS = 600  # after a run that failed, lest an unreachable source fails one a minute


def messages_are_due(settings: Settings, job: AssetJob) -> dg.SensorDefinition:
    """Starts `deliver_messages`."""

    @dg.sensor(
        name="messages_are_due",
        job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=LOOK_SECONDS,
        description=(
            "Looks into the outbox, and sends what is due, in one run at a time; after one that "
            f"failed not for {PAUSE_SECONDS // 60} minutes."
        ),
    )
    def messages_are_due(
        context: dg.SensorEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        with one_line_failures():
            due = outbox.waiting(settings).due
        if not due:
            yield dg.SkipReason("nothing is due")
            return
        newest = context.instance.get_run_records(dg.RunsFilter(job_name=job.name), limit=1)
        for record in newest:
            if not record.dagster_run.is_finished:
                yield dg.SkipReason(f"run {record.dagster_run.run_id} is sending")
                return
            ended = record.end_time or 0.0
            if record.dagster_run.is_failure and time.time() - ended < PAUSE_SECONDS:
                yield dg.SkipReason("the last run failed a moment ago")
                return
        yield dg.RunRequest()

    return messages_are_due
