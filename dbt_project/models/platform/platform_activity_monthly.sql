{{ config(materialized='windowed', event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with orgs as (
    select
        {{ month_of('usage_date') }} as month,
        org_id,
        sum(event_count) as event_count
    from {{ ref('usage_event_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
    group by {{ month_of('usage_date') }}, org_id
),

totals as (
    select
        month,
        count(org_id) as active_orgs,
        cast(sum(event_count) as bigint) as event_count
    from orgs
    group by month
),

users as (
    select
        month,
        count(*) as active_users
    from {{ ref('active_users_monthly') }}
    where {{ in_window('month', 'month') }}
    group by month
)

select
    totals.month,
    coalesce(users.active_users, 0) as active_users,
    totals.active_orgs,
    totals.event_count
from totals
left join users on totals.month = users.month
