"""`usage_daily_as_of` and `usage_monthly_as_of`: what was published at a moment.

Functions in Postgres and table macros in DuckDB, of the same queries. A moment is covered from the
first row of `usage_snapshots` on, and has no rows before; a publish counts from its `published_at`.

A published number is valid from its `updated_at` on. The ledger has those that were replaced, with
the time from which they were valid: disjoint spans for each cell of `usage_daily`. Months add up
days; those of meters that do not add up are kept in `usage_monthly_history` when they are replaced.
"""

from __future__ import annotations

from typing import Literal

from usage_pipeline.infra.duckdb_files import exact_sum
from usage_pipeline.serving.tables import LEDGER, OLD_MONTHS, PUBLISHES

DAILY, MONTHLY = "usage_daily_as_of", "usage_monthly_as_of"
# As Postgres names the types. An instant of the first or last event is not part of the ledger.
COLUMNS = {
    DAILY: {
        "usage_date": "date",
        "user_id": "uuid",
        "org_id": "uuid",
        "metric_type": "text",
        "total_quantity": "numeric",
        "event_count": "bigint",
    },
    MONTHLY: {
        "month": "date",
        "user_id": "uuid",
        "org_id": "uuid",
        "metric_type": "text",
        "total_quantity": "numeric",
        "event_count": "bigint",
        "active_days": "bigint",
    },
}
# Of a row of the ledger, what was published until then. An erasure moves a person's usage to
# nobody, as if it had always been there.
PUBLISHED_QUANTITY = "case cause when 'erasure' then new_quantity else old_quantity end"
PUBLISHED_EVENTS = "case cause when 'erasure' then new_event_count else old_event_count end"

_MOMENT = "cast(moment as timestamptz)"


def meters_of(publish: str) -> str:
    """The meters of a row of `usage_snapshots` as a query for DuckDB: a row has them where they are
    others than those of the publish before."""
    return (
        f"(select arg_max(meters, published_at) from {PUBLISHES} as known"
        f" where known.published_at <= {publish}.published_at)"
    )


def daily(schema: str = "") -> str:
    """The query of `usage_daily_as_of` for a parameter `moment`, which both engines read.

    Args:
        schema: that the tables are in, with a dot at its end; empty for the function's own.
    """
    then = _covered(schema)
    return f"""
        select usage_date, user_id, org_id, metric_type, total_quantity, event_count
        from {schema}usage_daily
        where updated_at <= {then}
        union all
        select usage_date, user_id, org_id, metric_type, {PUBLISHED_QUANTITY}, {PUBLISHED_EVENTS}
        from {schema}{LEDGER}
        where old_published_at <= {then} and restated_at > {_MOMENT}
    """


def monthly(engine: Literal["duckdb", "postgres"], schema: str = "") -> str:
    """The query of `usage_monthly_as_of`, likewise.

    A month's own row counts where there is one; else its days are added up. Months of nobody that
    hold an erased person's, too, and do not add up are NULL.
    """
    then = _covered(schema)
    if engine == "duckdb":
        total = exact_sum("total_quantity")
    else:
        total = (
            "case when count(total_quantity) = count(*) and abs(sum(total_quantity)) < 1e29"
            " then sum(total_quantity) end"
        )
    return f"""
        select month, user_id, org_id, metric_type,
               case sum(own)
                   when 0 then {total}
                   when 1 then max(total_quantity) filter (where own = 1)
               end as total_quantity,
               case sum(own)
                   when 0 then cast(sum(event_count) as bigint)
                   when 1 then max(event_count) filter (where own = 1)
               end as event_count,
               case sum(own)
                   when 0 then count(*)
                   when 1 then max(active_days)
               end as active_days
        from (
            select month, user_id, org_id, metric_type,
                   total_quantity, event_count, active_days, 1 as own
            from {schema}usage_monthly
            where updated_at <= {then}
            union all
            select month, user_id, org_id, metric_type,
                   total_quantity, event_count, active_days, 1 as own
            from {schema}{OLD_MONTHS}
            where published_at <= {then} and replaced_at > {_MOMENT}
            union all
            select cast(date_trunc('month', usage_date) as date), user_id, org_id, metric_type,
                   total_quantity, event_count, null as active_days, 0 as own
            from ({daily(schema)}) as days
        ) as published
        group by month, user_id, org_id, metric_type
    """


def _covered(schema: str) -> str:
    """The moment; NULL, to which nothing compares, before publishes were recorded."""
    publishes = f"{schema}{PUBLISHES} where published_at <= {_MOMENT}"
    return f"(select {_MOMENT} from {publishes} limit 1)"
