"""Views over published tables, each from one definition that DuckDB and Postgres both read.

`usage_aggregations` is the days and months of usage in one shape. Days and months of a row are
looked up in the published calendar, which the pipeline made: no engine's time zone data has a say
in when a period begins.

`usage_forecast` unrolls the parameters in `usage_forecast_models` to days. All its arithmetic is on
decimals that neither engine has to cut, so that both give the same digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from usage_pipeline.serving.tables import SERVED_TABLES

Json = Literal["json", "jsonb"]

FORECAST_DAYS = 30
_OLDEST = 13  # days that a model may be old, since users are fitted every other week
# What is left of the trend from one day to the next, and by what share of its first width the band
# widens: as in the macros `damping` and `widening`, which judge the forecast.
_DAMPING, _WIDENING = Decimal("0.93"), Decimal("0.007")
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class View:
    """A view in the snapshot and in Postgres; Parquet cannot hold it.

    Attributes:
        tables: published tables that it reads.
        columns: names and types, as DuckDB names these.
        definition: the query, from the engine's type for documents, and from what stands before the
            name of a table: a schema with a dot at its end, or nothing for the view's own.
        dated: column that places a row in time; None where the rows are not of days past.
    """

    name: str
    key: tuple[str, ...]
    tables: tuple[str, ...]
    description: str
    columns: Mapping[str, str]
    definition: Callable[[Json, str], str]
    dated: str | None = None


def _aggregations(json: Json, schema: str) -> str:
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


def _forecast(json: Json, schema: str) -> str:
    damping, steps = Decimal(0), []
    for step in range(1, FORECAST_DAYS + _OLDEST + 1):
        damping += _DAMPING**step
        steps.append(f"({step}, {damping:.6f}, {1 + _WIDENING * step:.6f})")
    factors = " ".join(f"when {day} then {name}" for day, name in enumerate(_WEEKDAYS, 1))
    return f"""
        select
            scope, user_id, org_id, metric_type, forecast_date,
            cast(expected as decimal(38, 9)) as expected,
            cast(
                case
                    when may_be_negative or expected > half_width then expected - half_width
                    else 0
                end as decimal(38, 9)
            ) as low,
            cast(expected + half_width as decimal(38, 9)) as high
        from (
            select
                scope, user_id, org_id, metric_type, forecast_date, may_be_negative,
                cast(
                    case
                        when may_be_negative or level + trend * damping > 0
                            then cast(level + trend * damping as decimal(25, 9))
                        else 0
                    end
                    * cast(case extract(isodow from forecast_date) {factors} end as decimal(7, 6))
                    as decimal(28, 9)
                ) as expected,
                cast(spread * widening as decimal(28, 9)) as half_width
            from (
                select
                    models.scope, models.user_id, models.org_id, models.metric_type,
                    newest.as_of_date + days.ahead as forecast_date,
                    cast(models.level as decimal(25, 9)) as level,
                    cast(models.trend as decimal(25, 9)) as trend,
                    cast(models.spread as decimal(25, 9)) as spread,
                    models.may_be_negative,
                    {", ".join(f"models.{name}" for name in _WEEKDAYS)},
                    cast(steps.damping as decimal(8, 6)) as damping,
                    cast(steps.widening as decimal(8, 6)) as widening
                from {schema}usage_forecast_models as models
                cross join (
                    select max(as_of_date) as as_of_date
                    from {schema}usage_forecast_models
                    where scope = 'platform'
                ) as newest
                cross join (
                    values {", ".join(f"({ahead})" for ahead in range(1, FORECAST_DAYS + 1))}
                ) as days (ahead)
                inner join (values {", ".join(steps)}) as steps (step, damping, widening)
                    on steps.step = newest.as_of_date + days.ahead - models.as_of_date
                where models.level is not null
            ) as parameters
        ) as forecasts
    """


VIEWS = (
    View(
        "usage_aggregations",
        key=("id",),
        tables=("usage_daily", "usage_monthly", "calendar"),
        description=(
            "One row per user, organisation, period (a local day or month) and meter: a view over "
            "usage_daily and usage_monthly in DuckDB and Postgres, for the application."
        ),
        columns={
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
        },
        definition=_aggregations,
        dated="period_start",
    ),
    View(
        "usage_forecast",
        key=("scope", "user_id", "org_id", "metric_type", "forecast_date"),
        tables=("usage_forecast_models",),
        description=(
            "One row per forecast model that is no cold start and each of the 30 days after the "
            "newest one: what is expected, and between what four of five days should lie. A view "
            "over usage_forecast_models in DuckDB and Postgres."
        ),
        columns={
            "scope": "VARCHAR",
            "user_id": "UUID",
            "org_id": "UUID",
            "metric_type": "VARCHAR",
            "forecast_date": "DATE",
            "expected": "DECIMAL(38,9)",
            "low": "DECIMAL(38,9)",
            "high": "DECIMAL(38,9)",
        },
        definition=_forecast,
    ),
)

# All that is published to DuckDB and Postgres; Parquet holds the tables only.
RELATIONS = (*(table.name for table in SERVED_TABLES), *(view.name for view in VIEWS))
