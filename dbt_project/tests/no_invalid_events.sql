{{ config(severity='warn', tags=['informative']) }}

select
    usage_date,
    metric_type,
    reason,
    count(*) as events,
    min(event_id) as example_event_id
from {{ ref('invalid_usage_events') }}
where {{ in_window('usage_date') }}
group by usage_date, metric_type, reason
