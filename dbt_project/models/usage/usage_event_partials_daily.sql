{{ config(event_time='usage_date', tags=['daily']) }}
-- depends_on: {{ ref('usage_replaced_partials') }}, which keeps what is replaced

with events as (
    select * from {{ ref('stg_usage_events') }}
    where {{ in_window('usage_date') }} and is_valid
)

select
    usage_date,
    user_id,
    org_id,
    event_type,
    count(*) as event_count,
    {{ ordinary_sum('quantity') }} as sum_quantity,
    {{ great_sum('quantity') }} as sum_great,
    min(quantity) as min_quantity,
    max(quantity) as max_quantity,
    min(created_at) as first_event_at,
    max(created_at) as last_event_at
from events
group by usage_date, user_id, org_id, event_type
