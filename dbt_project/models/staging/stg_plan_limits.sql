select
    plan,
    metric_type,
    limit_quantity,
    limit_raw
from {{ source('landing', 'plan_limits') }}
