select
    cast(org_id as uuid) as org_id,
    cast(user_id as uuid) as user_id,
    role,
    created_date
from {{ source('landing', 'org_members') }}
