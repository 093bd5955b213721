{{ config(materialized='incremental', event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with partials as (
    select
        {{ month_of('usage_date') }} as month,
        user_id,
        org_id,
        event_count
    from {{ ref('usage_event_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
)

select
    month,
    count(distinct user_id) as active_users,
    count(distinct org_id) as active_orgs,
    cast(sum(event_count) as bigint) as event_count
from partials
group by month
