{{ config(event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}
-- before it is known whether any meter counts distinct values: dbt parses for all meters alike
{% set values_monthly = ref('usage_values_monthly') %}

with partials as (
    select
        {{ month_of('usage_date') }} as month,
        *
    from {{ ref('usage_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
),

merged as (
    {{ merged_partials('partials', ['month', 'user_id', 'org_id', 'metric_type']) }}
)

select
    merged.month,
    merged.user_id,
    merged.org_id,
    merged.metric_type,
    merged.event_count,
    merged.sum_quantity,
    merged.sum_great,
    merged.min_quantity,
    merged.max_quantity,
    merged.latest_quantity,
    merged.latest_event_id,
    {{ 'counted.distinct_count' if meters('unique_count') else 'cast(null as bigint)' }} as distinct_count,
    merged.cells as active_days,
    merged.first_event_at,
    merged.last_event_at
from merged
{% if meters('unique_count') %}
left join (
    select
        month,
        user_id,
        org_id,
        metric_type,
        count(*) as distinct_count
    from {{ values_monthly }}
    where {{ in_window('month', 'month') }}
    group by month, user_id, org_id, metric_type
) as counted
    on {{ same('merged', 'counted', ['month', 'user_id', 'org_id', 'metric_type']) }}
{% endif %}
