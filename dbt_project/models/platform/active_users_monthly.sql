{{ config(materialized='windowed', event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

select distinct
    {{ month_of('usage_date') }} as month,
    user_id
from {{ ref('active_users_daily') }}
where {{ in_window('usage_date', 'month') }}
