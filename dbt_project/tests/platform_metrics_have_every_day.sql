-- One row for each day from USAGE_START_DATE to the last landed one, and activity on landed days only.
with expected as (
    select
        calendar.calendar_date as metric_date,
        landed_days.usage_date is not null as is_landed
    from {{ ref('stg_calendar') }} as calendar
    left join {{ ref('stg_landed_days') }} as landed_days
        on calendar.calendar_date = landed_days.usage_date
    where
        calendar.calendar_date >= {{ first_day() }}
        and calendar.calendar_date <= (select max(usage_date) from {{ ref('stg_landed_days') }})
)

select
    expected.metric_date as expected_date,
    expected.is_landed,
    metrics.metric_date,
    metrics.event_count
from expected
full outer join {{ ref('platform_metrics_daily') }} as metrics
    on expected.metric_date = metrics.metric_date
where
    expected.metric_date is null
    or metrics.metric_date is null
    or expected.is_landed <> (metrics.event_count is not null)
