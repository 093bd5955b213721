{{ config(
    materialized='incremental', incremental_strategy='replace_days', event_time='month',
    tags=['monthly'], meta={'reach': 'month'}
) }}

with partials as (
    select * from {{ ref('usage_partials_monthly') }} where {{ in_window('month', 'month') }}
),

distinct_values as (
    select
        {{ month_of('usage_date') }} as month,
        metric_type,
        value_text
    from {{ ref('usage_values_daily') }}
    where {{ in_window('usage_date', 'month') }}
)

select
    month,
    metric_type,
    total_quantity,
    event_count,
    active_users,
    active_orgs
from ({{ merged_usage('partials', 'distinct_values', ['month']) }}) as totals
