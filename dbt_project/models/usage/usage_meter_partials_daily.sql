{{ config(event_time='usage_date', tags=['daily']) }}
-- depends_on: {{ ref('usage_replaced_partials') }}, which keeps what is replaced
{% set events = ref('stg_usage_events') %}

{% for meter in own_pass_meters() %}
select
    usage_date,
    user_id,
    org_id,
    '{{ meter.key }}' as metric_type,
    count(*) as event_count,
    {{ ordinary_sum(meter_number(meter)) }} as sum_quantity,
    {{ great_sum(meter_number(meter)) }} as sum_great,
    min({{ meter_number(meter) }}) as min_quantity,
    max({{ meter_number(meter) }}) as max_quantity,
    {{ newest(meter_number(meter), 'created_at', 'event_id') }} as latest_quantity,
    {{ newest('event_id', 'created_at', 'event_id') }} as latest_event_id,
    {{ 'count(distinct value_text)' if meter.aggregation == 'unique_count' else 'cast(null as bigint)' }}
        as distinct_count,
    min(created_at) as first_event_at,
    max(created_at) as last_event_at
from ({{ meter_events(meter, events) }}) as metered
where {{ meter_value_is_valid(meter) }}
group by usage_date, user_id, org_id
{% if not loop.last %} union all {% endif %}
{% else %}
select * from {{ empty_partials() }}
{% endfor %}
