{{ config(tags=['monthly']) }}

with landed_days as (
    select usage_date from {{ ref('stg_landed_days') }}
),

-- a month of which no day is landed is unknown, not a month without users
months as (
    select distinct {{ month_of('usage_date') }} as month
    from landed_days
    where usage_date >= {{ first_day() }}
),

-- Both sides of a rate are counted among these, so that no correction of an account moves only one.
-- An erased person is in no cohort: their activity cannot be told from that of others.
members as (
    select
        user_id,
        {{ month_of('created_date') }} as cohort_month
    from {{ ref('stg_users') }}
    where user_id is not null and created_date <= (select max(usage_date) from landed_days)
),

cohorts as (
    select
        cohort_month,
        count(*) as cohort_users
    from members
    group by cohort_month
),

retained as (
    select
        members.cohort_month,
        active.month,
        count(*) as retained_users
    from {{ ref('active_users_monthly') }} as active
    inner join members on active.user_id = members.user_id
    group by members.cohort_month, active.month
),

retention as (
    select
        cohorts.cohort_month,
        months.month,
        cohorts.cohort_users,
        coalesce(retained.retained_users, 0) as retained_users
    from cohorts
    inner join months on cohorts.cohort_month <= months.month
    left join retained
        on cohorts.cohort_month = retained.cohort_month and months.month = retained.month
)

select
    cohort_month,
    {{ months_between('cohort_month', 'month') }} as months_since,
    cohort_users,
    retained_users,
    {{ exact_ratio(
        'cast(retained_users as decimal(38, 9))', 'cast(cohort_users as decimal(38, 9))'
    ) }} as retention_rate
from retention
