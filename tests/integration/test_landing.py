"""Landing: what a partition holds, when it is extracted again, and what reads the source may do."""

from __future__ import annotations

import json
import traceback
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import duckdb
import psycopg2
import pytest
from support import AppDatabase

from usage_pipeline.app_db.schema import create_schema
from usage_pipeline.app_db.session import ids_are_unique
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.postgres import connect
from usage_pipeline.landing.accounts import ACCOUNT_TABLES, land_accounts
from usage_pipeline.landing.calendar import land_calendar
from usage_pipeline.landing.erasing import days_of_user, erase_user
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.landing.stale_days import changed_days, days_to_repair
from usage_pipeline.settings import Settings

DAY = date(2024, 3, 10)
ADA = str(UUID(int=0xADA << 96))


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    database: AppDatabase = new_database()
    database.insert("users", [(ADA, "ada@example.com", "2024-01-01T00:00Z", None)])
    database.insert(
        "usage_events",
        [
            (str(UUID(int=n)), ADA, None, "api_call", data, quantity, created_at)
            for n, data, quantity, created_at in (
                (1, '{"ms": 1}', "1.5", "2024-03-10T05:00Z"),  # 00:00 in New York
                (2, None, "2.0000000005", "2024-03-11T03:59:59.999999Z"),  # its last microsecond
                (3, None, "NaN", "2024-03-10T12:00Z"),
                (4, None, "7", "2024-03-11T04:00Z"),  # the next day
            )
        ],
    )
    return database


def partition(settings: Settings, day: date = DAY) -> Path:
    return settings.events_dir / f"usage_date={day}"


def test_a_partition_is_two_halves_with_a_manifest(source: AppDatabase, make_settings: Any) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_TIMEZONE="America/New_York")
    (manifest,) = land_events(settings, [DAY])
    assert sorted(path.name for path in partition(settings).iterdir()) == [
        "manifest.json",
        "part-0.parquet",
        "part-1.parquet",
    ]
    assert (manifest.rows, manifest.invalid_rows, manifest.duplicate_rows) == (3, 1, 0)
    assert Decimal(manifest.sum_quantity) == Decimal("3.500000001")  # NaN adds nothing
    assert manifest.max_created_at == "2024-03-11T03:59:59.999999+00:00"
    assert landed_manifests(settings) == {DAY: manifest}
    rows = duckdb.sql(
        f"select cast(id as varchar)[-1], event_data, quantity, quantity_raw"
        f" from '{partition(settings)}/part-*.parquet' order by id"
    ).fetchall()
    assert rows == [
        ("1", '{"ms": 1}', Decimal("1.500000000"), None),
        ("2", None, Decimal("2.000000001"), "2.0000000005"),
        ("3", None, None, "NaN"),
    ]
    # The clock goes forward: half of these 23 hours are over at 16:30 UTC.
    halves = duckdb.sql(
        "select cast(id as varchar)[-1], filename[-14:] from read_parquet("
        f"'{partition(settings)}/part-*.parquet', filename = true) order by id"
    ).fetchall()
    assert halves == [("1", "part-0.parquet"), ("2", "part-1.parquet"), ("3", "part-0.parquet")]


def test_a_day_without_events_is_an_empty_partition(
    source: AppDatabase, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    (manifest,) = land_events(settings, [date(2024, 3, 12)])
    assert (manifest.rows, manifest.max_created_at) == (0, None)
    assert Decimal(manifest.sum_quantity) == 0
    data = partition(settings, date(2024, 3, 12)) / "part-*.parquet"
    assert duckdb.sql(f"select count(*) from '{data}'").fetchall() == [(0,)]


def test_event_data_stays_in_the_source_where_it_is_not_wanted(
    source: AppDatabase, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_LAND_EVENT_DATA=False)
    land_events(settings, [DAY])
    data = partition(settings) / "part-*.parquet"
    assert duckdb.sql(f"select count(*), count(event_data) from '{data}'").fetchall() == [(2, 0)]
    assert days_to_repair(settings, needs_event_data=False) == []
    assert days_to_repair(settings, needs_event_data=True) == [DAY]


def test_a_day_of_an_older_release_is_taken_over_and_of_a_newer_one_refused(
    source: AppDatabase, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    (landed,) = land_events(settings, [DAY])
    manifest = partition(settings) / "manifest.json"
    recorded = json.loads(manifest.read_text())
    # They had one file.
    first, second = (partition(settings) / f"part-{half}.parquet" for half in (0, 1))
    duckdb.read_parquet([str(first), str(second)]).write_parquet(str(partition(settings) / "one"))
    (partition(settings) / "one").replace(first)
    second.unlink()
    size = first.stat().st_size
    del recorded["fingerprint"], recorded["files"], recorded["previous_files"]
    manifest.write_text(json.dumps(recorded | {"schema_version": 1, "bytes": size}))

    taken_over = replace(landed, files={"part-0.parquet": size})
    assert landed_manifests(settings) == {DAY: taken_over}
    assert days_to_repair(settings, needs_event_data=True) == []
    assert changed_days(settings, DayRange(DAY, DAY + timedelta(days=1))) == {}
    land_events(settings, [DAY])
    assert first.exists() and second.exists()
    assert days_to_repair(settings, needs_event_data=True) == []

    manifest.write_text(json.dumps(recorded | {"schema_version": 99}))
    with pytest.raises(UsagePipelineError, match=r"2024-03-10 was landed by a newer release"):
        landed_manifests(settings)


@pytest.mark.parametrize(
    "damage",
    ["no manifest", "half a manifest", "no data", "short data", "other zone"],
)
def test_a_damaged_or_differently_cut_day_is_due_again(
    damage: str, source: AppDatabase, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    land_events(settings, [DAY])
    assert days_to_repair(settings, needs_event_data=True) == []
    manifest, data = (partition(settings) / n for n in ("manifest.json", "part-0.parquet"))
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "no data":
        data.unlink()
    elif damage == "short data":
        data.write_bytes(data.read_bytes()[:-1])
    else:
        changed = {"timezone": "Asia/Tokyo"}
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    assert days_to_repair(settings, needs_event_data=True) == [DAY]
    land_events(settings, [DAY])
    assert days_to_repair(settings, needs_event_data=True) == []


def test_snapshots_hold_no_e_mail_address(source: AppDatabase, make_settings: Any) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    assert land_accounts(settings) == dict.fromkeys(ACCOUNT_TABLES, 0) | {"users": 1}
    for table in ACCOUNT_TABLES:
        path = settings.landing_dir / f"{table}.parquet"
        columns = [row[0] for row in duckdb.sql(f"describe from '{path}'").fetchall()]
        assert "email" not in columns
        assert b"ada@example.com" not in path.read_bytes()


@pytest.mark.parametrize(("zone", "hours"), [("America/New_York", 23), ("UTC", 24)])
def test_the_calendar_has_the_instants_of_local_days(
    zone: str, hours: int, make_settings: Any
) -> None:
    settings = make_settings(USAGE_TIMEZONE=zone)
    land_calendar(settings)
    path = settings.landing_dir / "calendar.parquet"
    assert duckdb.sql(
        f"select date_diff('hour', starts_at, ends_at) from '{path}' where calendar_date = '{DAY}'"
    ).fetchall() == [(hours,)]
    assert duckdb.sql(
        f"select count(*) from (select ends_at <> lead(starts_at) over (order by calendar_date) as"
        f" gap from '{path}') where gap"
    ).fetchall() == [(0,)]


def test_a_role_with_select_only_is_enough(source: AppDatabase, make_settings: Any) -> None:
    source.execute(
        "create role landing_reader login; grant select on all tables in schema public to"
        " landing_reader"
    )
    url = source.url.replace("postgresql://postgres@", "postgresql://landing_reader@")
    settings = make_settings(USAGE_APP_DATABASE_URL=url)
    (manifest,) = land_events(settings, [DAY])
    land_accounts(settings)
    assert manifest.rows == 2  # UTC: events 1 and 3


def test_a_failed_extraction_leaves_the_landed_day_as_it_was(
    source: AppDatabase, new_database: Any, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    land_events(settings, [DAY])
    before = {path.name: path.read_bytes() for path in partition(settings).iterdir()}
    broken = new_database()
    broken.execute("drop table usage_events; create table usage_events (id uuid, user_id uuid)")
    other = make_settings(USAGE_APP_DATABASE_URL=broken.url, USAGE_HOME=settings.home)
    with pytest.raises(UsagePipelineError, match="column is missing"):
        land_events(other, [DAY])
    assert {path.name: path.read_bytes() for path in partition(settings).iterdir()} == before


def test_the_committed_sample_lands_as_its_two_days(new_database: Any, make_settings: Any) -> None:
    """data/sample/usage_events.csv shows the accepted shape. Sums by hand: 1 + 1 + 1200 - 200 +
    1048576 on the leap day, whose last event is a microsecond before midnight; then
    1 + 0.123456789 + 1."""
    database: AppDatabase = new_database()
    sample = Path(__file__).parents[2] / "data" / "sample" / "usage_events.csv"
    with sample.open() as rows:
        database.load_csv("usage_events", rows)
    settings: Settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    leap_day, next_day = land_events(settings, [date(2024, 2, 29), date(2024, 3, 1)])
    assert (leap_day.rows, Decimal(leap_day.sum_quantity)) == (5, Decimal("1049578"))
    assert (next_day.rows, Decimal(next_day.sum_quantity)) == (3, Decimal("2.123456789"))


def test_a_day_before_a_later_start_from_which_a_person_was_erased_is_no_damaged_one(
    source: AppDatabase, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    land_events(settings, [DAY])
    later = make_settings(USAGE_HOME=settings.home, USAGE_START_DATE="2024-04-01")
    assert days_of_user(later, UUID(ADA)) == [DAY]
    erase_user(later, UUID(ADA), [DAY])
    assert days_of_user(settings, UUID(ADA)) == []
    assert days_to_repair(settings, needs_event_data=False) == []


@pytest.mark.parametrize("refused", ["at login", "at DuckDB's second connection"])
def test_no_error_of_the_source_shows_the_password(
    refused: str, new_database: Any, make_settings: Any
) -> None:
    """Nor its traceback, whose causes and contexts `--debug` prints."""
    source: AppDatabase = new_database()
    password, role = "p4ss-" + "marker", f"guest_{source.url.split('?')[0].rsplit('/', 1)[1]}"
    source.execute(
        f"create role {role} login password 'another' connection limit 1;"
        f" grant select on all tables in schema public to {role}"
    )
    if refused == "at login":
        ((hba,),) = source.query("show hba_file")
        rules = Path(hba).read_text()
        Path(hba).write_text(f"local all {role} scram-sha-256\n{rules}")
        source.execute("select pg_reload_conf()")
    url = source.url.replace("postgres@", f"{role}:{password}@")
    with pytest.raises(UsagePipelineError) as caught:
        land_events(make_settings(USAGE_APP_DATABASE_URL=url), [DAY])
    shown = "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error:
        shown += repr(error)
        error = error.__cause__ or error.__context__
    assert {"at login": "refused the login"}.get(refused, "too many connections") in shown
    assert password not in shown


def test_what_is_no_day_in_landing_is_left_alone(source: AppDatabase, make_settings: Any) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    land_events(settings, [DAY])
    for name in ("usage_date=foo", "usage_date=20240312", "notes"):
        (settings.events_dir / name).mkdir()
    for name in (".DS_Store", "usage_date=2024-03-13", f"usage_date={DAY}/.DS_Store"):
        (settings.events_dir / name).write_bytes(b"\0")
    assert list(landed_manifests(settings)) == [DAY]
    assert days_to_repair(settings, needs_event_data=True) == []
    assert days_of_user(settings, UUID(ADA)) == [DAY]


COLUMNS = "user_id, org_id, event_type, event_data, quantity, created_at"


@pytest.mark.parametrize(
    ("query", "unique"),
    [
        (f"select id, {COLUMNS} from usage_events", True),
        (f"select id, {COLUMNS} from usage_events where quantity > 0", True),
        (
            f"select id, {COLUMNS.replace('org_id', '(select id from orgs limit 1) as org_id')}"
            " from usage_events",
            True,
        ),
        (f"select id, {COLUMNS} from usage_events, generate_series(1, 2)", False),
        (f"select id, {COLUMNS}, generate_series(1, 2) from usage_events", False),
        (f"select id, {COLUMNS} from usage_events, unnest(array[1, 2])", False),
        (f"select id, {COLUMNS} from usage_events join plan_limits on true", False),
        (
            f"select id, {COLUMNS} from usage_events"
            f" union all select id, {COLUMNS} from usage_events",
            False,
        ),
        (f"select org_id as id, {COLUMNS} from usage_events", False),
    ],
)
def test_only_the_scan_of_one_table_vouches_for_unique_ids(
    query: str, unique: bool, source: AppDatabase
) -> None:
    with connect(source.url) as postgres:
        assert ids_are_unique(postgres, query) is unique


@pytest.mark.parametrize("reverse", [False, True])
def test_of_rows_that_tie_the_same_one_wins_in_whatever_order_they_were_written(
    reverse: bool, new_database: Any, make_settings: Any
) -> None:
    database: AppDatabase = new_database()
    database.execute("alter table usage_events drop constraint usage_events_pkey")
    rows = [
        (str(UUID(int=1)), user, None, kind, data, 1, "2024-03-10T05:00Z")
        for user, kind, data in (
            (str(UUID(int=2)), "api_call", '{"n": 1}'),
            (str(UUID(int=2)), "api_call", '{"n": 2}'),
            (str(UUID(int=2)), "user_active", '{"n": 1}'),
            (str(UUID(int=3)), "api_call", '{"n": 1}'),
        )
    ]
    database.insert("usage_events", reversed(rows) if reverse else rows)
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    (manifest,) = land_events(settings, [DAY])
    assert (manifest.rows, manifest.duplicate_rows) == (1, 3)
    data = partition(settings) / "part-*.parquet"
    kept = duckdb.sql(
        f"select cast(user_id as varchar)[-1], event_data from '{data}'"
        " where event_type = 'api_call'"
    )
    assert kept.fetchall() == [("2", '{"n": 1}')]


def test_a_source_of_another_encoding_is_landed_as_utf_8(
    new_database: Any, make_settings: Any
) -> None:
    name = "latin1_source"
    server = new_database(schema=False).url
    connection = psycopg2.connect(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    connection.close()
    url = server.replace(urlsplit(server).path, f"/{name}")
    create_schema(url)
    AppDatabase(url).execute(
        "insert into usage_events (id, user_id, event_type, event_data, quantity, created_at)"
        " values (%s, %s, 'café', '{\"drink\": \"café\"}', 1, '2024-03-10T12:00Z')",
        (ADA, ADA),
    )
    settings = make_settings(USAGE_APP_DATABASE_URL=url)
    land_events(settings, [DAY])
    landed = duckdb.sql(
        f"select event_type, event_data from '{partition(settings)}/part-*.parquet'"
    )
    assert landed.fetchall() == [("café", '{"drink": "café"}')]


def test_unusable_instants_of_accounts_are_landed_as_unknown_and_limits_with_their_text(
    new_database: Any, make_settings: Any
) -> None:
    database: AppDatabase = new_database()
    database.execute("""
        insert into users values
            (gen_random_uuid(), null, '-infinity', 'infinity'),
            (gen_random_uuid(), null, '0044-03-15 BC', '294276-12-31'),
            (gen_random_uuid(), null, '4713-01-02 BC', '10000-01-01');
        insert into plan_limits values
            ('a', 'm', 1e100), ('b', 'm', 'NaN'), ('c', 'm', 12.5), ('d', 'm', null)
    """)
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    land_accounts(settings)
    users, limits = (settings.landing_dir / f"{t}.parquet" for t in ("users", "plan_limits"))
    assert (
        duckdb.sql(
            f"select created_at, deleted_at, created_date, deleted_date from '{users}'"
        ).fetchall()
        == [(None, None, None, None)] * 3
    )
    assert duckdb.sql(
        f"select limit_quantity, limit_raw from '{limits}' order by plan"
    ).fetchall() == [
        (None, f"1{'0' * 100}"),
        (None, "NaN"),
        (Decimal("12.5"), None),
        (None, None),
    ]
