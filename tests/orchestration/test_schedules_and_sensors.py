"""What starts runs: the nightly schedule at frozen times, and the sensors after runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any
from uuid import uuid4

import dagster as dg
import duckdb
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator
from support import day, days, triggers

from usage_pipeline.days import DayRange
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.orchestration.jobs import EXPORTS, MONTHLY, NIGHTLY
from usage_pipeline.orchestration.names import CHAINED_TAG, DAYS_TAG, USAGE_DAILY
from usage_pipeline.orchestration.partitions import (
    PARTITION_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    day_range_tags,
    day_tags,
    days_of_run,
)
from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.serving.exports import export_month


@pytest.fixture
def triggers_in(make_settings: Any) -> Any:
    return lambda zone: triggers(make_settings(USAGE_TIMEZONE=zone))


def ticks(schedule: Any, after: str, count: int) -> list[datetime]:
    """The next instants at which Dagster's scheduler evaluates the schedule."""
    iterator = schedule_execution_time_iterator(
        datetime.fromisoformat(after).replace(tzinfo=UTC).timestamp(),
        schedule.cron_schedule,
        schedule.execution_timezone,
        ascending=True,
    )
    return list(islice(iterator, count))


def requested(schedule: Any, tick: datetime) -> Any:
    with dg.build_schedule_context(scheduled_execution_time=tick) as context:
        return schedule(context)


@pytest.mark.parametrize(
    ("zone", "tick", "day"),
    [
        ("UTC", "2024-03-01T01:00+00:00", "2024-02-29"),
        ("UTC", "2025-01-01T01:00+00:00", "2024-12-31"),
        ("UTC", "2024-06-12T01:00+00:00", "2024-06-11"),
        ("America/New_York", "2024-03-01T06:00+00:00", "2024-02-29"),
        ("America/New_York", "2024-03-10T06:00+00:00", "2024-03-09"),  # 01:00, an hour before DST
        ("America/New_York", "2024-03-11T05:00+00:00", "2024-03-10"),  # of 23 hours
        ("America/New_York", "2024-11-03T05:00+00:00", "2024-11-02"),  # 01:00, the first
        ("America/New_York", "2024-11-03T06:00+00:00", "2024-11-02"),  # 01:00, the second
        ("America/New_York", "2024-11-04T06:00+00:00", "2024-11-03"),  # of 25 hours
        ("America/New_York", "2024-12-01T06:00+00:00", "2024-11-30"),
    ],
)
def test_a_tick_requests_the_local_day_just_ended(
    zone: str, tick: str, day: str, triggers_in: Any
) -> None:
    schedule = triggers_in(zone)["nightly_rollup"]
    request = requested(schedule, datetime.fromisoformat(tick))
    assert (request.partition_key, request.run_key) == (day, day)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("around", ["2024-03-08", "2024-11-01", "2024-02-27"])
def test_every_night_has_its_day_through_dst_and_month_ends(
    zone: str, around: str, triggers_in: Any
) -> None:
    schedule = triggers_in(zone)["nightly_rollup"]
    days = [requested(schedule, tick).partition_key for tick in ticks(schedule, around, 6)]
    first = datetime.fromisoformat(days[0]).date().toordinal()
    ordinals = sorted({datetime.fromisoformat(day).date().toordinal() for day in days})
    assert ordinals == list(range(first, first + len(ordinals)))
    assert len(ordinals) >= 5  # the hour that comes twice may tick twice, for the same day


def test_a_tick_before_the_first_partition_is_skipped(triggers_in: Any) -> None:
    schedule = triggers_in("UTC")["nightly_rollup"]
    skipped = requested(schedule, datetime(2024, 1, 1, 1, tzinfo=UTC))
    assert isinstance(skipped, dg.SkipReason)


@pytest.mark.parametrize(
    ("landed", "first", "last"),
    [
        (["2024-06-08"], "2024-06-09", "2024-06-11"),  # two nights were missed
        (["2024-06-01", "2024-06-10", "2024-06-11", "2024-06-12"], "2024-06-11", "2024-06-11"),
        (["2024-01-05"], "2024-06-07", "2024-06-11"),  # no further than the look-back window
    ],
)
def test_a_night_brings_in_those_that_a_stopped_daemon_missed(
    landed: list[str], first: str, last: str, make_settings: Any, new_database: Any
) -> None:
    settings = make_settings(USAGE_LOOKBACK_DAYS=4, USAGE_APP_DATABASE_URL=new_database().url)
    land_events(settings, [date.fromisoformat(day) for day in landed])
    schedule = triggers(settings)["nightly_rollup"]
    request = requested(schedule, datetime(2024, 6, 12, 1, tzinfo=UTC))
    asked = days_of_run(
        request.tags
        if request.partition_key is None
        else {"dagster/partition": request.partition_key}
    )
    assert asked == [DayRange(day(first).start, day(last).end)]


def test_schedules_and_sensors_are_on_by_default(triggers_in: Any) -> None:
    found = triggers_in("America/New_York")
    schedule = found["nightly_rollup"]
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert schedule.cron_schedule == "0 1 * * *"
    assert schedule.execution_timezone == "America/New_York"
    weekly = found["maintenance"]
    assert weekly.default_status == dg.DefaultScheduleStatus.RUNNING
    assert [tick.isoformat() for tick in ticks(weekly, "2024-03-01", 2)] == [
        "2024-03-03T12:00:00-05:00",  # Sundays
        "2024-03-10T12:00:00-04:00",
    ]
    for name in (
        "late_events",
        "published_is_fresh",
        "months_follow_days",
        "month_closed",
        "run_failed",
    ):
        sensor = found[name]
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING


# --- sensors -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def success() -> Iterator[tuple[dg.DagsterInstance, dg.DagsterEvent]]:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def done() -> None:
        nothing()

    with dg.DagsterInstance.ephemeral() as instance:
        result = done.execute_in_process(instance=instance)
        yield instance, result.get_run_success_event()


def follow(
    found: dict[str, Any],
    sensor: str,
    success: tuple[dg.DagsterInstance, dg.DagsterEvent],
    job: str,
    tags: dict[str, str],
    *,
    assets: frozenset[dg.AssetKey] | None = None,
) -> dg.RunRequest | dg.SkipReason:
    """What a sensor wants after a successful run."""
    instance, event = success
    run = dg.DagsterRun(job_name=job, run_id=str(uuid4()), tags=tags, asset_selection=assets)
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor, dagster_event=event, dagster_instance=instance, dagster_run=run
    )
    (answer,) = list(found[sensor](context))
    assert isinstance(answer, dg.SkipReason) or (answer.run_key or "").startswith(run.run_id)
    return answer


def test_months_follow_the_nightly_run(triggers_in: Any, success: Any) -> None:
    request = follow(
        triggers_in("UTC"),
        "months_follow_days",
        success,
        NIGHTLY,
        {"dagster/partition": "2024-02-29"},
    )
    assert isinstance(request, dg.RunRequest)
    assert request.tags[RANGE_START_TAG] == request.tags[RANGE_END_TAG] == "2024-02-01"
    assert request.tags[DAYS_TAG] == "2024-02-29/2024-03-01"


def test_months_follow_a_backfill_of_a_range_of_days(triggers_in: Any, success: Any) -> None:
    request = follow(
        triggers_in("UTC"),
        "months_follow_days",
        success,
        "__ASSET_JOB",
        {RANGE_START_TAG: "2024-01-15", RANGE_END_TAG: "2024-03-02"},
        assets=frozenset({USAGE_DAILY, dg.AssetKey(["usage", "usage_partials_daily"])}),
    )
    assert isinstance(request, dg.RunRequest)
    assert request.tags[RANGE_START_TAG] == "2024-01-01"
    assert request.tags[RANGE_END_TAG] == "2024-03-01"


@pytest.mark.parametrize(
    ("job", "tags", "assets"),
    [
        (NIGHTLY, {"dagster/partition": "2024-02-29", CHAINED_TAG: "no"}, None),
        (MONTHLY, {RANGE_START_TAG: "2024-02-01", RANGE_END_TAG: "2024-02-01"}, None),
        (EXPORTS, {"dagster/partition": "2024-02-01"}, None),
        (NIGHTLY, {}, None),
        (
            "__ASSET_JOB",
            {"dagster/partition": "2024-02-29"},
            frozenset({dg.AssetKey(["landing", "usage_events"])}),
        ),
    ],
    ids=["command line", "months", "exports", "no partition", "landing only"],
)
def test_months_do_not_follow(
    job: str, tags: dict[str, str], assets: Any, triggers_in: Any, success: Any
) -> None:
    answer = follow(triggers_in("UTC"), "months_follow_days", success, job, tags, assets=assets)
    assert isinstance(answer, dg.SkipReason)


def test_exports_follow_what_is_published(make_settings: Any, success: Any) -> None:
    """Whatever runs published it, and whichever of them failed: the state of the month decides."""
    settings = make_settings(USAGE_START_DATE="2024-02-10")

    def publish(statement: str) -> None:
        with duckdb.connect(str(settings.published_path)) as db:
            db.execute(statement)

    def due() -> list[str | None]:
        return exports_that_follow(settings, success, MONTHLY, {CHAINED_TAG: "no"})

    assert due() == []  # nothing is published
    ensure_snapshot(settings)
    publish(
        "create table usage_daily (usage_date date, user_id uuid, org_id uuid, metric_type varchar,"
        " total_quantity decimal(38, 9), event_count bigint);"
        "insert into published_days by name"
        " select cast('2024-02-01' as date) + cast(n as integer) as usage_date,"
        " timestamptz '2024-03-03 01:00:00Z' as extracted_at, 'v1' as built_with"
        " from range(31) as days (n) where n <> 28"
    )
    assert due() == []  # 29 February is missing, and March is not whole
    # published by the night after its own had failed
    publish("insert into published_days by name select date '2024-02-29' as usage_date")
    assert due() == ["2024-02-01"]
    assert due() == ["2024-02-01"]  # its run failed
    assert exports_that_follow(settings, success, NIGHTLY, {}) == []
    export_month(settings, date(2024, 2, 1))
    export_month(settings, date(2024, 3, 1))  # by hand, before it is whole
    assert due() == []
    # an event moved out of the day, which was landed again and has none now
    publish("update published_days set extracted_at = now() where usage_date = '2024-02-15'")
    assert due() == ["2024-02-01"]
    export_month(settings, date(2024, 2, 1))
    publish("update published_days set built_with = 'v2'")
    assert due() == ["2024-02-01", "2024-03-01"]


def exports_that_follow(
    settings: Any, success: Any, job: str, tags: dict[str, str]
) -> list[str | None]:
    """The months that `month_closed` wants exported after a successful run."""
    instance, event = success
    run = dg.DagsterRun(job_name=job, run_id=str(uuid4()), tags=tags)
    context = dg.build_run_status_sensor_context(
        sensor_name="month_closed", dagster_event=event, dagster_instance=instance, dagster_run=run
    )
    sensor = triggers(settings)["month_closed"]
    return [a.partition_key for a in sensor(context) if isinstance(a, dg.RunRequest)]


def test_tags_of_a_range_of_days_are_read_back() -> None:
    for range_ in (days("2024-02-28", "2024-03-02"), days("2024-02-29", "2024-03-01")):
        assert days_of_run(day_range_tags(range_)) == [range_]
        assert days_of_run({PARTITION_TAG: "2024-02-29"}) == [days("2024-02-29", "2024-03-01")]
    several = [days("2024-01-30", "2024-02-02"), days("2024-03-31", "2024-04-01")]
    tags = day_tags(several)
    assert days_of_run(tags) == several
    assert (tags[RANGE_START_TAG], tags[RANGE_END_TAG]) == ("2024-01-30", "2024-02-01")
    assert days_of_run({}) == []


def test_months_follow_all_days_of_one_run_for_several_ranges(
    triggers_in: Any, success: Any
) -> None:
    ranges = [
        days("2024-01-30", "2024-02-01"),
        days("2024-02-10", "2024-02-11"),
        days("2024-03-30", "2024-03-31"),
    ]
    request = follow(triggers_in("UTC"), "months_follow_days", success, NIGHTLY, day_tags(ranges))
    assert isinstance(request, dg.RunRequest)
    assert days_of_run(request.tags) == ranges
