-- The published view joins to the calendar: a day or month that it lacks would be shown nowhere.
with periods as (
    select usage_date as calendar_date
    from {{ ref('usage_daily') }}
    where {{ in_window('usage_date') }}
    union
    select month as calendar_date
    from {{ ref('usage_monthly') }}
    where {{ in_window('month', 'month') }}
    union
    select {{ next_month('month') }} as calendar_date
    from {{ ref('usage_monthly') }}
    where {{ in_window('month', 'month') }}
)

select periods.calendar_date
from periods
left join {{ ref('calendar') }} as calendar
    on periods.calendar_date = calendar.calendar_date
where calendar.calendar_date is null
