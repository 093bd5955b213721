"""The ledger: which published numbers change with a publish, and why. SQL over what was compared.

A number is a cell of `usage_daily`; months, organisations and the platform are sums of its days.
It is restated when its day was published before and its quantity or its event count differs now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import duckdb

from usage_pipeline.infra.duckdb_files import exact_sum
from usage_pipeline.landing import erased_users
from usage_pipeline.publishing.changes import Delta, TableChange, columns_of, within
from usage_pipeline.publishing.identity import Snapshot
from usage_pipeline.serving.tables import LEDGER, SERVED_TABLES
from usage_pipeline.settings import Settings

MONTHS_DIGESTED = 6


def restated(
    db: duckdb.DuckDBPyConnection,
    settings: Settings,
    deltas: Sequence[Delta],
    base: Snapshot | None,
    snapshot: Snapshot,
    *,
    built_with: str,
) -> Delta:
    """The restatements that these deltas are; the ledger's earlier rows stay as they are, but for
    the ids of erased persons."""
    (cells,) = (delta for delta in deltas if delta.table.name == "usage_daily")
    numbers = ", ".join((*KEY, "total_quantity", "event_count"))
    built, before = "warehouse.main.usage_daily", "published.main.usage_daily"
    if cells.whole and base is None:
        relation = f"(select 1 as side, {numbers} from {built} where false)"
    elif cells.whole:  # the table has other columns than before; these it always had
        relation = (
            f"(select 1 as side, {numbers} from {built} union all"
            f" select -1 as side, {numbers} from {before})"
        )
    else:  # of days without a row before, only those that were published without one
        relation = (
            f"(select side, {numbers} from {cells.changes} union all"
            f" select 1 as side, {numbers} from {built} where {within(cells.table, cells.fresh)}"
            " and usage_date in (select usage_date from published.main.published_days))"
        )
    ledger = f"published.main.{LEDGER}"
    people = f"select user_id as person from {relation} union select user_id from {ledger}"
    erased = erased_users.read(settings).among(db, people)
    (table,) = (table for table in SERVED_TABLES if table.name == LEDGER)
    delta = Delta(table, columns_of(db, f"published.main.{LEDGER}"))
    rows = record_restatements(
        db,
        delta.changes,
        relation,
        erased=erased,
        restated_at=snapshot.published_at,
        run_id=snapshot.run_id,
        built_with=built_with,
        recut=base is not None and base.timezone != snapshot.timezone,
    )
    renamed = forget(db, delta.changes, ledger, erased)
    return replace(delta, change=TableChange(inserted=rows, updated=renamed))


KEY = ("usage_date", "user_id", "org_id", "metric_type")


def record_restatements(
    db: duckdb.DuckDBPyConnection,
    target: str,
    cells: str,
    *,
    erased: Sequence[UUID],
    restated_at: datetime,
    run_id: str,
    built_with: str,
    recut: bool,
) -> int:
    """Create the temporary table `target`: the ledger's new rows, with a column `side` of ones.

    Args:
        db: with `warehouse` and `published` attached.
        cells: relation of the `usage_daily` rows that appear (side 1) and disappear (side -1).
        erased: persons of whom no row is made; what their cells lost went to those without a user.
        built_with: version of models and meters of the warehouse.
        recut: whether the days are those of another time zone than before.

    The cause: recut days, days before a later `USAGE_START_DATE`, and the same landed events with
    another number, are a `rebuild`; of a day that was landed again, more events are `late_events`,
    anything else is a `correction`.

    Returns:
        Rows in `target`.
    """
    keys = ", ".join(KEY)

    def quantity(side: str) -> str:
        """Of the cell's one row on a side; 0 where there is none, NULL where it cannot be held."""
        of_side = f"max(total_quantity) filter ({side})"
        return f"case when count(*) filter ({side}) > 0 then {of_side} else 0 end"

    db.execute(
        f"""
        create temp table {target} as
        with cells as (
            from {cells}
        ),
        erased as (
            select unnest($erased::uuid[]) as user_id
        ),
        given_up as (
            select distinct usage_date, org_id, metric_type
            from cells
            semi join erased using (user_id)
        ),
        changed as (
            select {keys},
                   {quantity("side < 0")} as old_quantity,
                   {quantity("side > 0")} as new_quantity,
                   coalesce(max(event_count) filter (side < 0), 0) as old_event_count,
                   coalesce(max(event_count) filter (side > 0), 0) as new_event_count
            from cells
            anti join erased using (user_id)
            group by {keys}
            having old_quantity is distinct from new_quantity or old_event_count <> new_event_count
        ),
        landed as (
            select before.usage_date,
                   now.usage_date is null
                   or before.extracted_at = now.extracted_at
                   or (before.built_with <> $built_with
                       and before.landed_events = now.landed_events
                       and before.sum_quantity is not distinct from now.sum_quantity
                       and before.last_event_at is not distinct from now.last_event_at)
                   as as_before
            from published.main.published_days as before
            left join warehouse.main.stg_landed_days as now using (usage_date)
        )
        select 1 as side, changed.*, $restated_at::timestamptz as restated_at,
               case
                   when user_id is null and given_up.usage_date is not null then 'erasure'
                   when $recut or as_before then 'rebuild'
                   when new_event_count > old_event_count then 'late_events'
                   else 'correction'
               end as cause,
               $run_id as run_id
        from changed
        inner join landed using (usage_date)
        left join given_up
            on changed.usage_date = given_up.usage_date
                and changed.org_id is not distinct from given_up.org_id
                and changed.metric_type = given_up.metric_type
        """,
        {
            "erased": list(erased),
            "built_with": built_with,
            "restated_at": restated_at,
            "recut": recut,
            "run_id": run_id,
        },
    )
    ((rows,),) = db.execute(f"select count(*) from {target}").fetchall()
    return int(rows)


def forget(db: duckdb.DuckDBPyConnection, target: str, ledger: str, erased: Sequence[UUID]) -> int:
    """Take the persons' ids out of the ledger's earlier rows, rows that become one added up.

    Args:
        target: the table that `record_restatements` made; rows that go are added with side -1,
            rows that come with side 1.
        ledger: relation with the columns of `usage_restatements`.

    Returns:
        Rows that go.
    """
    if not erased:
        return 0
    db.execute(
        f"""
        insert into {target} by name
        with erased as (
            select unnest($erased::uuid[]) as user_id
        ),
        theirs as (
            select distinct usage_date, org_id, metric_type, restated_at
            from {ledger}
            semi join erased using (user_id)
        ),
        touched as (
            select old.*
            from {ledger} as old
            inner join theirs
                on old.usage_date = theirs.usage_date
                    and old.org_id is not distinct from theirs.org_id
                    and old.metric_type = theirs.metric_type
                    and old.restated_at = theirs.restated_at
            where old.user_id is null or old.user_id in (select user_id from erased)
        )
        select -1 as side, * from touched
        union all
        select 1 as side, usage_date, null as user_id, org_id, metric_type, restated_at,
               {exact_sum("old_quantity")}, {exact_sum("new_quantity")},
               sum(old_event_count), sum(new_event_count),
               min(cause), min(run_id)
        from touched
        group by usage_date, org_id, metric_type, restated_at
        """,
        {"erased": list(erased)},
    )
    ((rows,),) = db.execute(f"select count(*) from {target} where side < 0").fetchall()
    return int(rows)


def digest(db: duckdb.DuckDBPyConnection, ledger: str, months: int) -> list[tuple[Any, ...]]:
    """The ledger by month of usage, metric and cause, newest month first.

    Args:
        ledger: relation with the columns of `usage_restatements`.
        months: how many of the newest months that hold restatements.

    Returns:
        Month, metric, cause, restated numbers, change of the quantity (None where it cannot be
        held), change of the events.
    """
    return db.execute(
        f"""
        select cast(date_trunc('month', usage_date) as date) as month, metric_type, cause,
               count(*), {exact_sum("try(new_quantity - old_quantity)")},
               sum(new_event_count - old_event_count)
        from {ledger}
        group by month, metric_type, cause
        qualify dense_rank() over (order by month desc) <= ?
        order by month desc, metric_type, cause
        """,
        [months],
    ).fetchall()
