"""Rollups of a few thousand random events, against plain SQL over the source."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import (
    AppDatabase,
    Row,
    assert_published_alike,
    build,
    day,
    days,
    numbers_only,
    postgres_tables,
    roll_up,
    snapshot_query,
    snapshot_tables,
)

from usage_pipeline.audit.gate import blocking_failures
from usage_pipeline.audit.notices import notices
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.landed_days import data_files, landed_manifests
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.meters.meter import EVENT_TYPES
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.transform import NodeResult

RANGE = days("2024-03-30", "2024-04-02")
NEW_YORK = "America/New_York"

_BY_USER = """
    select {period}, user_id::text, org_id::text, event_type,
           sum(quantity::numeric(38, 9)), count(*)
    from usage_events
    where (created_at at time zone '{zone}')::date between '2024-03-30' and '2024-04-01'
    group by 1, 2, 3, 4 order by 1, 2, 3, 4
"""
_BY_ORG = """
    select {period}, org_id::text, event_type,
           sum(quantity::numeric(38, 9)), count(*), count(distinct user_id)
    from usage_events
    where (created_at at time zone '{zone}')::date between '2024-03-30' and '2024-04-01'
    group by 1, 2, 3 order by 1, 2, 3
"""
_BY_METRIC = """
    select {period}, event_type, sum(quantity::numeric(38, 9)), count(*),
           count(distinct user_id), count(distinct org_id)
    from usage_events
    where (created_at at time zone '{zone}')::date between '2024-03-30' and '2024-04-01'
    group by 1, 2 order by 1, 2
"""
_LEVELS = (
    (_BY_USER, "usage", "user_id::text, org_id::text, metric_type, total_quantity, event_count"),
    (_BY_ORG, "org_usage", "org_id::text, metric_type, total_quantity, event_count, active_users"),
    (
        _BY_METRIC,
        "platform_usage",
        "metric_type, total_quantity, event_count, active_users, active_orgs",
    ),
)


def fill(source: AppDatabase, seed: int, events: int) -> None:
    """Events from the day before the range to the day after it, so that some lie outside."""
    dice = random.Random(seed)
    people = [str(UUID(int=dice.getrandbits(128))) for _ in range(25)]
    orgs = [str(UUID(int=dice.getrandbits(128))) for _ in range(4)]
    source.insert("users", [(p, None, "2024-01-01T00:00Z", None) for p in people])
    first = datetime(2024, 3, 29, tzinfo=UTC)
    rows = []
    for number in range(events):
        quantity = Decimal(dice.randint(-(10**15), 10**17)).scaleb(-dice.randint(0, 12))
        rows.append(
            (
                str(UUID(int=(seed << 64) + number)),
                dice.choice(people),
                dice.choice([*orgs, None]),
                dice.choice(EVENT_TYPES),
                None,
                quantity,
                first + timedelta(microseconds=dice.randrange(5 * 86_400_000_000)),
            )
        )
    source.insert("usage_events", rows)


def assert_equals_plain_sql(source: AppDatabase, settings: Settings) -> None:
    zone = settings.timezone
    for query, table, columns in _LEVELS:
        for grain, column, period in (
            ("daily", "usage_date", f"(created_at at time zone '{zone}')::date"),
            ("monthly", "month", f"date_trunc('month', created_at at time zone '{zone}')::date"),
        ):
            expected = source.query(query.format(period=period, zone=zone))
            order = ", ".join(str(n) for n in range(1, 2 + columns.count(",")))
            found = source.query(
                f"select {column}, {columns} from {settings.publish_schema}.{table}_{grain}"
                f" order by {order}"
            )
            assert sorted(found, key=str) == sorted(expected, key=str), f"{table}_{grain}"


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    database: AppDatabase = new_database()
    fill(database, seed=11, events=3000)
    return database


@pytest.fixture(scope="module")
def settings(source: AppDatabase, make_settings: Any) -> Settings:
    """A home in which the range is rolled up; every test leaves it good."""
    made: Settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    roll_up(made, RANGE)
    return made


def test_totals_equal_plain_sql_in_utc(source: AppDatabase, settings: Settings) -> None:
    assert_equals_plain_sql(source, settings)
    assert_published_alike(settings, source.url)


def test_the_same_range_again_changes_nothing(source: AppDatabase, settings: Settings) -> None:
    before, inode = snapshot_tables(settings), settings.snapshot_path.stat().st_ino
    report = roll_up(settings, RANGE)
    assert not report.changed
    assert settings.snapshot_path.stat().st_ino == inode
    assert snapshot_tables(settings) == before


def test_day_by_day_in_any_order_gives_the_same_tables(
    source: AppDatabase, settings: Settings, make_settings: Any
) -> None:
    other = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_PUBLISH_SCHEMA="shuffled")
    for each in ("2024-04-01", "2024-03-30", "2024-03-31"):
        roll_up(other, day(each))
    expected = numbers_only(snapshot_tables(settings))
    found = numbers_only(assert_published_alike(other, source.url))
    for table, rows in expected.items():
        assert found[table] == rows, table


_READER = """
import sys, time
import duckdb
path, reads = sys.argv[1], 0
seen = set()
print("reading", flush=True)
import threading
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), done.set()), daemon=True).start()
while not done.is_set():
    with duckdb.connect(path, read_only=True) as db:
        days, months = (
            db.execute(f"select sum(total_quantity), sum(event_count) from {t}").fetchone()
            for t in ("usage_daily", "usage_monthly")
        )
        seen.add(db.execute("select snapshot_id from snapshot").fetchone()[0])
    assert days == months, (days, months)
    reads += 1
    time.sleep(0.02)
print(reads, len(seen))
"""


@contextmanager
def reading(settings: Settings) -> Iterator[list[int]]:
    """Another process that opens the snapshot all the time; gives its reads and snapshots seen."""
    figures: list[int] = []
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(settings.snapshot_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout
        assert reader.stdout.readline() == "reading\n"
        yield figures
    finally:
        output, errors = reader.communicate("\n", timeout=60)
    assert reader.returncode == 0, errors
    figures.extend(int(n) for n in output.split())


def test_a_deleted_event_disappears_while_readers_read(
    source: AppDatabase, settings: Settings
) -> None:
    """Its key was in both outputs because of this event alone."""
    lonely = str(UUID(int=0xDEAD << 96))
    source.execute(
        "insert into usage_events values (%s, %s, null, 'api_call', null, 5, '2024-03-31T10:00Z')",
        (str(UUID(int=1)), lonely),
    )
    with reading(settings) as figures:
        roll_up(settings, day("2024-03-31"))
        tables = snapshot_tables(settings)
        assert [r["total_quantity"] for r in tables["usage_daily"] if r["user_id"] == lonely] == [5]
        source.execute("delete from usage_events where user_id = %s", (lonely,))
        roll_up(settings, day("2024-03-31"))
    reads, snapshots = figures
    assert reads > snapshots > 1  # it saw the snapshot change under it
    tables = assert_published_alike(settings, source.url)
    restated = [row for row in tables.pop("usage_restatements") if row["user_id"] == lonely]
    assert [(r["cause"], r["old_quantity"], r["new_quantity"]) for r in restated] == [
        ("correction", 5, 0),
        ("late_events", 0, 5),
    ]
    for name, rows in tables.items():
        assert not [row for row in rows if row.get("user_id") == lonely], name
    assert_equals_plain_sql(source, settings)


def test_a_failing_check_publishes_nothing_and_the_next_good_run_repairs(
    source: AppDatabase, settings: Settings
) -> None:
    before = snapshot_tables(settings)
    inode = settings.snapshot_path.stat().st_ino
    rollup = build(settings, day("2024-03-31"))
    with duckdb.connect(str(settings.warehouse_path)) as db:
        db.execute(
            "update usage_event_partials_daily set sum_quantity = sum_quantity + 1"
            " where usage_date = '2024-03-31' and event_type = 'api_call'"
        )
    failed = {result.name for result in blocking_failures(rollup.audit())}
    assert {
        "months_equal_their_days",
        "organisations_equal_users_daily",
        "platform_equals_users_daily",
    } <= failed
    with pytest.raises(UsagePipelineError, match=r"Blocking checks failed: .*organisations_equal"):
        rollup.publish("tampered")
    assert settings.snapshot_path.stat().st_ino == inode
    assert snapshot_tables(settings) == before
    assert postgres_tables(source.url) == before
    # The next night is about another day, and still heals the pending one.
    roll_up(settings, day("2024-04-01"))
    assert numbers_only(snapshot_tables(settings)) == numbers_only(before)


def test_a_deleted_warehouse_is_rebuilt_from_landing(
    source: AppDatabase, settings: Settings
) -> None:
    before = snapshot_tables(settings)
    settings.warehouse_path.unlink()
    extracted = landed_manifests(settings)[date(2024, 3, 30)].extracted_at
    roll_up(settings, day("2024-04-01"))
    assert landed_manifests(settings)[date(2024, 3, 30)].extracted_at == extracted
    assert snapshot_tables(settings) == before


@pytest.mark.parametrize(
    ("view", "table", "condition"),
    [
        ("usage_daily", "usage_event_partials_daily", "usage_date = '2024-03-31'"),
        ("usage_monthly", "usage_partials_monthly", "month = '2024-03-01'"),
    ],
)
def test_who_asks_a_view_for_a_day_does_not_read_its_history(
    settings: Settings, view: str, table: str, condition: str
) -> None:
    with duckdb.connect(str(settings.warehouse_path)) as db:
        asked = f"explain (format json) select sum(total_quantity) from {view} where {condition}"
        nodes = json.loads(db.execute(asked).fetchall()[0][1])
    scans = {}
    for node in nodes:  # grows while its children are found
        nodes += node["children"]
        scans[str(node["extra_info"].get("Table")).rpartition(".")[2]] = node["extra_info"]
    assert condition.split("'")[1] in str(scans[table]["Filters"])


def test_each_pass_of_a_rollup_sees_its_own_window(new_database: Any, make_settings: Any) -> None:
    """Two days apart are two passes of dbt in one process, each with an event of no known type."""
    database: AppDatabase = new_database()
    instants = ["2024-03-30T12:00Z", "2024-04-02T12:00Z"]
    database.insert(
        "usage_events",
        [
            (str(UUID(int=n)), str(UUID(int=7)), None, "api_cal", None, 1, at)
            for n, at in enumerate(instants)
        ],
    )
    settings = make_settings(
        USAGE_APP_DATABASE_URL=database.url, USAGE_START_DATE="2024-03-30", USAGE_TIMEZONE="UTC"
    )
    roll_up(settings, day("2024-03-30"), day("2024-04-02"))
    query = "select usage_date::text from invalid_usage_events order by 1"
    assert snapshot_query(settings, query) == [("2024-03-30",), ("2024-04-02",)]


@pytest.fixture(scope="module")
def rebuilt(
    source: AppDatabase, make_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, list[Any]], Settings]:
    """One home whose meters change, then whose zone changes, each with a rollup of one day only.

    Gives the metrics of some tables and the daily totals with the changed meters, and the settings
    with the changed zone (and the default meters again).
    """
    variables = {"USAGE_APP_DATABASE_URL": source.url, "USAGE_PUBLISH_SCHEMA": "changing"}
    first = make_settings(**variables)
    roll_up(first, RANGE)

    meters = tmp_path_factory.mktemp("meters") / "meters.yml"
    meters.write_text("meters:\n  - {key: calls, event_type: api_call, aggregation: count}\n")
    counting = make_settings(**variables, USAGE_HOME=first.home, USAGE_METERS_FILE=meters)
    roll_up(counting, day("2024-04-01"))
    found = {
        table: snapshot_query(counting, f"select distinct metric_type from {table}")
        for table in ("usage_daily", "usage_monthly", "usage_summary", "usage_aggregations")
    }
    found["totals"] = snapshot_query(
        counting, "select usage_date, total_quantity from platform_usage_daily order by 1"
    )

    moved = make_settings(**variables, USAGE_HOME=first.home, USAGE_TIMEZONE=NEW_YORK)
    roll_up(moved, day("2024-04-01"))
    return found, moved


def test_changed_meters_rebuild_every_landed_day(source: AppDatabase, rebuilt: Any) -> None:
    found, _ = rebuilt
    assert found.pop("totals") == source.query(
        "select (created_at at time zone 'UTC')::date, count(*)::numeric from usage_events where"
        " event_type = 'api_call' and created_at >= '2024-03-30Z' and created_at < '2024-04-02Z'"
        " group by 1 order by 1"
    )
    assert all(metrics == [("calls",)] for metrics in found.values()), found


def test_a_changed_zone_lands_every_day_again(source: AppDatabase, rebuilt: Any) -> None:
    _, moved = rebuilt
    assert {m.timezone for m in landed_manifests(moved).values()} == {NEW_YORK}
    assert_equals_plain_sql(source, moved)


def test_a_changed_zone_leaves_no_period_of_the_old_one(source: AppDatabase, rebuilt: Any) -> None:
    _, moved = rebuilt
    starts = snapshot_query(
        moved, "select distinct period_start from usage_aggregations order by period_start"
    )
    midnights = ("2024-03-01T05:00Z", "2024-03-30T04:00Z", "2024-03-31T04:00Z", "2024-04-01T04:00Z")
    assert starts == [(datetime.fromisoformat(text),) for text in midnights]
    assert_published_alike(moved, source.url)


@dataclass(frozen=True)
class Odd:
    """A source without unique ids, rolled up once, with something odd on each day."""

    database: AppDatabase
    settings: Settings
    results: dict[str, NodeResult]
    tables: dict[str, list[Row]]

    def of(self, table: str, *days: str) -> list[Row]:
        return [row for row in self.tables[table] if str(row["usage_date"]) in days]


@pytest.fixture(scope="module")
def odd(new_database: Any, make_settings: Any) -> Odd:
    database: AppDatabase = new_database()
    database.execute(
        "alter table usage_events drop constraint usage_events_pkey;"
        " alter table usage_events alter id drop not null"
    )
    user, first = str(UUID(int=0xADA << 96)), str(UUID(int=1))
    database.insert(
        "usage_events",
        [
            (number and str(UUID(int=number)), user, None, event_type, None, quantity, at)
            for number, event_type, quantity, at in (
                (1, "api_call", 1, "2024-03-30T10:00Z"),  # same day: the later one wins
                (1, "api_call", 2, "2024-03-30T11:00Z"),
                (2, "api_call", 40, "2024-03-30T12:00Z"),  # same instant: the greater one wins
                (2, "api_call", 30, "2024-03-30T12:00Z"),
                (3, "api_call", 100, "2024-03-30T13:00Z"),  # on two days: it counts on the later
                (3, "api_call", 200, "2024-03-31T13:00Z"),
                (4, "api_call", 1000, "2024-03-31T14:00Z"),  # an exact copy counts once
                (4, "api_call", 1000, "2024-03-31T14:00Z"),
                (11, "api_call", "6e28", "2024-04-01T10:00Z"),  # beyond 29 digits together
                (12, "storage_used", "6e28", "2024-04-01T10:00Z"),
                (21, "api_call", 5, "2024-04-02T12:00Z"),
                (None, "api_call", 3, "2024-04-02T12:00Z"),
                (None, "api_call", 2, "2024-04-02T12:00Z"),
                (None, "api_call", 2, "2024-04-02T12:00Z"),
            )
        ],
    )
    event = (str(UUID(int=31)), first, None, "api_call", None, 1, "2024-04-03T12:00Z")
    database.insert("usage_events", [event])
    beginnings = ("-infinity", "infinity", "2024-03-01T00:00Z")
    database.insert(
        "users", [(str(UUID(int=n)), None, at, None) for n, at in enumerate(beginnings, 1)]
    )
    database.insert("orgs", [(first, "endless", "-infinity", "infinity")])
    database.insert(
        "subscriptions", [(first, first, None, "pro", "active", "-infinity", "infinity")]
    )
    limits = (("pro", "1e100"), ("gold", "NaN"), ("basic", "100"), ("endless", None))
    database.insert("plan_limits", [(plan, "api_call", limit) for plan, limit in limits])

    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    rollup = build(settings, days("2024-03-30", "2024-04-04"))
    results = {result.name: result for result in rollup.audit()}
    assert blocking_failures([*results.values()]) == []
    rollup.publish("odd")
    return Odd(database, settings, results, assert_published_alike(settings, database.url))


def test_without_unique_ids_the_newest_then_the_greatest_row_wins_and_losers_are_counted(
    odd: Odd,
) -> None:
    rows = odd.of("usage_daily", "2024-03-30", "2024-03-31")
    assert sorted((r["usage_date"], r["total_quantity"], r["event_count"]) for r in rows) == [
        (date(2024, 3, 30), 42, 2),
        (date(2024, 3, 31), 1200, 2),
    ]
    # 03-30 left out 1, 30 and 100; 03-31 left out one copy
    duplicates = {str(d): m.duplicate_rows for d, m in landed_manifests(odd.settings).items()}
    none = dict.fromkeys(("2024-04-01", "2024-04-02", "2024-04-03"), 0)
    assert duplicates == {"2024-03-30": 3, "2024-03-31": 1, **none}
    assert odd.results["no_duplicate_events"].status == "warn"
    assert odd.results["no_duplicate_events"].failures == 2  # days


def test_a_day_whose_types_add_up_beyond_29_digits_is_rolled_up(odd: Odd) -> None:
    manifest = landed_manifests(odd.settings)[date(2024, 4, 1)]
    assert manifest.sum_quantity == "120000000000000000000000000000.000000000"
    rows = odd.of("usage_daily", "2024-04-01")
    totals = {row["metric_type"]: row["total_quantity"] for row in rows}
    assert totals == {"api_call": Decimal("6e28"), "storage_used": Decimal("6e28")}


def test_landing_reads_only_and_leaves_no_temporary_file(
    source: AppDatabase, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    (manifest,) = land_events(settings, [date(2024, 3, 31)])
    ((rows, total),) = source.query(
        "select count(*), sum(quantity::numeric(38, 9)) from usage_events"
        " where created_at >= '2024-03-31Z' and created_at < '2024-04-01Z'"
    )
    assert (manifest.rows, Decimal(manifest.sum_quantity)) == (rows, total)
    assert list(settings.scratch_dir.iterdir()) == []


def test_the_source_sees_who_reads_and_that_it_only_reads(
    new_database: Any, make_settings: Any
) -> None:
    database: AppDatabase = new_database()
    seen = ", ".join(
        f"'{name}', current_setting('{name}')"
        for name in ("application_name", "transaction_read_only", "statement_timeout")
    )
    database.execute(f"""
        alter table usage_events rename to events;
        create view usage_events as select id, user_id, org_id, event_type,
            jsonb_build_object({seen}) as event_data, quantity, created_at from events;
        insert into events values (gen_random_uuid(), gen_random_uuid(), null, 'api_call', null, 1,
            '2024-03-31T12:00Z')
    """)
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    land_events(settings, [date(2024, 3, 31)])
    with duckdb.connect() as db:
        files = data_files(settings.events_dir, date(2024, 3, 31))
        landed = db.read_parquet(list(map(str, files)))
        ((event_data,),) = landed.select("event_data").fetchall()
    assert json.loads(event_data) == {
        "application_name": "usage-pipeline",
        "transaction_read_only": "on",
        "statement_timeout": "30min",
    }


@pytest.fixture(scope="module")
def moved_invalid(new_database: Any, make_settings: Any) -> dict[str, list[Row]]:
    """Of three events of one day, two of no known type move two days, forth and back."""
    database: AppDatabase = new_database()
    database.execute("alter table usage_events alter event_type type text")
    user = str(UUID(int=0xADA << 96))
    database.insert(
        "usage_events",
        [
            (str(UUID(int=1)), user, None, "of_no_known_type", None, 1, "2024-03-30T10:00Z"),
            (str(UUID(int=2)), user, None, "of_no_known_type", None, 1, "2024-03-30T10:00Z"),
            (str(UUID(int=3)), user, None, "api_call", None, 5, "2024-03-30T11:00Z"),
        ],
    )
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    roll_up(settings, day("2024-03-30"))
    for n, new_day in ((1, "2024-04-01"), (2, "2024-03-28")):
        database.execute(
            "update usage_events set created_at = %s where id = %s",
            (f"{new_day}T10:00Z", str(UUID(int=n))),
        )
        roll_up(settings, day(new_day))
    assert landed_manifests(settings)[date(2024, 3, 30)].rows == 1
    return assert_published_alike(settings, database.url)


@pytest.mark.parametrize(("number", "new_day"), [(1, date(2024, 4, 1)), (2, date(2024, 3, 28))])
def test_an_invalid_event_that_moved_is_one_row_of_its_new_day(
    number: int, new_day: date, moved_invalid: dict[str, list[Row]]
) -> None:
    event = str(UUID(int=number))
    invalid = [(r["event_id"], r["usage_date"]) for r in moved_invalid["invalid_usage_events"]]
    assert [(moved, on) for moved, on in invalid if moved == event] == [(event, new_day)]
    assert len(invalid) == 2
    totals = [(r["usage_date"], r["total_quantity"]) for r in moved_invalid["usage_daily"]]
    assert totals == [(date(2024, 3, 30), 5)]


def test_unusable_accounts_and_limits_stop_nothing_are_in_no_total_and_warn(
    odd: Odd, copy_of: Any
) -> None:
    warned = {r.name: r.failures for r in odd.results.values() if r.status == "warn"}
    # two users, the organisation and the subscription; two limits
    assert warned["accounts_have_a_beginning"] == 4
    assert warned["plan_limits_can_be_held"] == 2
    said = {"accounts_have_a_beginning: 4 rows", "plan_limits_can_be_held: 2 rows"}
    assert said <= set(notices(odd.settings))
    assert snapshot_query(
        odd.settings,
        "select total_users, active_users, total_orgs, active_subscriptions, event_count"
        " from platform_metrics_daily where metric_date = '2024-04-03'",
    ) == [(1, 1, 0, 0, 1)]

    # A person is erased, say, before the first night of a release that landed no text of limits.
    _, settings = copy_of(odd.database, odd.settings)
    landed = settings.landing_dir / "plan_limits.parquet"
    duckdb.sql(
        f"copy (select * exclude (limit_raw) from '{landed}') to '{landed}.old' (format parquet)"
    )
    landed.with_name(f"{landed.name}.old").replace(landed)
    Rollup(settings).build_staging()
    with duckdb.connect(str(settings.warehouse_path)) as db:
        counted = "select count(*), count(limit_quantity), count(limit_raw) from stg_plan_limits"
        assert db.execute(counted).fetchall() == [(4, 1, 0)]


def test_events_without_an_id_are_set_aside_each(odd: Odd) -> None:
    assert [row["total_quantity"] for row in odd.of("usage_daily", "2024-04-02")] == [5]
    assert sorted((r["event_id"], r["quantity"]) for r in odd.tables["invalid_usage_events"]) == [
        ("no id 2024-04-02 1", "2"),
        ("no id 2024-04-02 2", "2"),
        ("no id 2024-04-02 3", "3"),
    ]
