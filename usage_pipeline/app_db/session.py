"""Reading the source: the reviewed queries, in read-only transactions of one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import duckdb
from psycopg2.extensions import connection as PostgresConnection

from usage_pipeline.app_db.schema_drift import read_shape, record_shape
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.infra.disk import disk_is_full
from usage_pipeline.infra.duckdb_files import load_postgres_extension, open_duckdb
from usage_pipeline.infra.postgres import APPLICATION_NAME, conceal, connect, database_error
from usage_pipeline.settings import Settings

STATEMENT_TIMEOUT = "30min"  # of one day's SELECT; a hung source must not hold a run for ever
_UUID = 2950  # as Postgres numbers its types


def source_query(table: str) -> str:
    """The reviewed SELECT that maps the application's table to the columns of the pipeline."""
    query = files("usage_pipeline.app_db").joinpath("queries", f"{table}.sql")
    return query.read_text("utf-8").strip().rstrip(";")


@dataclass
class Source:
    """The source attached to an in-memory DuckDB: read-only transactions of one snapshot.

    Attributes:
        transactions: connections to the DuckDB, each of them in a transaction of its own with a
            connection of its own to the source; for one half of a day each.
        uuids: by table, the columns of that type.
        rows_changed: see `count_changes`, just before the source was first looked at.
    """

    transactions: list[duckdb.DuckDBPyConnection]
    columns: dict[str, list[str]]
    unique_ids: bool
    uuids: dict[str, set[str]]
    opened_at: datetime
    rows_changed: str

    @property
    def db(self) -> duckdb.DuckDBPyConnection:
        return self.transactions[0]


def scan(query: str) -> str:
    """A table function that runs the query in Postgres, casts and all."""
    escaped = query.replace("'", "''")
    return f"postgres_query('app', '{escaped}')"


def _begin(transactions: Sequence[duckdb.DuckDBPyConnection]) -> None:
    """Begin in every connection, with the snapshot of the first one."""
    snapshot = None
    for db in transactions:

        def execute(statement: str, db: duckdb.DuckDBPyConnection = db) -> None:
            # Not as a parameter: binding the first one costs the import of pandas.
            escaped = statement.replace("'", "''")
            db.execute(f"call postgres_execute('app', '{escaped}')")

        db.execute("begin")
        if snapshot:
            execute(f"set transaction snapshot '{snapshot}'")
        execute(f"set local application_name = '{APPLICATION_NAME}'")
        execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")
        if not snapshot:
            exported = scan("select pg_export_snapshot() as snapshot")
            ((snapshot,),) = db.execute(f"from {exported}").fetchall()


@contextmanager
def open_source(
    settings: Settings, tables: tuple[str, ...], connections: int = 1
) -> Iterator[Source]:
    """Open the source for these tables of it.

    Args:
        connections: how many queries run at once, each in a transaction of the same snapshot.

    Raises:
        UsagePipelineError: the source cannot be read as the queries say.
    """
    url = app_database_url(settings)
    # psycopg2 first: its errors name what is wrong, DuckDB's wrap them.
    with connect(url) as postgres:
        described = {table: _describe(postgres, source_query(table)) for table in tables}
        columns = {table: [column.name for column in described[table]] for table in tables}
        oids = {column.table_oid for table in tables for column in described[table]}
        record_shape(settings, read_shape(postgres, oids - {None}))
        uuids = {t: {c.name for c in described[t] if c.type_code == _UUID} for t in tables}
        unique = "usage_events" in tables and ids_are_unique(postgres, source_query("usage_events"))
        changed = _count_changes(postgres, oids - {None})
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    opened_at = datetime.now(UTC)  # before the snapshot is taken, which the first query does
    with open_duckdb(settings, ":memory:") as db:
        load_postgres_extension(db)
        try:
            escaped = url.replace("'", "''")
            db.execute(f"attach '{escaped}' as app (type postgres, read_only)")
            transactions = [db, *(db.cursor() for _ in range(1, connections))]
            try:
                _begin(transactions)
                yield Source(transactions, columns, unique, uuids, opened_at, changed)
            finally:
                # Not left to closing, which ends the process when the connection is lost.
                for transaction in transactions:
                    with suppress(duckdb.Error):
                        transaction.rollback()
        except duckdb.Error as error:
            conceal(error)
            if disk_is_full(error):
                raise
            raise database_error(error, url, "USAGE_APP_DATABASE_URL") from error


def count_changes(settings: Settings) -> str:
    """How many rows of the events were updated or deleted so far, as Postgres counts them.

    Texts that are equal mean that none were in between. Empty when nobody counts: on a standby,
    and for a view or a foreign table. Postgres counts with a delay of seconds.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    with connect(app_database_url(settings)) as postgres:
        described = _describe(postgres, source_query("usage_events"))
        return _count_changes(postgres, {column.table_oid for column in described} - {None})


def _count_changes(postgres: PostgresConnection, table_oids: Iterable[int]) -> str:
    with postgres.cursor() as cursor:
        cursor.execute(
            """
            with recursive tables as (
                select unnest(%s::oid[]) as oid
                union
                select inhrelid from pg_inherits inner join tables on inhparent = tables.oid
            )
            select sum(n_tup_upd + n_tup_del)
                || ' since ' || coalesce(max(stats_reset), pg_postmaster_start_time())
            from tables
            left join pg_class as class using (oid)
            left join pg_stat_all_tables as counted on tables.oid = counted.relid
            left join pg_stat_database as database on database.datname = current_database()
            having not pg_is_in_recovery() and bool_and(class.relkind in ('r', 'p'))
            """,
            (sorted(table_oids),),
        )
        (counted,) = cursor.fetchone() or (None,)
    return counted or ""


def _describe(postgres: PostgresConnection, query: str) -> tuple[Any, ...]:
    """The query's columns; each knows its table, unless it is an expression."""
    with postgres.cursor() as cursor:
        cursor.execute(f"select * from ({query}) as source limit 0")
        return tuple(cursor.description or ())


def ids_are_unique(postgres: PostgresConnection, query: str) -> bool:
    """Whether a unique index of one table vouches for the ids, so that none can be duplicates."""
    (column,) = _describe(postgres, f"select id from ({query}) as events")
    with postgres.cursor() as cursor:
        cursor.execute(
            "select 1 from pg_index where indrelid = %s and indisunique and indisvalid "
            "and indnkeyatts = 1 and indkey[0] = %s and indpred is null",
            (column.table_oid, column.table_column),
        )
        if cursor.fetchone() is None:
            return False
        cursor.execute(f"explain (format json) {query}")
        ((plan,),) = cursor.fetchall()
    return _scans_one_table(plan[0]["Plan"])


def _scans_one_table(plan: dict[str, Any]) -> bool:
    """Whether a plan is the scan of one table, so that no row of it comes out twice.

    Every other node is taken for one that could repeat a row: joins, sets, functions, partitions.
    """
    beside = ("InitPlan", "SubPlan")  # scalar subqueries
    children = [c for c in plan.get("Plans", []) if c["Parent Relationship"] not in beside]
    if plan["Node Type"] in ("Gather", "Result") and len(children) == 1:
        return _scans_one_table(children[0])
    scans = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan")
    return plan["Node Type"] in scans and all(
        child["Node Type"].startswith("Bitmap") for child in children
    )
