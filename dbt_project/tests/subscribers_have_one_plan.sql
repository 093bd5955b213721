{{ config(severity='warn', tags=['informative']) }}
-- shown with: {{ ref('stg_subscriptions') }}

select
    user_id,
    org_id,
    count(*) as active_subscriptions
from {{ ref('int_active_subscriptions') }}
where month = (select {{ month_of('max(usage_date)') }} from {{ ref('stg_landed_days') }})
group by user_id, org_id
having count(*) > 1
