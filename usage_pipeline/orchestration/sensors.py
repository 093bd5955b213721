"""Sensors: what follows the end of a run, and what follows a change in the source."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
import requests
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from usage_pipeline.audit.freshness import freshness
from usage_pipeline.days import DayRange, next_month, ranges_of_days
from usage_pipeline.infra.postgres import redact
from usage_pipeline.landing.repairs import changed_days
from usage_pipeline.orchestration.assets import USAGE_DAILY, one_line_failures
from usage_pipeline.orchestration.checks import FRESH, FRESH_ASSET
from usage_pipeline.orchestration.jobs import EXPORTS, MONTHLY, NIGHTLY
from usage_pipeline.orchestration.metadata import freshness_metadata
from usage_pipeline.orchestration.partitions import (
    day_range_tags,
    days_of_run,
    month_range_tags,
)
from usage_pipeline.serving import exports
from usage_pipeline.settings import Settings

CHAINED_TAG = "usage/chained"  # "no" on runs of the command line, which chains the jobs itself
DAYS_END_TAG = "usage/days_end"
RUN_KEY_TAG = "dagster/run_key"  # which the daemon puts on the runs that it starts for a request
WEBHOOK_TIMEOUT_SECONDS = 10
LATE_EVENTS_SECONDS = 3600
FRESHNESS_SECONDS = 300
REQUESTS_A_TICK = 50  # a tick that asks for more is slow; the next one goes on


def build_sensors(
    settings: Settings, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> list[dg.SensorDefinition]:
    """`late_events`, `published_is_fresh`, `months_follow_days`, `month_closed`, `run_failed`."""
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
        description=(
            "When the last day of a month is published, writes the month's CSV exports; when other "
            "days of a month that was exported before are published again, refreshes them."
        ),
    )
    def month_closed(
        context: dg.RunStatusSensorContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        days = days_of_run(dict(run.tags))
        days_end = run.tags.get(DAYS_END_TAG)
        if run.job_name != MONTHLY or days is None or days_end is None:
            yield dg.SkipReason(f"run {run.run_id} published no days that a sensor chained")
            return
        months = {day.replace(day=1) for day in days.days()}
        due = [
            month
            for month in sorted(months)
            if next_month(month).isoformat() <= days_end or exports.is_exported(settings, month)
        ]
        if not due:
            yield dg.SkipReason(f"run {run.run_id} closed no month and changed no exported one")
        for month in due:
            yield dg.RunRequest(
                run_key=f"{run.run_id} {month:%Y-%m}", partition_key=month.isoformat()
            )

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

    @dg.sensor(
        name="late_events",
        job=by_name[NIGHTLY],
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=LATE_EVENTS_SECONDS,
        description=(
            "Compares each landed day of the last USAGE_LOOKBACK_DAYS days with the source (rows, "
            "sum, last created_at) and rolls up the days that differ; their months, summaries and "
            "exports follow. One grouped query a tick. A day whose run failed, was canceled or "
            "never ran is asked for again."
        ),
    )
    def late_events(
        context: dg.SensorEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        # Per day: the state it was asked for in, and the key of the run that was to land it.
        requested: dict[str, list[str]] = json.loads(context.cursor or "{}")
        today = settings.today()
        window = DayRange(
            max(today - timedelta(days=settings.lookback_days), settings.start_date), today
        )
        with one_line_failures():
            changed = changed_days(settings, window) if window.start < window.end else {}
        taken = _runs_that_live(context.instance, {key for _, key in requested.values()})
        waiting = {
            day: request
            for day, state in changed.items()
            if (request := requested.get(str(day))) and request[0] == state and request[1] in taken
        }
        ranges = ranges_of_days(changed.keys() - waiting.keys())[:REQUESTS_A_TICK]
        if not ranges:
            yield dg.SkipReason(
                f"{len(changed)} changed days, all requested before"
                if changed
                else "no day changed"
            )
        # Only what still differs is remembered: a state that was landed and comes back is new.
        remembered = {str(day): requested[str(day)] for day in changed if str(day) in requested}
        for days in ranges:
            # The daemon starts no second run for a key, ever; so another attempt has another one.
            told = [[changed[day], remembered.get(str(day))] for day in days.days()]
            digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
            run_key = f"{days} {digest}"
            yield dg.RunRequest(run_key=run_key, tags=day_range_tags(days))
            remembered |= {str(day): [changed[day], run_key] for day in days.days()}
        context.update_cursor(json.dumps(remembered))

    return [late_events, _freshness_sensor(settings), months_follow_days, month_closed, run_failed]


def _freshness_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name="published_is_fresh",
        asset_selection=dg.AssetSelection.assets(FRESH_ASSET),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=FRESHNESS_SECONDS,
        description=(
            "Looks at what readers see, and reports the check yesterday_is_published when its "
            "verdict changes; starts no run."
        ),
    )
    def published_is_fresh(
        context: dg.SensorEvaluationContext,
    ) -> dg.SensorResult | dg.SkipReason:
        seen = freshness(settings)
        if context.cursor == str(seen):
            return dg.SkipReason(str(seen))
        evaluation = dg.AssetCheckEvaluation(
            asset_key=FRESH_ASSET,
            check_name=FRESH,
            passed=seen.fresh,
            metadata=freshness_metadata(seen),
        )
        return dg.SensorResult(asset_events=[evaluation], cursor=str(seen))

    return published_is_fresh


def _runs_that_live(instance: dg.DagsterInstance, run_keys: set[str]) -> set[str]:
    """Of the keys of earlier requests, those whose run waits, runs, or has succeeded.

    One that succeeded and left its day as it was kept it on purpose, and would do so again.
    """
    if not run_keys:
        return set()
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: list(run_keys)}))
    dead = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return {run.tags[RUN_KEY_TAG] for run in runs if run.status not in dead}


def _cause(event: dg.DagsterEvent) -> str:
    """What a failed step says of itself, in one line; Dagster's event says only which step."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        words = data.user_failure_data.description
    elif data.error:
        words = (data.error.cause or data.error).message  # Dagster wraps what a step raises
    else:
        words = event.message or "no message"
    first = next((line for line in words.splitlines() if line.strip()), words)
    return f"{event.step_key}: {first.strip()}"
