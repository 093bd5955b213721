-- A break-down loses no event: its values, the missing one included, add up to usage_daily.
with broken_down as (
    select
        usage_date,
        user_id,
        org_id,
        metric_type,
        dimension,
        {{ total_of('total_quantity') }} as total_quantity,
        sum(event_count) as event_count
    from {{ ref('usage_daily_by_dimension') }}
    where {{ in_window('usage_date') }}
    group by usage_date, user_id, org_id, metric_type, dimension
),

usage as (
    select * from {{ ref('usage_daily') }} where {{ in_window('usage_date') }}
)

select
    broken_down.usage_date,
    broken_down.user_id,
    broken_down.org_id,
    broken_down.metric_type,
    broken_down.dimension,
    broken_down.total_quantity,
    usage.total_quantity as expected_quantity,
    broken_down.event_count,
    usage.event_count as expected_events
from broken_down
left join usage
    on {{ same('broken_down', 'usage', ['usage_date', 'user_id', 'org_id', 'metric_type']) }}
where
    usage.event_count is null
    or broken_down.event_count <> usage.event_count
    or ({{ is_additive('broken_down.metric_type') }} and broken_down.total_quantity <> usage.total_quantity)
