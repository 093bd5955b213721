{{ config(tags=['daily']) }}

with landed_days as (
    select usage_date from {{ ref('stg_landed_days') }}
),

days as (
    select calendar_date as metric_date
    from {{ ref('stg_calendar') }}
    where
        calendar_date >= {{ first_day() }}
        and calendar_date <= (select max(usage_date) from landed_days)
),

changes as (
    select
        change_date as metric_date,
        case when population = 'users' then arrivals else 0 end as new_users,
        case when population = 'users' then net_change else 0 end as user_change,
        case when population = 'orgs' then arrivals else 0 end as new_orgs,
        case when population = 'orgs' then net_change else 0 end as org_change,
        case when population = 'subscriptions' then net_change else 0 end as subscription_change
    from {{ ref('population_changes') }}
    union all
    select
        metric_date,
        0 as new_users,
        0 as user_change,
        0 as new_orgs,
        0 as org_change,
        0 as subscription_change
    from days
),

totals as (
    select
        metric_date,
        sum(new_users) as new_users,
        sum(sum(user_change)) over (order by metric_date) as total_users,
        sum(new_orgs) as new_orgs,
        sum(sum(org_change)) over (order by metric_date) as total_orgs,
        sum(sum(subscription_change)) over (order by metric_date) as active_subscriptions
    from changes
    group by metric_date
)

-- no activity on a day that is not landed: unknown is not zero
select
    days.metric_date,
    cast(totals.total_users as bigint) as total_users,
    cast(totals.new_users as bigint) as new_users,
    activity.active_users,
    activity.weekly_active_users,
    activity.monthly_active_users,
    {{ exact_ratio(
        'cast(activity.active_users as decimal(38, 9))',
        'cast(activity.monthly_active_users as decimal(38, 9))'
    ) }} as stickiness,
    cast(totals.total_orgs as bigint) as total_orgs,
    cast(totals.new_orgs as bigint) as new_orgs,
    activity.active_orgs,
    cast(totals.active_subscriptions as bigint) as active_subscriptions,
    activity.event_count
from days
inner join totals on days.metric_date = totals.metric_date
left join {{ ref('platform_activity_daily') }} as activity on days.metric_date = activity.metric_date
