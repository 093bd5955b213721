{{ config(materialized='incremental', event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

select distinct
    {{ month_of('usage_date') }} as month,
    user_id
from {{ ref('usage_event_partials_daily') }}
where {{ in_window('usage_date', 'month') }} and user_id is not null
