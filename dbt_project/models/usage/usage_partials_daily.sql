{{ config(materialized='view', event_time='usage_date', tags=['daily']) }}

with plain_meters as (
    {% for meter in plain_meters() %}
    select
        '{{ meter.event_type }}' as event_type,
        '{{ meter.key }}' as metric_type
    {% if not loop.last %} union all {% endif %}
    {% else %}
    select
        '' as event_type,
        '' as metric_type
    where false
    {% endfor %}
)

select
    by_event_type.usage_date,
    by_event_type.user_id,
    by_event_type.org_id,
    plain_meters.metric_type,
    by_event_type.event_count,
    by_event_type.sum_quantity,
    by_event_type.sum_great,
    by_event_type.min_quantity,
    by_event_type.max_quantity,
    cast(null as decimal(38, 9)) as latest_quantity,
    cast(null as {{ text_type() }}) as latest_event_id,
    cast(null as bigint) as distinct_count,
    by_event_type.first_event_at,
    by_event_type.last_event_at
from {{ ref('usage_event_partials_daily') }} as by_event_type
inner join plain_meters on by_event_type.event_type = plain_meters.event_type
union all
select
    usage_date,
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
    distinct_count,
    first_event_at,
    last_event_at
from {{ ref('usage_meter_partials_daily') }}
