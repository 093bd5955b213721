-- The platform's event counts are those of the events, by day and by month.
with events as (
    select
        usage_date,
        {{ month_of('usage_date') }} as month,
        event_count
    from {{ ref('usage_event_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
),

sides as (
    select
        'daily' as period_type,
        usage_date as period_date,
        event_count as events_found,
        0 as events_published
    from events
    union all
    select
        'daily' as period_type,
        metric_date as period_date,
        0 as events_found,
        event_count as events_published
    from {{ ref('platform_metrics_daily') }}
    where {{ in_window('metric_date', 'month') }}
    union all
    select
        'monthly' as period_type,
        month as period_date,
        event_count as events_found,
        0 as events_published
    from events
    union all
    select
        'monthly' as period_type,
        month as period_date,
        0 as events_found,
        event_count as events_published
    from {{ ref('platform_metrics_monthly') }}
    where {{ in_window('month', 'month') }}
)

select
    period_type,
    period_date,
    sum(events_found) as events_found,
    sum(events_published) as events_published
from sides
group by period_type, period_date
having sum(events_found) <> sum(events_published)
