{{ config(materialized='windowed', event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with partials as (
    select * from {{ ref('usage_partials_monthly') }} where {{ in_window('month', 'month') }}
),

distinct_values as (
    select * from {{ ref('usage_values_monthly') }} where {{ in_window('month', 'month') }}
)

select
    month,
    metric_type,
    total_quantity,
    event_count,
    active_users,
    active_orgs
from ({{ merged_usage('partials', 'distinct_values', ['month']) }}) as totals
