{{ config(severity='warn', tags=['informative']) }}

{% set grains = [
    ('usage_daily', 'usage_date', 'day'),
    ('usage_monthly', 'month', 'month'),
    ('org_usage_daily', 'usage_date', 'day'),
    ('org_usage_monthly', 'month', 'month'),
    ('platform_usage_daily', 'usage_date', 'day'),
    ('platform_usage_monthly', 'month', 'month'),
] %}
{% for model, date_column, reach in grains %}
select
    '{{ model }}' as published_table,
    {{ date_column }} as period,
    metric_type,
    count(*) as totals,
    sum(event_count) as events
from {{ ref(model) }}
where {{ in_window(date_column, reach) }} and total_quantity is null
group by {{ date_column }}, metric_type
union all
{% endfor %}
select
    'usage_summary' as published_table,
    as_of_date as period,
    metric_type,
    count(*) as totals,
    sum(event_count) as events
from {{ ref('usage_summary') }}
where total_quantity is null or previous_quantity is null
group by as_of_date, metric_type
