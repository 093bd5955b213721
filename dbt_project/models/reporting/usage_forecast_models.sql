{{ config(materialized='view', tags=['current']) }}

select
    scope,
    user_id,
    org_id,
    metric_type,
    as_of_date,
    history_days,
    level,
    trend,
    {% for weekday in weekdays() %}
    {{ weekday }},
    {% endfor %}
    spread,
    may_be_negative
from {{ ref('usage_forecast_fits') }}
where horizon = 0
