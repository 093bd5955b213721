{{ config(event_time='usage_date', tags=['daily']) }}
{% set events = ref('stg_usage_events') %}
{% set by_event_type = ref('usage_event_partials_daily') %}

with plain as (
    select
        days.usage_date,
        days.user_id,
        days.org_id,
        plain_meters.metric_type,
        days.event_count,
        days.sum_quantity,
        days.sum_great,
        days.min_quantity,
        days.max_quantity,
        cast(null as decimal(38, 9)) as latest_quantity,
        cast(null as {{ text_type() }}) as latest_event_id,
        days.first_event_at,
        days.last_event_at
    from {{ by_event_type }} as days
    inner join (
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
    ) as plain_meters
        on days.event_type = plain_meters.event_type
    where {{ in_window('days.usage_date') }}
),

own_pass as (
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
        min(created_at) as first_event_at,
        max(created_at) as last_event_at
    from ({{ meter_events(meter, events) }}) as metered
    where {{ meter_value_is_valid(meter) }}
    group by usage_date, user_id, org_id
    {% if not loop.last %} union all {% endif %}
    {% else %}
    select * from {{ empty_partials() }}
    {% endfor %}
)

select * from plain
union all
select * from own_pass
