{{ config(severity='warn', tags=['informative']) }}

select
    plan,
    metric_type,
    limit_raw,
    member_limit_raw
from {{ ref('stg_plan_limits') }}
where limit_raw is not null or member_limit_raw is not null
