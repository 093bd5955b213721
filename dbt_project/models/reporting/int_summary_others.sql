{{ config(materialized='ephemeral') }}
{% set partials = ref('int_summary_partials') %}
{% set distinct_values = ref('int_summary_values') %}
{% set scopes = [('user', ['user_id']), ('org', ['org_id']), ('platform', [])] if other_meters() else [] %}

with totals as (
    {% for scope, grain in scopes %}
    select
        '{{ scope }}' as scope,
        {{ 'user_id' if scope == 'user' else 'cast(null as ' ~ uuid_type() ~ ')' }} as user_id,
        {{ 'org_id' if scope == 'org' else 'cast(null as ' ~ uuid_type() ~ ')' }} as org_id,
        time_window,
        period,
        metric_type,
        total_quantity,
        event_count
    from ({{ merged_usage(partials, distinct_values, ['time_window', 'period'] + grain) }}) as merged_by_{{ scope }}
    where
        not {{ is_subtractable() }}
        {% if grain %} and {{ grain[0] }} is not null {% endif %}
    {% if not loop.last %} union all {% endif %}
    {% else %}
    select
        '' as scope,
        user_id,
        org_id,
        '' as time_window,
        '' as period,
        metric_type,
        sum_quantity as total_quantity,
        event_count
    from {{ empty_partials() }}
    {% endfor %}
)

select
    scope,
    user_id,
    org_id,
    time_window,
    metric_type,
    -- the only row of its period, or none; one whose total cannot be held stays null
    {% for period, name in [('current', 'total_quantity'), ('previous', 'previous_quantity')] %}
    case
        when count(case when period = '{{ period }}' then 1 end) = 0 then 0
        else max(case when period = '{{ period }}' then total_quantity end)
    end as {{ name }},
    {% endfor %}
    coalesce(max(case when period = 'current' then event_count end), 0) as event_count
from totals
group by scope, user_id, org_id, time_window, metric_type
