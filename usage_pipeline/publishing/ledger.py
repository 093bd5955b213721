"""The ledger: which published numbers change with a publish, and why. SQL over what was compared.

A number is a cell of `usage_daily`; months, organisations and the platform are sums of its days.
It is restated when its day was published before and its quantity or its event count differs now.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import duckdb

from usage_pipeline.infra.duckdb_files import exact_sum
from usage_pipeline.landing import erased_users
from usage_pipeline.publishing.changes import Delta, TableChange, columns_of, same, within
from usage_pipeline.publishing.identity import Snapshot
from usage_pipeline.serving.as_of import PUBLISHED_EVENTS, PUBLISHED_QUANTITY
from usage_pipeline.serving.tables import LEDGER, served
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
    additive: Collection[str],
) -> Delta:
    """The restatements that these deltas are; the ledger's earlier rows stay as they are, but for
    those of erased persons.

    Args:
        additive: metrics of which totals of two persons add up.
    """
    (cells,) = (delta for delta in deltas if delta.table.name == "usage_daily")
    numbers = ", ".join((*KEY, "total_quantity", "event_count"))
    built, before = "warehouse.main.usage_daily", "published.main.usage_daily"
    new = f"select 1 as side, {numbers}, null as updated_at from {built}"
    if cells.whole and base is None:
        relation = f"({new} where false)"
    elif cells.whole:  # the table has other columns than before; these it always had
        relation = f"({new} union all select -1 as side, {numbers}, updated_at from {before})"
    else:  # of days without a row before, only those that were published without one
        relation = (
            f"(select side, {numbers}, updated_at from {cells.changes} union all"
            f" {new} where {within(cells.table, cells.fresh)}"
            " and usage_date in (select usage_date from published.main.published_days))"
        )
    ledger = f"published.main.{LEDGER}"
    people = f"select user_id as person from {relation} union select user_id from {ledger}"
    erased = erased_users.read(settings).among(db, people)
    delta = Delta(served(LEDGER), columns_of(db, f"published.main.{LEDGER}"))
    rows = record_restatements(
        db,
        delta.changes,
        relation,
        erased=erased,
        restated_at=snapshot.published_at,
        run_id=snapshot.run_id,
        built_with=built_with,
        recut=base is not None and base.timezone != snapshot.timezone,
        additive=additive,
    )
    renamed = forget(
        db,
        delta.changes,
        ledger,
        cells=relation,
        erased=erased,
        restated_at=snapshot.published_at,
        additive=additive,
    )
    return replace(delta, change=TableChange(inserted=rows, updated=renamed))


KEY = ("usage_date", "user_id", "org_id", "metric_type")
_CELL = ("usage_date", "org_id", "metric_type")  # of all persons


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
    additive: Collection[str],
) -> int:
    """Create the temporary table `target`: the ledger's new rows, with a column `side` of ones.

    Args:
        db: with `warehouse` and `published` attached.
        cells: relation of the `usage_daily` rows that appear (side 1) and disappear (side -1), the
            latter with the `updated_at` that they had.
        erased: persons of whom no row is made; what their cells lost went to those without a user.
        built_with: version of models and meters of the warehouse.
        recut: whether the days are those of another time zone than before.
        additive: metrics of which totals of two persons add up.

    The cause: recut days, days before a later `USAGE_START_DATE`, and the same landed events with
    another number, are a `rebuild`; of a day that was landed again, more events are `late_events`,
    anything else is a `correction`. It is an `erasure` where a cell without a user got just what
    erased persons had; where it changed otherwise too, its old number includes theirs.

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
            select null::uuid as user_id, usage_date, org_id, metric_type,
                   count(*) as persons, list_contains($additive, metric_type) as adds_up,
                   {exact_sum("total_quantity")} as quantity,
                   cast(sum(event_count) as bigint) as events
            from cells
            semi join erased using (user_id)
            where side < 0
            group by usage_date, org_id, metric_type
        ),
        changed as (
            select {keys},
                   {quantity("side < 0")} as old_quantity,
                   {quantity("side > 0")} as new_quantity,
                   coalesce(max(event_count) filter (side < 0), 0) as old_event_count,
                   coalesce(max(event_count) filter (side > 0), 0) as new_event_count,
                   max(updated_at) filter (side < 0) as old_published_at
            from (
                select side, {keys}, total_quantity, event_count, updated_at
                from cells anti join erased using (user_id)
                union all by name
                select 0 as side, {keys} from given_up
            )
            group by {keys}
            having old_quantity is distinct from new_quantity or old_event_count <> new_event_count
                or bool_or(side = 0)
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
        ),
        moved as (
            select changed.*, given_up.events is not null as from_erased,
                   case when adds_up or (old_event_count = 0 and persons = 1)
                        then try(old_quantity + quantity) end as quantity_with_theirs,
                   old_event_count + given_up.events as events_with_theirs,
                   new_event_count = events_with_theirs
                   and (quantity_with_theirs is null or new_quantity = quantity_with_theirs)
                   as only_moved
            from changed
            left join given_up
                on {same(KEY, "changed", "given_up")}
        )
        select 1 as side, usage_date, user_id, org_id, metric_type,
               $restated_at::timestamptz as restated_at,
               case when from_erased and not only_moved then quantity_with_theirs
                    else old_quantity end as old_quantity,
               new_quantity,
               case when from_erased and not only_moved then events_with_theirs
                    else old_event_count end as old_event_count,
               new_event_count,
               case
                   when from_erased and only_moved then 'erasure'
                   when $recut or as_before then 'rebuild'
                   when new_event_count > old_event_count then 'late_events'
                   else 'correction'
               end as cause,
               $run_id as run_id,
               old_published_at
        from moved
        inner join landed using (usage_date)
        """,
        {
            "erased": list(erased),
            "built_with": built_with,
            "restated_at": restated_at,
            "recut": recut,
            "run_id": run_id,
            "additive": list(additive),
        },
    )
    ((rows,),) = db.execute(f"select count(*) from {target}").fetchall()
    return int(rows)


def forget(
    db: duckdb.DuckDBPyConnection,
    target: str,
    ledger: str,
    *,
    cells: str,
    erased: Sequence[UUID],
    restated_at: datetime,
    additive: Collection[str],
) -> int:
    """Take the persons out of the ledger's earlier rows: what was published of them, and when, is
    from now on what was published of nobody.

    Spans of time in which a number was published overlap then; where they do, the number is their
    sum, or NULL where the metric's totals do not add up.

    Args:
        target: the table that `record_restatements` made; rows that go are added with side -1,
            rows that come with side 1.
        ledger: relation with the columns of `usage_restatements`.
        cells: as for `record_restatements`.

    Returns:
        Rows that go.
    """
    if not erased:
        return 0
    db.execute("create temp table erased as select unnest($1::uuid[]) as user_id", [list(erased)])
    db.execute(
        f"""
        create temp table theirs as
        select usage_date, org_id, metric_type from {ledger} semi join erased using (user_id)
        union
        select usage_date, org_id, metric_type from {cells} semi join erased using (user_id)
        """
    )
    nobodys = f"""
        inner join theirs on {same(_CELL, "old", "theirs")}
        where (old.user_id is null or old.user_id in (select user_id from erased))
    """
    db.execute(f"create temp table touched as select old.* from {ledger} as old {nobodys}")
    db.execute(
        f"""
        create temp table spans as
        select {_of("old", _CELL)}, old_published_at as from_at, restated_at as to_at,
               {PUBLISHED_QUANTITY} as quantity, {PUBLISHED_EVENTS} as events
        from touched as old where old_published_at is not null
        union all
        select {_of("old", _CELL)}, updated_at, $1, total_quantity, event_count
        from {cells} as old {nobodys} and side < 0
        """,
        [restated_at],
    )
    db.execute(
        f"""
        create temp table pieces as
        with moments as (
            select {", ".join(_CELL)}, from_at as moment from spans
            union
            select {", ".join(_CELL)}, to_at from spans
        ),
        edges as (
            select *, lead(moment) over (partition by {", ".join(_CELL)} order by moment) as until
            from moments
        )
        select {_of("edges", _CELL)}, edges.moment as from_at, edges.until as to_at,
               case
                   when count(*) = 1 then max(quantity)
                   when list_contains($1::varchar[], edges.metric_type)
                       then {exact_sum("quantity")}
               end as quantity,
               cast(sum(events) as bigint) as events
        from edges
        inner join spans
            on {same(_CELL, "edges", "spans")}
                and spans.from_at <= edges.moment and spans.to_at >= edges.until
        group by {_of("edges", _CELL)}, edges.moment, edges.until
        """,
        [list(additive)],
    )
    db.execute(
        f"""
        insert into {target} by name
        with merged as (
            select {", ".join(_CELL)}, restated_at,
                   {exact_sum("old_quantity")} as old_quantity,
                   {exact_sum("new_quantity")} as new_quantity,
                   sum(old_event_count) as old_event_count, sum(new_event_count) as new_event_count,
                   coalesce(min(cause) filter (cause <> 'erasure'), 'erasure') as cause,
                   min(run_id) as run_id
            from touched
            group by {", ".join(_CELL)}, restated_at
        )
        select -1 as side, * from touched
        union all by name
        select 1 as side, {_of("old", _CELL)}, null as user_id, old.restated_at,
               case when before.events is null then old.old_quantity
                    when old.cause <> 'erasure' then before.quantity
                    else try(after.quantity - (old.new_quantity - old.old_quantity))
               end as old_quantity,
               case when after.events is null then old.new_quantity else after.quantity end
                   as new_quantity,
               case when before.events is null then old.old_event_count
                    when old.cause <> 'erasure' then before.events
                    else after.events - (old.new_event_count - old.old_event_count)
               end as old_event_count,
               coalesce(after.events, old.new_event_count) as new_event_count,
               old.cause, old.run_id, before.from_at as old_published_at
        from merged as old
        left join pieces as before
            on {same(_CELL, "old", "before")} and old.restated_at = before.to_at
        left join pieces as after
            on {same(_CELL, "old", "after")} and old.restated_at = after.from_at
        """
    )
    db.execute(
        f"""
        update {target} as new set
            old_published_at = pieces.from_at,
            old_quantity = case when cause = 'erasure' then old_quantity else quantity end,
            old_event_count = case when cause = 'erasure' then old_event_count else events end
        from pieces
        where side > 0 and user_id is null and restated_at = $1 and restated_at = to_at
            and {same(_CELL, "new", "pieces")}
        """,
        [restated_at],
    )
    db.execute("drop table erased; drop table theirs; drop table touched; drop table spans")
    db.execute("drop table pieces")
    ((rows,),) = db.execute(f"select count(*) from {target} where side < 0").fetchall()
    return int(rows)


def _of(relation: str, columns: Sequence[str]) -> str:
    return ", ".join(f"{relation}.{column}" for column in columns)


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
