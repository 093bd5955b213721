-- Each landed event is either counted or listed as invalid, and its quantity with it.
with counted as (
    select
        usage_date,
        event_count as counted_events,
        0 as invalid_events,
        0 as landed_events,
        {{ total_of_parts('sum_quantity', 'sum_great') }} as found_sum,
        cast(0 as decimal(38, 9)) as landed_sum
    from {{ ref('usage_event_partials_daily') }}
    where {{ in_window('usage_date') }}
),

invalid as (
    select
        usage_date,
        0 as counted_events,
        1 as invalid_events,
        0 as landed_events,
        coalesce({{ to_quantity('quantity') }}, 0) as found_sum,
        cast(0 as decimal(38, 9)) as landed_sum
    from {{ ref('invalid_usage_events') }}
    where {{ in_window('usage_date') }} and metric_type is null
),

landed as (
    select
        usage_date,
        0 as counted_events,
        0 as invalid_events,
        landed_events,
        cast(0 as decimal(38, 9)) as found_sum,
        sum_quantity as landed_sum
    from {{ ref('stg_landed_days') }}
    where {{ in_window('usage_date') }}
)

select
    usage_date,
    sum(counted_events) as counted_events,
    sum(invalid_events) as invalid_events,
    sum(landed_events) as landed_events,
    {{ total_of('found_sum') }} as found_sum,
    {{ total_of('landed_sum') }} as landed_sum
from (
    select * from counted
    union all
    select * from invalid
    union all
    select * from landed
) as sides
group by usage_date
having
    sum(counted_events) + sum(invalid_events) <> sum(landed_events)
    or {{ total_of('found_sum') }} <> {{ total_of('landed_sum') }}
