"""What `doctor` checks: whether a rollup could run, and the remedy where it could not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.alerts import limits, mail, outbox
from usage_pipeline.app_db.fingerprints import FINGERPRINT_TIMEOUT
from usage_pipeline.app_db.recipients import ADDRESSES, WEBHOOKS
from usage_pipeline.app_db.session import source_query
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import (
    app_database_url,
    dagster_database_url,
    publish_database_url,
)
from usage_pipeline.infra.duckdb_files import load_postgres_extension, open_duckdb
from usage_pipeline.infra.postgres import connect
from usage_pipeline.landing.accounts import ACCOUNT_TABLES
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving.views import RELATIONS
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer
from usage_pipeline.web.ingestion import Ingestion
from usage_pipeline.web.reader import NotPublished, open_reader

MINIMUM_POSTGRES = 130_000
MINIMUM_FREE_BYTES = 2 * 1024**3
MAXIMUM_CLOCK_SKEW = timedelta(seconds=30)


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check of `doctor`; none stops the others."""
    yield Finding("versions", True, f"duckdb {duckdb.__version__}")
    yield from _probe("meters file", lambda: f"{len(Rollup(settings).transformer.meters)} meters")
    yield from _source(settings)
    yield from _probe("publish database", lambda: _publish(settings))
    if settings.smtp_url:
        yield from _probe("mail server", lambda: _mail_server(settings))
    if settings.web_database_url:
        yield from _probe("usage pages", lambda: _pages(settings))
    if settings.ingest_database_url:
        yield from _probe("ingestion", lambda: _ingestion(settings))
    yield from _probe("Dagster storage", lambda: _storage(dagster_database_url(settings)))
    yield from _probe("Postgres extension of DuckDB", lambda: _extension(settings))
    settings.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.home).free
    yield Finding(
        "disk",
        free >= MINIMUM_FREE_BYTES,
        f"{free / 1024**3:.1f} GiB free below {settings.home}",
        "Free space, or move USAGE_HOME",
    )
    holder = writer.holder(settings)
    yield Finding("warehouse lock", True, f"held by {holder}" if holder else "free")


def _probe(what: str, probe) -> Iterator[Finding]:  # type: ignore[no-untyped-def]
    try:
        yield Finding(what, True, probe())
    except UsagePipelineError as error:
        yield Finding(what, False, error.problem, error.remedy)


def _source(settings: Settings) -> Iterator[Finding]:
    try:
        url = app_database_url(settings)
        with connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("select current_setting('server_version_num')::int, clock_timestamp()")
            version, now = cursor.fetchone() or (0, datetime.now(UTC))
    except UsagePipelineError as error:
        yield Finding("source database", False, error.problem, error.remedy)
        return
    yield Finding(
        "source database",
        version >= MINIMUM_POSTGRES,
        f"Postgres {version // 10000}",
        "Upgrade to Postgres 13 or later",
    )
    skew = abs(datetime.now(UTC) - now)
    yield Finding(
        "clock",
        skew <= MAXIMUM_CLOCK_SKEW,
        f"{skew.total_seconds():.1f} s apart from the source's",
        "Synchronise this machine's clock; schedules and day boundaries depend on it",
    )
    addresses = (ADDRESSES,) if settings.smtp_url else ()
    for table in ("usage_events", *ACCOUNT_TABLES, WEBHOOKS, *addresses):
        yield from _probe(f"source table {table}", lambda table=table: _readable(url, table))


def _readable(url: str, table: str) -> str:
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"select * from ({source_query(table)}) as source limit 1")
        if table == "usage_events":
            _require_days(cursor)
        return "readable"


def _require_days(cursor: Cursor) -> None:
    """An event at an infinite instant is on no day, so no extraction ever sees it."""
    cursor.execute(
        f"set local statement_timeout = '{FINGERPRINT_TIMEOUT}';"
        f"select count(*) from ({source_query('usage_events')}) as events"
        " where created_at in ('infinity', '-infinity')"
    )
    (events,) = cursor.fetchone() or (0,)
    if events:
        raise UsagePipelineError(
            f"{events:,} events have an infinite created_at, are on no day, and count nowhere",
            "Correct their created_at in the application",
        )


def _storage(url: str) -> str:
    with connect(url, "DAGSTER_PG_URL") as connection, connection.cursor() as cursor:
        cursor.execute("select current_setting('server_version')")
        version = (cursor.fetchone() or ("?",))[0]
        cursor.execute("create table usage_pipeline_doctor (); drop table usage_pipeline_doctor")
        _require_owner(cursor, "runs")
    return f"Postgres {version}, can be written"


def _publish(settings: Settings) -> str:
    """Does what a publish does, in a transaction that is undone."""
    schema = settings.publish_schema
    url = publish_database_url(settings)
    with connect(url, "USAGE_PUBLISH_DATABASE_URL") as connection, connection.cursor() as cursor:
        cursor.execute("select 1 from pg_namespace where nspname = %s", (schema,))
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        cursor.execute("create temp table usage_pipeline_doctor () on commit drop")
        cursor.execute(
            sql.SQL("create table {} ()").format(sql.Identifier(schema, "usage_pipeline_doctor"))
        )
        for table in ("snapshot", *outbox.TABLES, *limits.TABLES, *RELATIONS):
            _require_owner(cursor, table, schema)
        connection.rollback()
    return f"schema {schema} can be written"


def _pages(settings: Settings) -> str:
    """Who may not look into a schema sees none, which is as if nothing were published."""
    try:
        with open_reader(settings).open() as published:
            return f"snapshot of {published.snapshot.published_at:%Y-%m-%d %H:%M} UTC"
    except NotPublished as error:
        url = publish_database_url(settings)
        with (
            connect(url, "USAGE_PUBLISH_DATABASE_URL") as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("select to_regclass(%s)", (f'"{settings.publish_schema}".snapshot',))
            (there,) = cursor.fetchone() or (None,)
        if there is None:
            return "nothing is published yet"
        raise UsagePipelineError(
            f"USAGE_WEB_DATABASE_URL may not read the schema {settings.publish_schema}",
            "Grant its role usage_reader (docs/web.md)",
        ) from error


def _ingestion(settings: Settings) -> str:
    Ingestion(settings).require_role()
    return "may insert events"


def _mail_server(settings: Settings) -> str:
    try:
        with mail.connected(settings):
            return "answers"
    except mail.NoServer as error:
        raise UsagePipelineError(
            f"The mail server of USAGE_SMTP_URL: {error}",
            "Correct USAGE_SMTP_URL, or unset it to send no e-mail",
        ) from None


def _require_owner(cursor: Cursor, table: str, schema: str | None = None) -> None:
    """Only an owner can truncate, index and replace a table; of the current schema by default."""
    cursor.execute(
        "select pg_get_userbyid(relowner), current_user from pg_class "
        "join pg_namespace on pg_namespace.oid = relnamespace "
        "where nspname = coalesce(%s, current_schema()) and relname = %s "
        "and not pg_has_role(relowner, 'USAGE')",
        (schema, table),
    )
    if row := cursor.fetchone():
        raise UsagePipelineError(
            f"Table {table} belongs to the role {row[0]}, not to {row[1]}",
            f"Run: alter table {table} owner to {row[1]}, or connect as {row[0]}",
        )


def _extension(settings: Settings) -> str:
    with open_duckdb(settings, ":memory:") as db:
        try:
            load_postgres_extension(db)
        except duckdb.Error as error:
            raise UsagePipelineError(
                f"It does not load ({str(error).splitlines()[0]})",
                "Install duckdb-extension-postgres-scanner in the version of duckdb",
            ) from None
    return "loaded"
