{{ config(materialized='table', tags=['current']) }}

with landed as (
    select max(usage_date) as last_day from {{ ref('stg_landed_days') }}
)

select
    calendar.calendar_date,
    calendar.starts_at,
    calendar.ends_at
from {{ ref('stg_calendar') }} as calendar
inner join landed on calendar.calendar_date <= {{ next_month('landed.last_day') }}
