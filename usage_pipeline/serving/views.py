"""Views over published tables, each from one definition that DuckDB and Postgres both read.

`usage_aggregations` is the days and months of usage in one shape. Days and months of a row are
looked up in the published calendar, which the pipeline made: no engine's time zone data has a say
in when a period begins.

`usage_forecast` unrolls the parameters in `usage_forecast_models` to days, and `usage_limit_status`
adds the days that are left of the month to what is used of a limit, without unrolling them. All
arithmetic is on decimals that neither engine has to cut, so that both give the same digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
        telling: predicate for rows that show whether the view is the one that it should be.
    """

    name: str
    key: tuple[str, ...]
    tables: tuple[str, ...]
    description: str
    columns: Mapping[str, str]
    definition: Callable[[Json, str], str]
    dated: str | None = None
    telling: str = "true"


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


def _steps() -> Iterator[tuple[int, str, str]]:
    """Of each day ahead of a model how much of its trend it has, and how much wider its band is."""
    damping = Decimal(0)
    for step in range(1, FORECAST_DAYS + _OLDEST + 1):
        damping += _DAMPING**step
        yield step, f"{damping:.6f}", f"{1 + _WIDENING * step:.6f}"


def _forecast(json: Json, schema: str) -> str:
    steps = ", ".join(f"({step}, {damping}, {wider})" for step, damping, wider in _steps())
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
                inner join (values {steps}) as steps (step, damping, widening)
                    on steps.step = newest.as_of_date + days.ahead - models.as_of_date
                where models.level is not null
            ) as parameters
        ) as forecasts
    """


# A month of days can be added up, in either engine.
_CALCULABLE = "case when {0} between -1e27 and 1e27 then {0} end".replace("1e27", f"1{'0' * 27}.0")
# Which ids a row of each scope has; one scope by one, since no index finds an id that may be null.
_SCOPES = {"user": ("user_id",), "member": ("user_id", "org_id"), "org": ("org_id",)}


def _limit_status(json: Json, schema: str) -> str:
    """What is expected until a day is one sum for all models of an age: how many days of each
    weekday there are until then, and how much of the trend these have."""
    of_weekday = "sum(case when ahead > 0 and weekday = {} then {} else 0 end) over until"
    until = ", ".join(
        f"cast({of_weekday.format(number, value)} as {kind}) as {name}_{part}"
        for number, name in enumerate(_WEEKDAYS, 1)
        for part, value, kind in (
            ("days", 1, "decimal(2, 0)"),
            ("trend", "damping", "decimal(8, 6)"),
        )
    )
    ages = ", ".join(f"({age})" for age in range(_OLDEST + 1))
    steps = ", ".join(f"({step}, {damping})" for step, damping, _ in _steps())
    widths = ", ".join(f"({days}, {_width(days):.6f})" for days in range(31))
    subjects = " union all ".join(_subjects(scope, schema) for scope in _SCOPES)
    return f"""
        with newest as (
            select as_of_date, cast(date_trunc('month', as_of_date) as date) as month
            from (
                select max(metric_date) as as_of_date from {schema}platform_metrics_daily
            ) as days
        ),
        months_end as (
            select cast(month + interval '1 month' as date) - 1 as forecast_date from newest
        ),
        outlooks as (
            select
                as_of_date, forecast_date, {until},
                cast(
                    width * (1 + {_WIDENING / 2} * (2 * age + ahead + 1)) as decimal(8, 6)
                ) as width
            from (
                select
                    newest.as_of_date - ages.age as as_of_date,
                    newest.as_of_date + days.ahead as forecast_date,
                    extract(isodow from newest.as_of_date + days.ahead) as weekday,
                    ages.age, days.ahead, days.width, steps.damping
                from newest
                cross join (values {ages}) as ages (age)
                cross join (values {widths}) as days (ahead, width)
                inner join (values (0, 0.0), {steps}) as steps (step, damping)
                    on ages.age + days.ahead = steps.step
            ) as days
            window until as (partition by age order by ahead)
        )
        select
            scope, user_id, org_id, metric_type, month, plan,
            used_quantity, limit_quantity, used_ratio, status,
            cast(used_quantity + coming as decimal(38, 9)) as projected_quantity,
            cast(
                case
                    when not may_be_negative and coming < half_width then used_quantity
                    else used_quantity + coming - half_width
                end as decimal(38, 9)
            ) as projected_low,
            cast(used_quantity + coming + half_width as decimal(38, 9)) as projected_high,
            case
                when status = 'exceeded' then reached_date
                else (
                    select min(outlooks.forecast_date)
                    from outlooks
                    where {_reached("used_quantity + status.coming")}
                        and outlooks.as_of_date = status.as_of_date
                        and {_reached(f"used_quantity + {_coming('status')}")}
                )
            end as projected_limit_date
        from (
            select
                subjects.*,
                {_coming("subjects")} as coming,
                cast(subjects.spread * outlooks.width as decimal(28, 9)) as half_width
            from ({subjects}) as subjects
            cross join months_end
            left join outlooks
                on outlooks.as_of_date = subjects.as_of_date
                    and outlooks.forecast_date = months_end.forecast_date
        ) as status
    """


def _coming(model: str) -> str:
    """What a model expects until the day of `outlooks`."""
    days, trend = (
        " + ".join(f"{model}.{name} * outlooks.{name}_{part}" for name in _WEEKDAYS)
        for part in ("days", "trend")
    )
    total = (
        f"{model}.level * cast({days} as decimal(9, 6))"
        f" + {model}.trend * cast({trend} as decimal(16, 12))"
    )
    return f"""cast(
        case when not {model}.may_be_negative and {total} < 0 then 0 else {total} end
        as decimal(28, 9)
    )"""


def _width(days: int) -> Decimal:
    """The band of so many days together, in bands of one: each has an error of its own, and all of
    them one in common, as great as that of the mean of a week."""
    return (days * (1 + Decimal(days) / 7)).sqrt()


def _reached(used: str) -> str:
    """Whether so much is the limit; of a limit of 0, any use is."""
    return f"({used} >= limit_quantity and (limit_quantity > 0 or {used} > 0))"


def _are_of(scope: str, table: str) -> str:
    """Whether the ids of another table's row are those of `used`."""
    names = ("org_id",) if (scope, table) == ("org", "days") else ("user_id", "org_id")
    return " and ".join(
        f"{table}.{name} = used.{name}" if name in _SCOPES[scope] else f"{table}.{name} is null"
        for name in names
    )


def _subjects(scope: str, schema: str) -> str:
    """Those of a scope that used something of a limit in the running month: with their models, and
    with the day on which they came to it. That is known of what adds up, of which the platform has
    a model, too."""
    days = "org_usage_daily" if scope == "org" else "usage_daily"
    ids = ", ".join(
        f"used.{name}" if name in _SCOPES[scope] else f"cast(null as uuid) as {name}"
        for name in ("user_id", "org_id")
    )
    return f"""
        select
            cast('{scope}' as text) as scope, {ids}, used.metric_type, used.month,
            used.plan, used.used_quantity, used.limit_quantity, used.used_ratio, used.status,
            models.as_of_date, models.may_be_negative,
            cast(models.level as decimal(25, 9)) as level,
            cast(models.trend as decimal(22, 9)) as trend,
            cast(models.spread as decimal(25, 9)) as spread,
            {", ".join(f"cast(models.{name} as decimal(7, 6)) as {name}" for name in _WEEKDAYS)},
            case
                when exists (
                    select 1
                    from {schema}usage_forecast_models as platform
                    where platform.scope = 'platform' and platform.metric_type = used.metric_type
                ) then (
                    select case
                        when count(so_far.amount) = count(*) then min(
                            case when {_reached("so_far.quantity")} then so_far.usage_date end
                        )
                    end
                    from (
                        select
                            usage_date, amount,
                            sum(amount) over (order by usage_date) as quantity
                        from (
                            select days.usage_date,
                                   {_CALCULABLE.format("days.total_quantity")} as amount
                            from {schema}{days} as days
                            where {_are_of(scope, "days")}
                                and days.metric_type = used.metric_type
                                and days.usage_date >= used.month
                                and used.status = 'exceeded'
                        ) as days
                    ) as so_far
                )
            end as reached_date
        from {schema}usage_limits_monthly as used
        inner join newest on used.month = newest.month
        left join {schema}usage_forecast_models as models
            on models.scope = '{scope}'
                and {_are_of(scope, "models")}
                and models.metric_type = case
                    when {_CALCULABLE.format("used.used_quantity")} is not null
                        then used.metric_type
                end
                and models.level is not null
        where used.scope = '{scope}'
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
        telling="scope = 'platform'",
    ),
    View(
        "usage_limit_status",
        key=("scope", "user_id", "org_id", "metric_type"),
        tables=(
            *("usage_limits_monthly", "usage_forecast_models", "platform_metrics_daily"),
            *("usage_daily", "org_usage_daily"),
        ),
        description=(
            "One row per subject with usage in the current calendar month and meter that its plan "
            "limits, a user's personal use, an organisation, or a member within an organisation "
            "whose plan limits members: what is used, what is expected at the month's end, and "
            "when the limit is reached. A view over usage_limits_monthly and "
            "usage_forecast_models in DuckDB and Postgres."
        ),
        columns={
            "scope": "VARCHAR",
            "user_id": "UUID",
            "org_id": "UUID",
            "metric_type": "VARCHAR",
            "month": "DATE",
            "plan": "VARCHAR",
            "used_quantity": "DECIMAL(38,9)",
            "limit_quantity": "DECIMAL(38,9)",
            "used_ratio": "DECIMAL(38,9)",
            "status": "VARCHAR",
            "projected_quantity": "DECIMAL(38,9)",
            "projected_low": "DECIMAL(38,9)",
            "projected_high": "DECIMAL(38,9)",
            "projected_limit_date": "DATE",
        },
        definition=_limit_status,
    ),
)

# All that is published to DuckDB and Postgres; Parquet holds the tables only.
RELATIONS = (*(table.name for table in SERVED_TABLES), *(view.name for view in VIEWS))
