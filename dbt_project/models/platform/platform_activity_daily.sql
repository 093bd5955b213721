{{ config(materialized='windowed', event_time='metric_date', tags=['daily'], meta={'reach': 'trailing'}) }}

-- A changed day changes the trailing counts of the 29 days after it, and those read the 29 days
-- before them. Each user counts from an active day until the period has passed or the next active
-- day takes over, so a running sum of arrivals and departures is an exact distinct count.

with landed_days as (
    select usage_date from {{ ref('stg_landed_days') }}
    where {{ in_window('usage_date', 'trailing') }}
),

days_of_users as (
    select
        usage_date,
        user_id,
        lead(usage_date) over (partition by user_id order by usage_date) as next_active_date
    from {{ ref('active_users_daily') }}
    where
        usage_date >= {{ add_days(window_start(), -29) }}
        and usage_date < {{ window_end('trailing') }}
),

departures as (
    select
        case
            when next_active_date < {{ add_days('usage_date', 7) }} then next_active_date
            else {{ add_days('usage_date', 7) }}
        end as weekly_until,
        case
            when next_active_date < {{ add_days('usage_date', 30) }} then next_active_date
            else {{ add_days('usage_date', 30) }}
        end as monthly_until
    from days_of_users
),

changes as (
    select
        usage_date as metric_date,
        count(*) as active_users,
        count(*) as weekly_change,
        count(*) as monthly_change
    from days_of_users
    group by usage_date
    union all
    select
        weekly_until as metric_date,
        0 as active_users,
        -count(*) as weekly_change,
        0 as monthly_change
    from departures
    group by weekly_until
    union all
    select
        monthly_until as metric_date,
        0 as active_users,
        0 as weekly_change,
        -count(*) as monthly_change
    from departures
    group by monthly_until
    union all
    select
        usage_date as metric_date,
        0 as active_users,
        0 as weekly_change,
        0 as monthly_change
    from landed_days
),

users_by_day as (
    select
        metric_date,
        sum(active_users) as active_users,
        sum(sum(weekly_change)) over (order by metric_date) as weekly_active_users,
        sum(sum(monthly_change)) over (order by metric_date) as monthly_active_users
    from changes
    group by metric_date
),

totals_by_day as (
    select
        usage_date,
        count(distinct org_id) as active_orgs,
        sum(event_count) as event_count
    from {{ ref('usage_event_partials_daily') }}
    where {{ in_window('usage_date', 'trailing') }}
    group by usage_date
)

select
    landed_days.usage_date as metric_date,
    cast(users_by_day.active_users as bigint) as active_users,
    cast(users_by_day.weekly_active_users as bigint) as weekly_active_users,
    cast(users_by_day.monthly_active_users as bigint) as monthly_active_users,
    coalesce(totals_by_day.active_orgs, 0) as active_orgs,
    cast(coalesce(totals_by_day.event_count, 0) as bigint) as event_count
from landed_days
inner join users_by_day on landed_days.usage_date = users_by_day.metric_date
left join totals_by_day on landed_days.usage_date = totals_by_day.usage_date
