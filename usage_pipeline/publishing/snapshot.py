"""The file that holds what is published: made, migrated, and built anew from its changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import duckdb

from usage_pipeline.days import DayRange
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.publishing.changes import Delta, columns_of, same, taken_over, within
from usage_pipeline.publishing.identity import SCHEMA_VERSION, Snapshot, written_by_newer
from usage_pipeline.serving import as_of, published
from usage_pipeline.serving.views import VIEWS
from usage_pipeline.settings import Settings

STATE = "published.duckdb"  # the next state, in the publish's scratch directory
# Tables that have to be there before anything is published: what the models read back, the ledger,
# and what the ledger needs to know of the days published so far. `alter` migrates older files.
_BOOKKEEPING = """
    create table if not exists invalid_usage_events (
        event_id varchar, metric_type varchar, reason varchar, user_id varchar, org_id varchar,
        event_type varchar, quantity varchar, event_data varchar, created_at varchar,
        usage_date date, detected_at timestamptz
    );
    create table if not exists usage_restatements (
        usage_date date, user_id uuid, org_id uuid, metric_type varchar, restated_at timestamptz,
        old_quantity decimal(38, 9), new_quantity decimal(38, 9),
        old_event_count bigint, new_event_count bigint, cause varchar, run_id varchar,
        old_published_at timestamptz
    );
    alter table usage_restatements add column if not exists old_published_at timestamptz;
    create table if not exists usage_monthly_history (
        month date, user_id uuid, org_id uuid, metric_type varchar, replaced_at timestamptz,
        total_quantity decimal(38, 9), event_count bigint, active_days bigint,
        published_at timestamptz
    );
    create table if not exists usage_snapshots (
        snapshot_id varchar, published_at timestamptz, run_id varchar, timezone varchar,
        meters_version varchar, meters varchar
    );
    create table if not exists usage_reconciliation (
        usage_date date, metric_type varchar,
        source_events bigint, landed_events bigint, published_events bigint,
        source_sum decimal(38, 9), landed_sum decimal(38, 9), published_sum decimal(38, 9),
        matches boolean, checked_at timestamptz
    );
    create table if not exists published_days (
        usage_date date, landed_events bigint, sum_quantity decimal(38, 9),
        last_event_at timestamptz, extracted_at timestamptz, built_with varchar
    );
    create table if not exists snapshot (
        snapshot_id varchar, published_at timestamptz, run_id varchar
    );
    alter table snapshot add column if not exists timezone varchar;
    alter table snapshot add column if not exists schema_version integer;
"""


# Up to version 3, each publish had the meters.
_METERS_ONCE = """
    update usage_snapshots set meters = null where snapshot_id in (
        select snapshot_id
        from (
            select snapshot_id, meters,
                lag(meters ignore nulls) over (order by published_at) as meters_before
            from usage_snapshots
        )
        where meters = meters_before
    )
"""


def ensure_snapshot(settings: Settings) -> None:
    """Create the published file when it is absent, migrate it when an older release wrote it.

    The warehouse's views of published rows read it, so it must exist before the first publish.

    Raises:
        UsagePipelineError: a newer release wrote it.
    """
    path = published.own_path(settings)
    version = _schema_version(settings) if path.exists() else None
    if version is not None and version > SCHEMA_VERSION:
        raise written_by_newer(f"The snapshot {path}", version)
    if version == SCHEMA_VERSION:
        return
    with scratch(settings) as work:
        if path.exists():
            published.clone(path, work / "migrated.duckdb")
        with open_duckdb(settings, work / "migrated.duckdb") as db:
            db.execute(_BOOKKEEPING)
            db.execute(_METERS_ONCE)
            if columns_of(db, "usage_daily"):
                # Published before the ledger was kept: what changes from now on is a restatement.
                db.execute(
                    "insert into published_days by name select distinct usage_date from usage_daily"
                    " where usage_date not in (select usage_date from published_days)"
                )
                _stamp_usage(db, settings)
            db.execute("update snapshot set schema_version = ?", [SCHEMA_VERSION])
        (work / "migrated.duckdb").replace(path)


def _stamp_usage(db: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Up to version 1, `usage_aggregations` alone knew when a row was published and changed."""
    if "created_at" in columns_of(db, "usage_daily"):
        return
    ((zone, published_at),) = db.execute("select timezone, published_at from snapshot").fetchall()
    local = f"cast(timezone('{zone or settings.timezone}', period_start) as date)"
    for table, part, period in (
        ("usage_daily", "usage_date", "daily"),
        ("usage_monthly", "month", "monthly"),
    ):
        db.execute(
            f"""
            create or replace table {table} as
            select new.*, coalesce(old.created_at, $published_at) as created_at,
                   coalesce(old.updated_at, $published_at) as updated_at
            from {table} as new
            left join (
                select * replace ({local} as period_start)
                from usage_aggregations where period_type = '{period}'
            ) as old
                on new.{part} = old.period_start and new.metric_type = old.metric_type
                    and {same(("user_id", "org_id"), "new", "old")}
            """,
            {"published_at": published_at},
        )


def is_published(settings: Settings) -> bool:
    """Whether readers find anything in the snapshot."""
    if not published.exists(settings):
        return False
    with open_duckdb(settings, ":memory:") as db:
        published.attach(settings, db)
        return bool(columns_of(db, "published.main.usage_daily"))


def _schema_version(settings: Settings) -> int:
    """The version that the snapshot file carries; 0 before versions were written."""
    with open_duckdb(settings, ":memory:") as db:
        published.attach(settings, db)
        if "schema_version" not in columns_of(db, "published.main.snapshot"):
            return 0
        row = db.execute("select schema_version from published.main.snapshot").fetchone()
    return int(row[0] or 0) if row else SCHEMA_VERSION


def days_published(ranges: Sequence[DayRange]) -> str:
    """The landed days of the ranges as a query: empty days are published as well."""
    within = " or ".join(f"usage_date >= '{r.start}' and usage_date < '{r.end}'" for r in ranges)
    return f"select * from warehouse.main.stg_landed_days where {within or 'false'}"


def note_days(db: duckdb.DuckDBPyConnection, ranges: Sequence[DayRange], built_with: str) -> None:
    """Remember what the published days were made of, for the causes of later restatements."""
    days = days_published(ranges)
    db.execute(
        "delete from serving.main.published_days where usage_date in"
        f" (select usage_date from ({days}))"
    )
    db.execute(
        "insert into serving.main.published_days by name"
        " select usage_date, landed_events, sum_quantity, last_event_at, extracted_at,"
        f" ? as built_with from ({days})",
        [built_with],
    )


def _bound(db: duckdb.DuckDBPyConnection, delta: Delta) -> str:
    """The predicate for the days or months of the rows that go, so that no other row is read."""
    if delta.table.dated is None:
        return "true"
    parts = db.execute(f"select distinct {delta.table.dated} from {delta.changes} where side < 0")
    return f"old.{within(delta.table, [part for (part,) in parts.fetchall()])}"


def build_snapshot(
    db: duckdb.DuckDBPyConnection,
    previous: Path,
    target: Path,
    deltas: Sequence[Delta],
    snapshot: Snapshot,
) -> None:
    """The previous snapshot plus the deltas, as `target`, attached as `serving`."""
    published.clone(previous, target)
    db.execute(f"attach '{quoted(target)}' as serving")
    for delta in deltas:
        served, names = f"serving.main.{delta.table.name}", ", ".join(delta.columns)
        if delta.whole:
            rows = taken_over(db, delta, snapshot.published_at)
            db.execute(f"create or replace table {served} as {rows}")
            continue
        if delta.change.updated or delta.change.deleted:
            db.execute(
                f"delete from {served} as old using (from {delta.changes} where side < 0) as gone"
                f" where {same(delta.table.key, 'old', 'gone')} and {_bound(db, delta)}"
            )
        if not delta.empty:
            db.execute(f"insert into {served} select {names} from {delta.changes} where side > 0")
        if delta.fresh:
            db.execute(f"insert into {served} {taken_over(db, delta, snapshot.published_at)}")
    _create_views(db)
    _create_macros(db)
    db.execute("delete from serving.main.snapshot")
    db.execute(
        "insert into serving.main.snapshot by name select unnest($snapshot, recursive := true)",
        {"snapshot": asdict(snapshot)},
    )


def _create_macros(db: duckdb.DuckDBPyConnection) -> None:
    """They name tables of the file that they are in, which has to be the current one meanwhile."""
    ((current,),) = db.execute("select current_database()").fetchall()
    db.execute("use serving")
    for name, query in ((as_of.DAILY, as_of.daily()), (as_of.MONTHLY, as_of.monthly("duckdb"))):
        db.execute(f"create or replace macro {name}(moment) as table {query}")
    db.execute(f"use {current}")


def _create_views(db: duckdb.DuckDBPyConnection) -> None:
    tables = db.execute("select database_name, table_name from duckdb_tables()").fetchall()
    for view in VIEWS:
        name = f"serving.main.{view.name}"
        if ("serving", view.name) in tables:  # usage_aggregations, up to version 1
            db.execute(f"drop table {name}")
        db.execute(f"create or replace view {name} as {view.definition('json', '')}")
