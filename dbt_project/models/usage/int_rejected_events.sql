{{ config(materialized='ephemeral') }}
{% set events = ref('stg_usage_events') %}

select
    usage_date,
    event_id,
    cast(null as {{ text_type() }}) as metric_type,
    invalid_reason as reason,
    user_id,
    org_id,
    event_type,
    coalesce(quantity_raw, {{ spelled_quantity('quantity') }}) as quantity,
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
    coalesce(quantity_raw, {{ spelled_quantity('quantity') }}) as quantity,
    event_data,
    created_at
from ({{ meter_events(meter, events) }}) as metered
where not ({{ meter_value_is_valid(meter) }})
{% endfor %}
