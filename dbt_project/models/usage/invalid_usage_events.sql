{{ config(event_time='usage_date', tags=['daily']) }}

select
    rejected.event_id,
    rejected.metric_type,
    rejected.reason,
    cast(rejected.user_id as {{ text_type() }}) as user_id,
    cast(rejected.org_id as {{ text_type() }}) as org_id,
    rejected.event_type,
    rejected.quantity,
    rejected.event_data,
    cast(rejected.created_at as {{ text_type() }}) as created_at,
    rejected.usage_date,
    coalesce(published.detected_at, landed_days.extracted_at) as detected_at
from {{ ref('int_rejected_events') }} as rejected
inner join {{ ref('stg_landed_days') }} as landed_days
    on rejected.usage_date = landed_days.usage_date
left join {{ source('published', 'invalid_usage_events') }} as published
    on
        rejected.usage_date = published.usage_date
        and rejected.event_id = published.event_id
        and rejected.metric_type is not distinct from published.metric_type
        and rejected.reason = published.reason
