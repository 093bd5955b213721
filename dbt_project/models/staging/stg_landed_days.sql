-- a table, not a view: many models and tests ask for it, and each time it is one small file a day
{{ config(materialized='table') }}

select
    usage_date,
    rows as landed_events,
    invalid_rows as invalid_quantities,
    duplicate_rows as duplicate_events,
    -- over all event types, which no published number adds up; null beyond 29 integer digits
    {{ held('sum_quantity') }} as sum_quantity,
    max_created_at as last_event_at,
    extracted_at
from {{ source('landing', 'landed_days') }}
where usage_date >= {{ first_day() }}
