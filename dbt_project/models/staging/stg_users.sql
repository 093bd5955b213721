select
    cast(id as uuid) as user_id,
    created_date,
    deleted_date
from {{ source('landing', 'users') }}
