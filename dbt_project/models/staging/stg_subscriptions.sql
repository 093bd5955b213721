select
    cast(id as {{ uuid_type() }}) as subscription_id,
    cast(user_id as {{ uuid_type() }}) as user_id,
    cast(org_id as {{ uuid_type() }}) as org_id,
    plan,
    status,
    created_date,
    canceled_date
from {{ source('landing', 'subscriptions') }}
