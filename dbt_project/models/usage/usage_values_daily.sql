{{ config(event_time='usage_date', tags=['daily']) }}
{% set events = ref('stg_usage_events') %}

{% for meter in meters('unique_count') %}
select distinct
    usage_date,
    user_id,
    org_id,
    '{{ meter.key }}' as metric_type,
    value_text
from ({{ meter_events(meter, events) }}) as metered
where {{ meter_value_is_valid(meter) }}
{% if not loop.last %} union all {% endif %}
{% else %}
select
    cast(null as date) as usage_date,
    cast(null as {{ uuid_type() }}) as user_id,
    cast(null as {{ uuid_type() }}) as org_id,
    cast(null as {{ text_type() }}) as metric_type,
    cast(null as {{ text_type() }}) as value_text
from {{ events }}
where false
{% endfor %}
