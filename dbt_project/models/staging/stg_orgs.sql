select
    cast(id as uuid) as org_id,
    name as org_name,
    created_date,
    deleted_date
from {{ source('landing', 'orgs') }}
