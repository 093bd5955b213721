-- What the application reads is what the usage tables say, in both directions.
with usage as (
    select
        user_id,
        org_id,
        'daily' as period_type,
        usage_date as period_date,
        metric_type,
        total_quantity,
        event_count
    from {{ ref('usage_daily') }}
    where {{ in_window('usage_date') }}
    union all
    select
        user_id,
        org_id,
        'monthly' as period_type,
        month as period_date,
        metric_type,
        total_quantity,
        event_count
    from {{ ref('usage_monthly') }}
    where {{ in_window('month', 'month') }}
),

-- a day that the zone skipped has no length and starts when the next one does;
-- the bounds of period_start, with a day's slack for the zone, let the engine skip all other rows
aggregations as (
    select
        aggregations.user_id,
        aggregations.org_id,
        aggregations.period_type,
        calendar.calendar_date as period_date,
        aggregations.metric_type,
        aggregations.total_quantity,
        cast({{ json_text('aggregations.metadata', '$."event_count"') }} as bigint) as event_count
    from {{ ref('usage_aggregations') }} as aggregations
    inner join {{ ref('stg_calendar') }} as calendar
        on aggregations.period_start = calendar.starts_at and calendar.starts_at < calendar.ends_at
    where
        aggregations.period_type = 'daily'
        and {{ in_window('calendar.calendar_date', 'day') }}
        and aggregations.period_start >= {{ add_days(window_start('day'), -1) }}
        and aggregations.period_start < {{ add_days(window_end('day'), 1) }}
    union all
    select
        aggregations.user_id,
        aggregations.org_id,
        aggregations.period_type,
        calendar.calendar_date as period_date,
        aggregations.metric_type,
        aggregations.total_quantity,
        cast({{ json_text('aggregations.metadata', '$."event_count"') }} as bigint) as event_count
    from {{ ref('usage_aggregations') }} as aggregations
    inner join {{ ref('stg_calendar') }} as calendar
        on aggregations.period_start = calendar.starts_at and calendar.starts_at < calendar.ends_at
    where
        aggregations.period_type = 'monthly'
        and {{ in_window('calendar.calendar_date', 'month') }}
        and aggregations.period_start >= {{ add_days(window_start('month'), -1) }}
        and aggregations.period_start < {{ add_days(window_end('month'), 1) }}
)

select
    user_id,
    org_id,
    period_type,
    period_date,
    metric_type,
    sum(usage_rows) as usage_rows,
    sum(aggregation_rows) as aggregation_rows,
    sum(difference) as quantity_difference,
    sum(event_difference) as event_difference
from (
    select
        user_id,
        org_id,
        period_type,
        period_date,
        metric_type,
        1 as usage_rows,
        0 as aggregation_rows,
        total_quantity as difference,
        event_count as event_difference
    from usage
    union all
    select
        user_id,
        org_id,
        period_type,
        period_date,
        metric_type,
        0 as usage_rows,
        1 as aggregation_rows,
        -total_quantity as difference,
        -event_count as event_difference
    from aggregations
) as sides
group by user_id, org_id, period_type, period_date, metric_type
having
    sum(usage_rows) <> 1
    or sum(aggregation_rows) <> 1
    or sum(difference) <> 0
    or sum(event_difference) <> 0
