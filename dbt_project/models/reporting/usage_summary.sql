{{ config(tags=['current']) }}
{% set partials = ref('int_summary_partials') %}
{% set distinct_values = ref('int_summary_values') %}
{% set scopes = [('user', ['user_id']), ('org', ['org_id']), ('platform', [])] %}

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
    {% if grain %} where {{ grain[0] }} is not null {% endif %}
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

compared as (
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
)

select
    compared.scope,
    compared.user_id,
    compared.org_id,
    compared.time_window,
    compared.metric_type,
    windows.as_of_date,
    windows.starts_on as window_start,
    windows.ends_on as window_end,
    compared.total_quantity,
    compared.previous_quantity,
    {{ exact_ratio(
        difference('compared.total_quantity', 'compared.previous_quantity'), 'compared.previous_quantity'
    ) }} as change_ratio,
    compared.event_count
from compared
inner join {{ ref('int_summary_windows') }} as windows
    on compared.time_window = windows.time_window and windows.period = 'current'
