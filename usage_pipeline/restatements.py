"""The ledger: which published numbers change with a publish, and why. SQL over what was compared.

A number is a cell of `usage_daily`; months, organisations and the platform are sums of its days.
It is restated when its day was published before and its quantity or its event count differs now.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import duckdb

KEY = ("usage_date", "user_id", "org_id", "metric_type")


def record_restatements(
    db: duckdb.DuckDBPyConnection,
    target: str,
    cells: str,
    *,
    restated_at: datetime,
    run_id: str,
    built_with: str,
    recut: bool,
) -> int:
    """Create the temporary table `target`: the ledger's new rows, with a column `side` of ones.

    Args:
        db: with `warehouse` and `published` attached.
        cells: relation of the `usage_daily` rows that appear (side 1) and disappear (side -1).
        built_with: version of models and meters of the warehouse.
        recut: whether the days are those of another time zone than before.

    The cause: recut days, days before a later `USAGE_START_DATE`, and the same landed events with
    another number, are a `rebuild`; of a day that was landed again, more events are `late_events`,
    anything else is a `correction`.

    Returns:
        Rows in `target`.
    """
    keys = ", ".join(KEY)
    db.execute(
        f"""
        create temp table {target} as
        with changed as (
            select {keys},
                   coalesce(max(total_quantity) filter (side < 0), 0) as old_quantity,
                   coalesce(max(total_quantity) filter (side > 0), 0) as new_quantity,
                   coalesce(max(event_count) filter (side < 0), 0) as old_event_count,
                   coalesce(max(event_count) filter (side > 0), 0) as new_event_count
            from {cells}
            group by {keys}
            having old_quantity <> new_quantity or old_event_count <> new_event_count
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
        select 1 as side, {keys}, $restated_at::timestamptz as restated_at,
               old_quantity, new_quantity, old_event_count, new_event_count,
               case
                   when $recut or as_before then 'rebuild'
                   when new_event_count > old_event_count then 'late_events'
                   else 'correction'
               end as cause,
               $run_id as run_id
        from changed
        inner join landed using (usage_date)
        """,
        {
            "built_with": built_with,
            "restated_at": restated_at,
            "recut": recut,
            "run_id": run_id,
        },
    )
    ((rows,),) = db.execute(f"select count(*) from {target}").fetchall()
    return int(rows)


def digest(db: duckdb.DuckDBPyConnection, ledger: str, months: int) -> list[tuple[Any, ...]]:
    """The ledger by month of usage, metric and cause, newest month first.

    Args:
        ledger: relation with the columns of `usage_restatements`.
        months: how many of the newest months that hold restatements.

    Returns:
        Month, metric, cause, restated numbers, change of the quantity, change of the events.
    """
    return db.execute(
        f"""
        select cast(date_trunc('month', usage_date) as date) as month, metric_type, cause,
               count(*), sum(new_quantity - old_quantity),
               sum(new_event_count - old_event_count)
        from {ledger}
        group by month, metric_type, cause
        qualify dense_rank() over (order by month desc) <= ?
        order by month desc, metric_type, cause
        """,
        [months],
    ).fetchall()
