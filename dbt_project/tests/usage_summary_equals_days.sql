-- Additive meters: the platform's trailing windows are the sums of its days, however they were read.
with summary as (
    select
        *,
        case time_window
            when 'week' then {{ add_days('window_start', -7) }}
            when 'month' then {{ add_days('window_start', -30) }}
            when 'year' then {{ add_days('window_start', -365) }}
        end as previous_start
    from {{ ref('usage_summary') }}
    where scope = 'platform' and {{ is_additive() }}
),

days as (
    select
        summary.time_window,
        summary.metric_type,
        {{ total_of('case when days.usage_date >= summary.window_start then days.total_quantity else 0 end') }}
            as total_quantity,
        {{ total_of('case when days.usage_date < summary.window_start then days.total_quantity else 0 end') }}
            as previous_quantity
    from summary
    inner join {{ ref('platform_usage_daily') }} as days
        on
            summary.metric_type = days.metric_type
            and summary.previous_start <= days.usage_date
            and summary.window_end > days.usage_date
    group by summary.time_window, summary.metric_type
)

select
    summary.time_window,
    summary.metric_type,
    summary.total_quantity,
    days.total_quantity as quantity_of_days,
    summary.previous_quantity,
    days.previous_quantity as previous_quantity_of_days
from summary
left join days
    on summary.time_window = days.time_window and summary.metric_type = days.metric_type
where
    days.metric_type is null
    or summary.total_quantity <> days.total_quantity
    or summary.previous_quantity <> days.previous_quantity
