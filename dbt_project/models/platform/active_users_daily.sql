{{ config(materialized='windowed', event_time='usage_date', tags=['daily']) }}

select distinct
    usage_date,
    user_id
from {{ ref('usage_event_partials_daily') }}
where {{ in_window('usage_date') }} and user_id is not null
