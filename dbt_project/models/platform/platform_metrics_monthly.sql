{{ config(tags=['monthly']) }}

with landed_days as (
    select usage_date from {{ ref('stg_landed_days') }}
),

landed_months as (
    select distinct {{ month_of('usage_date') }} as month from landed_days
),

months as (
    select calendar_date as month
    from {{ ref('stg_calendar') }}
    where
        calendar_date = {{ month_of('calendar_date') }}
        and calendar_date >= {{ month_of(first_day()) }}
        and calendar_date <= (select max(usage_date) from landed_days)
),

-- the last month may not be over yet: nothing later than the last landed day counts
changes as (
    select
        {{ month_of('change_date') }} as month,
        case when population = 'users' then arrivals else 0 end as new_users,
        case when population = 'users' then net_change else 0 end as user_change,
        case when population = 'orgs' then arrivals else 0 end as new_orgs,
        case when population = 'orgs' then net_change else 0 end as org_change,
        case when population = 'subscriptions' then arrivals else 0 end as new_subscriptions,
        case when population = 'subscriptions' then departures else 0 end as canceled_subscriptions,
        case when population = 'subscriptions' then net_change else 0 end as subscription_change
    from {{ ref('population_changes') }}
    where change_date <= (select max(usage_date) from landed_days)
    union all
    select
        month,
        0 as new_users,
        0 as user_change,
        0 as new_orgs,
        0 as org_change,
        0 as new_subscriptions,
        0 as canceled_subscriptions,
        0 as subscription_change
    from months
),

totals as (
    select
        month,
        sum(new_users) as new_users,
        sum(sum(user_change)) over (order by month) as total_users,
        sum(new_orgs) as new_orgs,
        sum(sum(org_change)) over (order by month) as total_orgs,
        sum(new_subscriptions) as new_subscriptions,
        sum(canceled_subscriptions) as canceled_subscriptions,
        sum(sum(subscription_change)) over (order by month) as active_subscriptions
    from changes
    group by month
),

-- a landed month without events has no activity; one of which no day is landed is unknown
activity as (
    select
        landed_months.month,
        coalesce(activity_monthly.active_users, 0) as active_users,
        coalesce(activity_monthly.active_orgs, 0) as active_orgs,
        coalesce(activity_monthly.event_count, 0) as event_count
    from landed_months
    left join {{ ref('platform_activity_monthly') }} as activity_monthly
        on landed_months.month = activity_monthly.month
)

select
    months.month,
    cast(totals.total_users as bigint) as total_users,
    cast(totals.new_users as bigint) as new_users,
    activity.active_users,
    cast(totals.total_orgs as bigint) as total_orgs,
    cast(totals.new_orgs as bigint) as new_orgs,
    activity.active_orgs,
    cast(totals.active_subscriptions as bigint) as active_subscriptions,
    cast(totals.new_subscriptions as bigint) as new_subscriptions,
    cast(totals.canceled_subscriptions as bigint) as canceled_subscriptions,
    activity.event_count
from months
inner join totals on months.month = totals.month
left join activity on months.month = activity.month
