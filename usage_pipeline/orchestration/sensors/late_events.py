"""Late events: days of the look-back window whose rows in the source are no longer the landed."""

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.landing.stale_days import changed_days
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.internals.job_type import AssetJob
from usage_pipeline.orchestration.partitions import day_tags
from usage_pipeline.settings import Settings

RUN_KEY_TAG = "dagster/run_key"  # which the daemon puts on the runs that it starts for a request
LATE_EVENTS_SECONDS = 3600
RANGES_A_RUN = 50  # a tag is indexed, and may not be long; the next tick asks for the others


def late_events(settings: Settings, job: AssetJob) -> dg.SensorDefinition:
    """Starts `nightly_rollup`."""

    @dg.sensor(
        name="late_events",
        job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=LATE_EVENTS_SECONDS,
        description=(
            "Compares each landed day of the last USAGE_LOOKBACK_DAYS days with the source (rows, "
            "sum, last created_at) and rolls up the days that differ, in one run; their months, "
            "summaries and exports follow. One grouped query a tick. A day whose run failed, was "
            "canceled or never ran is asked for again."
        ),
    )
    def late_events(
        context: dg.SensorEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        # Per day: the state it was asked for in, and the key of the run that was to land it.
        # An entry of another shape is an older release's, and asks for nothing.
        requested: dict[str, list[str]] = {
            day: request
            for day, request in json.loads(context.cursor or "{}").items()
            if isinstance(request, list)
        }
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
        ranges = ranges_of_days(changed.keys() - waiting.keys())[:RANGES_A_RUN]
        if not ranges:
            yield dg.SkipReason(
                f"{len(changed)} changed days, all requested before"
                if changed
                else "no day changed"
            )
        # Only what still differs is remembered: a state that was landed and comes back is new.
        remembered = {str(day): requested[str(day)] for day in changed if str(day) in requested}
        if ranges:
            asked = [day for days in ranges for day in days.days()]
            # The daemon starts no second run for a key, ever; so another attempt has another one.
            told = [[str(day), changed[day], remembered.get(str(day))] for day in asked]
            run_key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
            yield dg.RunRequest(run_key=run_key, tags=day_tags(ranges))
            remembered |= {str(day): [changed[day], run_key] for day in asked}
        context.update_cursor(json.dumps(remembered))

    return late_events


def _runs_that_live(instance: dg.DagsterInstance, run_keys: set[str]) -> set[str]:
    """Of the keys of earlier requests, those whose run waits, runs, or has succeeded.

    One that succeeded and left its day as it was kept it on purpose, and would do so again.
    """
    if not run_keys:
        return set()
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: list(run_keys)}))
    dead = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return {run.tags[RUN_KEY_TAG] for run in runs if run.status not in dead}
