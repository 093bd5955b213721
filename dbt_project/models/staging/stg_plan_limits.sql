select
    plan,
    metric_type,
    limit_quantity,
    limit_raw,
    member_limit_quantity,
    member_limit_raw
from {{ source('landing', 'plan_limits') }}
