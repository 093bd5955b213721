"""Who is told when a run fails."""

import dagster as dg
import requests

from usage_pipeline.infra.postgres import redact
from usage_pipeline.orchestration.failures import expected_words, unexpected_error
from usage_pipeline.settings import Settings

WEBHOOK_TIMEOUT_SECONDS = 10


def run_failed(settings: Settings) -> dg.SensorDefinition:
    """Logs, and posts to the webhook."""

    @dg.run_failure_sensor(
        name="run_failed",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Logs why a run failed, and its address, and posts both to USAGE_FAILURE_WEBHOOK_URL "
            "when that is set."
        ),
    )
    def run_failed(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        causes = [_cause(event) for event in context.get_step_failure_events()]
        message = redact("; ".join(causes) or context.failure_event.message or "no message")
        address = f"{settings.dagster_url}/runs/{run.run_id}"
        context.log.error(f"{run.job_name} failed: {message} {address}")
        if settings.failure_webhook_url:
            response = requests.post(
                settings.failure_webhook_url.get_secret_value(),
                json={
                    "job": run.job_name,
                    "run_id": run.run_id,
                    "message": message,
                    "url": address,
                },
                timeout=WEBHOOK_TIMEOUT_SECONDS,
            )
            response.raise_for_status()

    return run_failed


def _cause(event: dg.DagsterEvent) -> str:
    """What a failed step says of itself, in one line; Dagster's event says only which step."""
    words = expected_words(event)
    if not words:
        error = unexpected_error(event)
        words = error.message if error else event.message or "no message"
    first = next((line for line in words.splitlines() if line.strip()), words)
    return f"{event.step_key}: {first.strip()}"
