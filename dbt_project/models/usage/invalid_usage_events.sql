{{ config(event_time='usage_date', tags=['daily']) }}

-- An event without an id has none that it could keep: its number among those of its day, in an
-- order in which only equal events tie.
with rejected as (
    select
        *,
        row_number() over (
            partition by usage_date, event_id
            order by created_at, user_id, org_id, event_type, quantity, event_data
        ) as position_of_day
    from {{ ref('int_rejected_events') }}
),

named as (
    select
        usage_date,
        coalesce(
            event_id,
            'no id ' || cast(usage_date as {{ text_type() }}) || ' '
            || cast(position_of_day as {{ text_type() }})
        ) as event_id,
        metric_type,
        reason,
        user_id,
        org_id,
        event_type,
        quantity,
        event_data,
        created_at
    from rejected
)

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
from named as rejected
inner join {{ ref('stg_landed_days') }} as landed_days
    on rejected.usage_date = landed_days.usage_date
left join {{ source('published', 'invalid_usage_events') }} as published
    on
        rejected.usage_date = published.usage_date
        and rejected.event_id = published.event_id
        and rejected.metric_type is not distinct from published.metric_type
        and rejected.reason = published.reason
