select
    cast(id as {{ uuid_type() }}) as org_id,
    name as org_name,
    created_date,
    deleted_date
from {{ source('landing', 'orgs') }}
