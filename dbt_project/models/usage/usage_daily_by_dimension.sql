{{ config(event_time='usage_date', tags=['daily']) }}
{% set events = ref('stg_usage_events') %}
{% set selects = [] %}
{% for meter in var('meters') %}
{% for dimension in meter.dimensions %}
{% set total = {
    'sum': total_of_parts(ordinary_sum('value_number'), great_sum('value_number')),
    'count': 'count(*)',
    'unique_count': 'count(distinct value_text)',
    'min': 'min(value_number)',
    'max': 'max(value_number)',
    'avg': exact_average(total_of_parts(ordinary_sum('value_number'), great_sum('value_number')), 'count(*)'),
    'latest': newest('value_number', 'created_at', 'event_id'),
}[meter.aggregation] %}
{% set select %}
select
    usage_date,
    user_id,
    org_id,
    '{{ meter.key }}' as metric_type,
    '{{ dimension.name }}' as dimension,
    dimension_{{ dimension.name }} as dimension_value,
    cast({{ total }} as decimal(38, 9)) as total_quantity,
    count(*) as event_count
from ({{ meter_events(meter, events) }}) as metered
where {{ meter_value_is_valid(meter) }}
group by usage_date, user_id, org_id, dimension_{{ dimension.name }}
{% endset %}
{% do selects.append(select) %}
{% endfor %}
{% endfor %}

{% if selects %}
{{ selects | join(' union all ') }}
{% else %}
select
    usage_date,
    user_id,
    org_id,
    event_type as metric_type,
    event_type as dimension,
    event_type as dimension_value,
    quantity as total_quantity,
    cast(0 as bigint) as event_count
from {{ events }}
where false
{% endif %}
