"""What tests share: a source to fill, rollups step by step, and published tables to compare."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import duckdb
import psycopg2
import psycopg2.extensions
from psycopg2.extras import execute_values

from usage_pipeline.audit.gate import blocking_failures
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.infra.postgres import connect
from usage_pipeline.publishing.publisher import PublishReport
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving.tables import RECORDS, SERVED_TABLES
from usage_pipeline.serving.views import RELATIONS
from usage_pipeline.settings import Settings

# Columns that say when the pipeline did something, not what the numbers are.
BOOKKEEPING = {"created_at", "updated_at", "detected_at", "checked_at"}
Row = dict[str, Any]


@dataclass(frozen=True)
class AppDatabase:
    """A source database of one test."""

    url: str

    @property
    def name(self) -> str:
        return str(psycopg2.extensions.parse_dsn(self.url)["dbname"])

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        connection = psycopg2.connect(self.url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
        finally:
            connection.close()

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute("set time zone 'UTC'")
                cursor.execute(statement, parameters or None)
                return cursor.fetchall()
        finally:
            connection.close()

    def load_csv(self, table: str, rows: TextIO) -> None:
        with connect(self.url) as connection, connection.cursor() as cursor:
            cursor.copy_expert(f"copy {table} from stdin (format csv, header)", rows)

    def insert(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Rows in the order of the table's columns."""
        connection = psycopg2.connect(self.url)
        try:
            with connection, connection.cursor() as cursor:
                execute_values(cursor, f"insert into {table} values %s", list(rows))
        finally:
            connection.close()


def days(start: str, end: str) -> DayRange:
    """Local days `[start, end)`."""
    return DayRange(date.fromisoformat(start), date.fromisoformat(end))


def day(start: str) -> DayRange:
    """One local day."""
    return ranges_of_days([date.fromisoformat(start)])[0]


def build(settings: Settings, *ranges: DayRange, allow_fewer_events: bool = True) -> Rollup:
    """Everything of a rollup up to the audit, by an operator who trusts the source."""
    rollup = Rollup(settings)
    rollup.allow_fewer_events = allow_fewer_events
    rollup.land_accounts()
    rollup.land_events([each for r in ranges for each in r.days()])
    rollup.build_staging()
    rollup.build_days(ranges)
    rollup.build_months(ranges)
    rollup.build_current()
    return rollup


def roll_up(
    settings: Settings, *ranges: DayRange, run_id: str = "test", allow_fewer_events: bool = True
) -> PublishReport:
    """A whole rollup as the jobs do it; no blocking check may fail."""
    rollup = build(settings, *ranges, allow_fewer_events=allow_fewer_events)
    failures = blocking_failures(rollup.audit())
    assert not failures, [(failure.name, failure.message) for failure in failures]
    report = rollup.publish(run_id)
    rollup.raise_alerts()
    return report


def sql_of_models(settings: Settings, *paths: str) -> list[dict[str, str]]:
    """What dbt runs for models, by name: on an empty warehouse, and on one that they are in.

    Args:
        paths: below `dbt_project/models`.
    """
    compiled = settings.dbt_target_dir / "compiled" / "usage_pipeline" / "models"
    only = day("2024-03-30")
    rollup = build(settings, only)
    found = [{Path(path).stem: (compiled / path).read_text() for path in paths}]
    rollup.build_days([only])
    rollup.build_current()
    return [*found, {Path(path).stem: (compiled / path).read_text() for path in paths}]


def warehouse_in_memory(first: date, last: date) -> duckdb.DuckDBPyConnection:
    """With a calendar, and no landed day, for the SQL of models."""
    db = duckdb.connect()
    db.execute(f"""
        attach ':memory:' as warehouse; use warehouse;
        create table stg_calendar as
        select cast(day as date) as calendar_date
        from range(date '{first}', date '{last}', interval 1 day) as days (day);
        create table stg_landed_days (usage_date date);
    """)
    return db


def triggers(settings: Settings) -> dict[str, Any]:
    """Schedules and sensors by name, without the assets, for which dbt would have to parse."""
    from usage_pipeline.orchestration.jobs import build_jobs
    from usage_pipeline.orchestration.partitions import Partitions
    from usage_pipeline.orchestration.schedules import build_schedules
    from usage_pipeline.orchestration.sensors import build_sensors

    partitions = Partitions(settings)
    schedules = build_schedules(settings, partitions)
    sensors = build_sensors(settings, build_jobs())
    made: list[Any] = [*schedules, *sensors]
    return {trigger.name: trigger for trigger in made}


def snapshot_query(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    """What a reader of serving/usage.duckdb gets."""
    with duckdb.connect(str(settings.snapshot_path), read_only=True) as db:
        db.execute("set TimeZone = 'UTC'")
        return [tuple(_plain(cell) for cell in row) for row in db.execute(statement).fetchall()]


def snapshot_tables(settings: Settings) -> dict[str, list[Row]]:
    """All published tables of the snapshot, rows sorted."""
    with duckdb.connect(str(settings.snapshot_path), read_only=True) as db:
        db.execute("set TimeZone = 'UTC'")
        return {name: _rows(db.execute(f"from {name}")) for name in RELATIONS}


def parquet_tables(settings: Settings) -> dict[str, list[Row]]:
    """All published tables of serving/parquet, rows sorted; a dated table may have no file."""
    found: dict[str, list[Row]] = {}
    with duckdb.connect() as db:
        db.execute("set TimeZone = 'UTC'")
        for table in SERVED_TABLES:
            folder = settings.serving_dir / "parquet" / table.name
            if not any(folder.rglob("*.parquet")):
                found[table.name] = []
                continue
            files = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = {bool(table.dated)}"
            files += ", hive_types = {'month': date})" if table.dated else ")"
            hidden = "exclude (month)" if table.dated and table.grain != "month" else ""
            found[table.name] = _rows(db.execute(f"select * {hidden} from {files}"))
    return found


def postgres_tables(url: str, schema: str = "usage") -> dict[str, list[Row]]:
    """All published tables of the publish schema, rows sorted."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            found: dict[str, list[Row]] = {}
            for name in RELATIONS:
                cursor.execute(f'select * from "{schema}".{name}')
                found[name] = _rows(cursor)
            return found
    finally:
        connection.close()


def assert_published_alike(settings: Settings, url: str) -> dict[str, list[Row]]:
    """The three outputs hold the same rows; gives them, those of the views as well."""
    snapshot, parquet, postgres = (
        snapshot_tables(settings),
        parquet_tables(settings),
        postgres_tables(url, settings.publish_schema),
    )
    for name, rows in snapshot.items():
        assert parquet.get(name, rows) == rows, f"Parquet differs from the snapshot in {name}"
        assert postgres[name] == rows, f"Postgres differs from the snapshot in {name}"
    return snapshot


def numbers_only(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Tables without the columns that say when the pipeline ran, and without the ledger and what
    else says how the numbers came about."""
    return {
        name: _sorted({c: v for c, v in row.items() if c not in BOOKKEEPING} for row in rows)
        for name, rows in tables.items()
        if name not in RECORDS
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    """A golden file: lines that start with # are comments."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if line[0] not in "#\n"))


def _rows(cursor: Any) -> list[Row]:
    names = [column[0] for column in cursor.description]
    return _sorted(
        {name: _plain(cell) for name, cell in zip(names, row, strict=True)}
        for row in cursor.fetchall()
    )


def _sorted(rows: Iterable[Row]) -> list[Row]:
    ordered = ({name: row[name] for name in sorted(row)} for row in rows)
    return sorted(ordered, key=lambda row: str(list(row.values())))


def _plain(cell: Any) -> Any:
    """The same value from DuckDB, Parquet and psycopg2: ids and JSON as text, instants in UTC."""
    if isinstance(cell, UUID):
        return str(cell)
    if isinstance(cell, datetime):
        return cell.astimezone(UTC)
    if isinstance(cell, dict):
        return json.dumps(cell, sort_keys=True)
    if isinstance(cell, str) and cell.startswith('{"event_count"'):
        return json.dumps(json.loads(cell), sort_keys=True)
    if isinstance(cell, Decimal):
        return Decimal(format(cell, ".9f"))
    return cell
