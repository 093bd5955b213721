select
    cast(id as {{ uuid_type() }}) as user_id,
    created_date,
    deleted_date
from {{ source('landing', 'users') }}
