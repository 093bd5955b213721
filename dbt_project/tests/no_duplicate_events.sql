{{ config(severity='warn', tags=['informative']) }}

select
    usage_date,
    duplicate_events
from {{ ref('stg_landed_days') }}
where {{ in_window('usage_date') }} and duplicate_events > 0
