{{ config(event_time='usage_date', tags=['daily']) }}

with partials as (
    select * from {{ ref('usage_partials_daily') }} where {{ in_window('usage_date') }}
),

distinct_values as (
    select * from {{ ref('usage_values_daily') }} where {{ in_window('usage_date') }}
)

select
    usage_date,
    user_id,
    org_id,
    metric_type,
    total_quantity,
    event_count,
    first_event_at,
    last_event_at
from ({{ merged_usage('partials', 'distinct_values', ['usage_date', 'user_id', 'org_id']) }}) as totals
