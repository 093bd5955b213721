{{ config(materialized='view', event_time='usage_date', tags=['daily']) }}

select
    usage_date,
    user_id,
    org_id,
    metric_type,
    {{ total_of_partials() }} as total_quantity,
    event_count,
    first_event_at,
    last_event_at
from {{ ref('usage_partials_daily') }}
