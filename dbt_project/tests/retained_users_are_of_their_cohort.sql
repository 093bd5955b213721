{{ config(severity='warn', tags=['informative']) }}

-- More users retained than registered: users vanished from the source, their events did not.
select
    cohort_month,
    months_since,
    cohort_users,
    retained_users
from {{ ref('user_retention_monthly') }}
where retained_users > cohort_users
