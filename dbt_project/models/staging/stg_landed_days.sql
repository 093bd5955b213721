select
    cast(usage_date as date) as usage_date,
    cast(rows as bigint) as landed_events,
    cast(invalid_rows as bigint) as invalid_quantities,
    cast(duplicate_rows as bigint) as duplicate_events,
    cast(sum_quantity as decimal(38, 9)) as sum_quantity,
    cast(extracted_at as timestamptz) as extracted_at
from {{ source('landing', 'landed_days') }}
