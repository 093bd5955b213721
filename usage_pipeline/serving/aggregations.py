"""`usage_aggregations`: the days and months of usage in one shape, a view in DuckDB and Postgres.

Days and months of a row are looked up in the published calendar, which the pipeline made: no
engine's time zone data has a say in when a period begins.
"""

from __future__ import annotations

from typing import Literal

NAME = "usage_aggregations"
TABLES = ("usage_daily", "usage_monthly", "calendar")  # that it reads
DESCRIPTION = (
    "One row per user, organisation, period (a local day or month) and meter: a view over "
    "usage_daily and usage_monthly in DuckDB and Postgres, for the application."
)
# As DuckDB names the types.
COLUMNS = {
    "id": "UUID",
    "user_id": "UUID",
    "org_id": "UUID",
    "period_type": "VARCHAR",
    "period_start": "TIMESTAMP WITH TIME ZONE",
    "metric_type": "VARCHAR",
    "period_end": "TIMESTAMP WITH TIME ZONE",
    "total_quantity": "DECIMAL(38,9)",
    "metadata": "JSON",
    "created_at": "TIMESTAMP WITH TIME ZONE",
    "updated_at": "TIMESTAMP WITH TIME ZONE",
}


def definition(json: Literal["json", "jsonb"], schema: str = "") -> str:
    """The view's query, which DuckDB and Postgres both read.

    Args:
        json: the engine's type for documents.
        schema: that the tables are in, with a dot at its end; empty for the view's own.
    """
    return f"""
        select
            cast(md5(concat(
                coalesce(cast(user_id as text), ''), '|', coalesce(cast(org_id as text), ''), '|',
                period_type, '|', cast(extract(epoch from period_start) as bigint), '|', metric_type
            )) as uuid) as id,
            user_id, org_id, period_type, period_start, metric_type, period_end, total_quantity,
            cast(
                concat('{{"event_count": ', event_count, ', "active_days": ', active_days, '}}')
                as {json}
            ) as metadata,
            created_at, updated_at
        from (
            select
                days.user_id, days.org_id, cast('daily' as text) as period_type,
                calendar.starts_at as period_start, days.metric_type,
                calendar.ends_at as period_end, days.total_quantity, days.event_count,
                cast(1 as bigint) as active_days, days.created_at, days.updated_at
            from {schema}usage_daily as days
            inner join {schema}calendar as calendar on days.usage_date = calendar.calendar_date
            union all
            select
                months.user_id, months.org_id, cast('monthly' as text) as period_type,
                first_days.starts_at as period_start, months.metric_type,
                next_months.starts_at as period_end, months.total_quantity, months.event_count,
                months.active_days, months.created_at, months.updated_at
            from {schema}usage_monthly as months
            inner join {schema}calendar as first_days on months.month = first_days.calendar_date
            inner join {schema}calendar as next_months
                on cast(months.month + interval '1 month' as date) = next_months.calendar_date
        ) as periods
    """
