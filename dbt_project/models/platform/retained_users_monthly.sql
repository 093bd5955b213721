{{ config(materialized='incremental', event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with active as (
    select distinct
        {{ month_of('usage_date') }} as month,
        user_id
    from {{ ref('usage_event_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
)

select
    active.month,
    {{ month_of('users.created_date') }} as cohort_month,
    count(*) as retained_users
from active
inner join {{ ref('stg_users') }} as users on active.user_id = users.user_id
where users.created_date is not null
group by active.month, {{ month_of('users.created_date') }}
