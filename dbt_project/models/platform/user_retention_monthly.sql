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

-- an erased person is in no cohort: their activity cannot be told from that of others
cohorts as (
    select
        {{ month_of('created_date') }} as cohort_month,
        count(*) as cohort_users
    from {{ ref('stg_users') }}
    where user_id is not null and created_date <= (select max(usage_date) from landed_days)
    group by {{ month_of('created_date') }}
),

retention as (
    select
        cohorts.cohort_month,
        months.month,
        cohorts.cohort_users,
        coalesce(retained.retained_users, 0) as retained_users
    from cohorts
    inner join months on cohorts.cohort_month <= months.month
    left join {{ ref('retained_users_monthly') }} as retained
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
