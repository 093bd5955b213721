select
    calendar_date,
    starts_at,
    ends_at
from {{ source('landing', 'calendar') }}
