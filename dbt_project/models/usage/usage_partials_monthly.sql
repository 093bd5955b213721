{{ config(event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with partials as (
    select
        {{ month_of('usage_date') }} as month,
        *
    from {{ ref('usage_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
)

select
    month,
    user_id,
    org_id,
    metric_type,
    event_count,
    sum_quantity,
    sum_great,
    min_quantity,
    max_quantity,
    latest_quantity,
    latest_event_id,
    cells as active_days,
    first_event_at,
    last_event_at
from ({{ merged_partials('partials', ['month', 'user_id', 'org_id', 'metric_type']) }}) as merged
