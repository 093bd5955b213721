select
    cohort_month,
    months_since,
    cohort_users,
    retained_users,
    retention_rate
from {{ ref('user_retention_monthly') }}
where
    retained_users > cohort_users
    or retention_rate is null
    or not retention_rate between 0 and 1
