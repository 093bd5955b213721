{{ config(severity='warn', tags=['informative']) }}

select
    'users' as source_table,
    cast(user_id as {{ text_type() }}) as account_id
from {{ ref('stg_users') }}
where created_date is null
union all
select
    'orgs' as source_table,
    cast(org_id as {{ text_type() }}) as account_id
from {{ ref('stg_orgs') }}
where created_date is null
union all
select
    'subscriptions' as source_table,
    cast(subscription_id as {{ text_type() }}) as account_id
from {{ ref('stg_subscriptions') }}
where created_date is null
