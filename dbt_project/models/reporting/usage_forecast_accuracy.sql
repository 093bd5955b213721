{{ config(tags=['current']) }}

with tested as (
    select
        scope,
        metric_type,
        horizon,
        sum(mase) as mase,
        sum(naive_mase) as naive_mase,
        sum(days_within) as days_within,
        sum(tested_days) as tested_days,
        count(mase) as series,
        max(as_of_date) as as_of_date
    from {{ ref('usage_forecast_fits') }}
    where mase is not null
    group by scope, metric_type, horizon
)

select
    scope,
    metric_type,
    horizon,
    cast({{ estimate('mase') }} / series as decimal(38, 9)) as mase,
    cast({{ estimate('naive_mase') }} / series as decimal(38, 9)) as naive_mase,
    cast({{ estimate('days_within') }} / tested_days as decimal(38, 9)) as coverage,
    series,
    as_of_date
from tested
