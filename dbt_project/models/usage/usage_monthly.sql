{{ config(materialized='view', event_time='month', tags=['monthly']) }}

select
    month,
    user_id,
    org_id,
    metric_type,
    {{ total_of_partials() }} as total_quantity,
    event_count,
    active_days,
    first_event_at,
    last_event_at
from {{ ref('usage_partials_monthly') }}
