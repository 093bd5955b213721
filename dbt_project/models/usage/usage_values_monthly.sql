{{ config(event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

select distinct
    {{ month_of('usage_date') }} as month,
    user_id,
    org_id,
    metric_type,
    value_text
from {{ ref('usage_values_daily') }}
where {{ in_window('usage_date', 'month') }}
