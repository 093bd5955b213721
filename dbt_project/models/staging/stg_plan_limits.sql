select
    plan,
    metric_type,
    limit_quantity
from {{ source('landing', 'plan_limits') }}
