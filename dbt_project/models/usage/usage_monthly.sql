{{ config(event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with partials as (
    select * from {{ ref('usage_partials_monthly') }} where {{ in_window('month', 'month') }}
),

distinct_values as (
    select * from {{ ref('usage_values_monthly') }} where {{ in_window('month', 'month') }}
),

totals as (
    {{ merged_usage('partials', 'distinct_values', ['month', 'user_id', 'org_id']) }}
)

select
    totals.month,
    totals.user_id,
    totals.org_id,
    totals.metric_type,
    totals.total_quantity,
    totals.event_count,
    partials.active_days,
    totals.first_event_at,
    totals.last_event_at
from totals
inner join partials
    on {{ same('totals', 'partials', ['month', 'user_id', 'org_id', 'metric_type']) }}
