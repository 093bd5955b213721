{{ config(event_time='usage_date', tags=['daily']) }}
{% set events = ref('stg_usage_events') %}

with rejected as (
    select
        usage_date,
        event_id,
        cast(null as {{ text_type() }}) as metric_type,
        invalid_reason as reason,
        user_id,
        org_id,
        event_type,
        coalesce(quantity_raw, cast(quantity as {{ text_type() }})) as quantity,
        event_data,
        created_at
    from {{ events }}
    where {{ in_window('usage_date') }} and not is_valid

    {% for meter in own_pass_meters() if meter.value %}
    union all
    select
        usage_date,
        event_id,
        '{{ meter.key }}' as metric_type,
        case
            when value_text is null then 'value is missing or null'
            else 'value is not a finite number of at most 29 integer digits'
        end as reason,
        user_id,
        org_id,
        event_type,
        cast(quantity as {{ text_type() }}) as quantity,
        event_data,
        created_at
    from ({{ meter_events(meter, events) }}) as metered
    where not ({{ meter_value_is_valid(meter) }})
    {% endfor %}
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
from rejected
inner join {{ ref('stg_landed_days') }} as landed_days
    on rejected.usage_date = landed_days.usage_date
left join {{ source('published', 'invalid_usage_events') }} as published
    on
        rejected.usage_date = published.usage_date
        and rejected.event_id = published.event_id
        and rejected.metric_type is not distinct from published.metric_type
        and rejected.reason = published.reason
