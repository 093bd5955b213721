{{ config(materialized='ephemeral') }}

-- Where windows and months begin and end cuts the days that are not read as months into few
-- segments. Days are merged to segments first, because most belong to several windows.

with windows as (
    select * from {{ ref('int_summary_windows') }}
),

days as (
    select
        windows.time_window,
        windows.period,
        calendar.calendar_date as usage_date,
        {{ month_of('calendar.calendar_date') }} as month,
        {{ month_of('calendar.calendar_date') }} >= windows.starts_on
        and {{ next_month('calendar.calendar_date') }} <= windows.ends_on
            as is_in_whole_month,
        case
            when calendar.calendar_date > {{ add_days('windows.as_of_date', -62) }} then 'recent'
            when calendar.calendar_date > {{ add_days('windows.as_of_date', '-365 - 62') }} then 'a year back'
            else 'two years back'
        end as stretch
    from windows
    inner join {{ ref('stg_calendar') }} as calendar
        on windows.starts_on <= calendar.calendar_date and windows.ends_on > calendar.calendar_date
),

cuts as (
    select starts_on as cut_date from windows
    union distinct
    select ends_on as cut_date from windows
    union distinct
    select month as cut_date from days
),

segments as (
    select
        days.usage_date,
        max(cuts.cut_date) as segment
    from days
    inner join cuts on days.usage_date >= cuts.cut_date
    where not days.is_in_whole_month
    group by days.usage_date
)

select
    days.time_window,
    days.period,
    days.usage_date,
    case when days.is_in_whole_month then days.month end as whole_month,
    case when not days.is_in_whole_month then segments.segment end as segment,
    days.stretch
from days
left join segments on days.usage_date = segments.usage_date
