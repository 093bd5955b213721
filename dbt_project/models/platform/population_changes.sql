{{ config(tags=['daily']) }}

-- The accounts as changes on days, so that totals as of any day or month are running sums.
-- A departure dated before its arrival is taken on the day of arrival: no total goes below zero.
-- Whoever arrived on no known day is in no total.

with users as (
    select
        'users' as population,
        cast(null as {{ text_type() }}) as plan,
        created_date as arrived_on,
        deleted_date as left_on,
        true as counts
    from {{ ref('stg_users') }}
),

orgs as (
    select
        'orgs' as population,
        cast(null as {{ text_type() }}) as plan,
        created_date as arrived_on,
        deleted_date as left_on,
        true as counts
    from {{ ref('stg_orgs') }}
),

-- one that is canceled without a date was active on no day that we could name
subscriptions as (
    select
        'subscriptions' as population,
        plan,
        created_date as arrived_on,
        canceled_date as left_on,
        canceled_date is not null or status in ('trialing', 'active', 'past_due') as counts
    from {{ ref('stg_subscriptions') }}
),

members as (
    select * from users
    union all
    select * from orgs
    union all
    select * from subscriptions
),

changes as (
    select
        population,
        plan,
        arrived_on as change_date,
        1 as arrivals,
        0 as departures,
        case when counts then 1 else 0 end as net_change
    from members
    where arrived_on is not null
    union all
    select
        population,
        plan,
        case when left_on < arrived_on then arrived_on else left_on end as change_date,
        0 as arrivals,
        1 as departures,
        -1 as net_change
    from members
    where arrived_on is not null and left_on is not null
)

select
    change_date,
    population,
    plan,
    cast(sum(arrivals) as bigint) as arrivals,
    cast(sum(departures) as bigint) as departures,
    cast(sum(net_change) as bigint) as net_change
from changes
group by change_date, population, plan
