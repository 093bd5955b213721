-- a table, not a view: many models and tests ask for it, and each time it is one small file a day
{{ config(materialized='table') }}

select
    usage_date,
    rows as landed_events,
    invalid_rows as invalid_quantities,
    duplicate_rows as duplicate_events,
    sum_quantity,
    extracted_at
from {{ source('landing', 'landed_days') }}
