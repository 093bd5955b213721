select
    cast(org_id as {{ uuid_type() }}) as org_id,
    cast(user_id as {{ uuid_type() }}) as user_id,
    role,
    created_date
from {{ source('landing', 'org_members') }}
