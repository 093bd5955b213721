{{ config(materialized='windowed', event_time='usage_date', tags=['daily']) }}

with partials as (
    select * from {{ ref('usage_partials_daily') }} where {{ in_window('usage_date') }}
),

distinct_values as (
    select * from {{ ref('usage_values_daily') }} where {{ in_window('usage_date') }}
)

select
    usage_date,
    metric_type,
    total_quantity,
    event_count,
    active_users,
    active_orgs
from ({{ merged_usage('partials', 'distinct_values', ['usage_date']) }}) as totals
