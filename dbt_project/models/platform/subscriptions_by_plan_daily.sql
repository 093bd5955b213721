{{ config(tags=['daily']) }}

with changes as (
    select
        change_date,
        plan,
        arrivals,
        departures,
        net_change
    from {{ ref('population_changes') }}
    where population = 'subscriptions'
),

first_subscriptions as (
    select
        plan,
        min(change_date) as first_date
    from changes
    group by plan
),

days_of_plans as (
    select
        calendar.calendar_date as metric_date,
        first_subscriptions.plan
    from {{ ref('stg_calendar') }} as calendar
    inner join first_subscriptions on calendar.calendar_date >= first_subscriptions.first_date
    where
        calendar.calendar_date >= {{ first_day() }}
        and calendar.calendar_date <= (select max(usage_date) from {{ ref('stg_landed_days') }})
),

all_days as (
    select
        change_date as metric_date,
        plan,
        arrivals,
        departures,
        net_change
    from changes
    union all
    select
        metric_date,
        plan,
        0 as arrivals,
        0 as departures,
        0 as net_change
    from days_of_plans
),

totals as (
    select
        metric_date,
        plan,
        sum(sum(net_change)) over (partition by plan order by metric_date) as active_subscriptions,
        sum(arrivals) as new_subscriptions,
        sum(departures) as canceled_subscriptions
    from all_days
    group by metric_date, plan
)

select
    totals.metric_date,
    totals.plan,
    cast(totals.active_subscriptions as bigint) as active_subscriptions,
    cast(totals.new_subscriptions as bigint) as new_subscriptions,
    cast(totals.canceled_subscriptions as bigint) as canceled_subscriptions
from totals
inner join days_of_plans
    on totals.metric_date = days_of_plans.metric_date and totals.plan = days_of_plans.plan
