"""What `status`, `doctor` and the summaries say: reads every layer, changes none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import duckdb
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from usage_pipeline import landing, published, warehouse
from usage_pipeline.app_db import (
    app_database_url,
    connect,
    dagster_database_url,
    publish_database_url,
)
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.freshness import freshness, last_publish
from usage_pipeline.rollup import Rollup
from usage_pipeline.served_tables import SERVED_TABLES
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import DayRange, ranges_of_days

MINIMUM_POSTGRES = 130_000
MINIMUM_FREE_BYTES = 2 * 1024**3
MAXIMUM_CLOCK_SKEW = timedelta(seconds=30)

MonthTotal = tuple[date, str, Decimal | None, int, int]


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Summary:
    """The head of `status`; healthy when nothing is missing, damaged or waiting."""

    lines: list[str]
    healthy: bool


def monthly_totals(settings: Settings, days: DayRange) -> list[MonthTotal]:
    """Published totals by month and metric."""
    with published.connect(settings) as db:
        return db.execute(
            "select month, metric_type, total_quantity, event_count, active_users "
            "from platform_usage_monthly where month >= ? and month < ? "
            "order by month, metric_type",
            [days.start, days.end],
        ).fetchall()


def unknown_event_types(settings: Settings, age: timedelta) -> list[tuple[str, int, date, date]]:
    """Published events set aside for their type and first seen no longer ago than this: type,
    events, first and last day; most events first."""
    if not published.exists(settings):
        return []
    with published.connect(settings) as db:
        return db.execute(
            "select event_type, count(*), min(usage_date), max(usage_date) "
            "from invalid_usage_events where reason = 'event_type is not known' "
            "and detected_at >= ? group by event_type order by 2 desc, 1",
            [datetime.now(UTC) - age],
        ).fetchall()


def spelled(quantity: Decimal) -> str:
    """A quantity for people: `4,439` and `0.5`, exact, without zeros that say nothing."""
    return f"{quantity:,.9f}".rstrip("0").rstrip(".")


def tables_with_rows(url: str) -> list[str]:
    """Tables of a database that hold rows, Postgres's own left out, as `schema.table`."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select format('%I.%I', nspname, relname) from pg_class "
            "join pg_namespace on pg_namespace.oid = relnamespace where relkind in ('r', 'p', 'f') "
            "and nspname not in ('pg_catalog', 'information_schema') and nspname !~ '^pg_' "
            "order by 1"
        )
        tables = [name for (name,) in cursor.fetchall()]
        found = []
        for table in tables:
            cursor.execute(f"select exists (select from {table})")
            if (cursor.fetchone() or (False,))[0]:
                found.append(table)
        return found


def count_users(url: str) -> int:
    """Users in the source."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from users")
        return int((cursor.fetchone() or (0,))[0])


def summary(settings: Settings) -> Summary:
    """What is landed, missing, damaged, pending and published."""
    rollup = Rollup(settings)
    landed = landing.landed_manifests(settings)
    lines, healthy = [], True
    if not landed:
        return Summary(["Nothing is landed yet; start with `usage-pipeline rollup`."], False)
    lines.append(f"Landed: {len(landed):,} days, {min(landed)} to {max(landed)}.")
    damaged = landing.days_to_repair(settings, rollup.transformer.needs_event_data)
    seen = freshness(settings)
    due = DayRange(settings.start_date, max(settings.start_date, seen.missing.end, *landed))
    for what, days in (
        ("Missing", ranges_of_days(set(due.days()) - landed.keys())),
        ("Damaged or outdated", ranges_of_days(damaged)),
        ("Failed or running, not published", rollup.pending.ranges()),
    ):
        if days:
            healthy = False
            count = sum(len(r.days()) for r in days)
            lines.append(f"{what}: {count:,} {'day' if count == 1 else 'days'}. Roll up:")
            lines += [f"  usage-pipeline rollup --start {r.start} --end {r.end}" for r in days[:5]]
            if days[5:]:
                lines.append(f"  and {len(days[5:]):,} more ranges, to {days[-1].end}")
    refused = [manifest for manifest in landed.values() if manifest.refused]
    if refused:
        healthy = False
        lines.append(str(landing.refusal(refused)))
    last = last_publish(settings)
    if last is None:
        lines.append("Nothing is published yet.")
    else:
        at, run_id = last
        lines.append(f"Published: {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, run {run_id[:8]}.")
    lines.append(str(seen))
    return Summary(lines, healthy and seen.fresh and last is not None)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check of `doctor`; none stops the others."""
    yield Finding("versions", True, f"duckdb {duckdb.__version__}")
    yield from _probe("meters file", lambda: f"{len(Rollup(settings).transformer.meters)} meters")
    yield from _source(settings)
    yield from _probe("publish database", lambda: _publish(settings))
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
    holder = warehouse.holder(settings)
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
    for table in ("usage_events", *landing.SNAPSHOTS):
        yield from _probe(f"source table {table}", lambda table=table: _readable(url, table))


def _readable(url: str, table: str) -> str:
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"select * from ({landing.source_query(table)}) as source limit 1")
        return "readable"


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
        for table in ("snapshot", *(table.name for table in SERVED_TABLES)):
            _require_owner(cursor, table, schema)
        connection.rollback()
    return f"schema {schema} can be written"


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
    with warehouse.connect(settings, ":memory:") as db:
        try:
            warehouse.load_postgres_extension(db)
        except duckdb.Error as error:
            raise UsagePipelineError(
                f"It does not load ({str(error).splitlines()[0]})",
                "Install duckdb-extension-postgres-scanner in the version of duckdb",
            ) from None
    return "loaded"
