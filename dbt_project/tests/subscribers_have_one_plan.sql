{{ config(severity='warn', tags=['informative']) }}
-- shown with: {{ ref('stg_subscriptions') }}

select
    user_id,
    org_id,
    count(*) as active_subscriptions
from {{ ref('int_active_subscriptions') }}
group by user_id, org_id
having count(*) > 1
