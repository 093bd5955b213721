{{ config(tags=['current']) }}
{% set scopes = [('user', ['user_id']), ('org', ['org_id']), ('platform', [])] %}
-- each with its ages, and those of the window of equal length before it
{% set trailing_windows = [
    ('week', [7], [14]),
    ('month', [7, 14, 30], [60]),
    ('year', [7, 14, 30, 60, 365], [730]),
] %}

with subjects as (
    {% for scope, grain in scopes %}
    select
        '{{ scope }}' as scope,
        {{ 'user_id' if scope == 'user' else 'cast(null as ' ~ uuid_type() ~ ')' }} as user_id,
        {{ 'org_id' if scope == 'org' else 'cast(null as ' ~ uuid_type() ~ ')' }} as org_id,
        {% for age in ages() %}
        cast(sum(event_count_{{ age }}) as bigint) as event_count_{{ age }},
        sum(sum_quantity_{{ age }}) as sum_quantity_{{ age }},
        sum(sum_great_{{ age }}) as sum_great_{{ age }},
        {% endfor %}
        metric_type
    from {{ ref('usage_trailing_partials') }}
    {% if grain %} where {{ grain[0] }} is not null {% endif %}
    group by {{ (grain + ['metric_type']) | join(', ') }}
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

windows as (
    {% for time_window, current_ages, previous_ages in trailing_windows %}
    select
        scope,
        user_id,
        org_id,
        '{{ time_window }}' as time_window,
        {% for period, period_ages in [('current', current_ages), ('previous', previous_ages)] %}
        {{ sum_of_ages('event_count', period_ages) }} as {{ period }}_events,
        {{ sum_of_ages('sum_quantity', period_ages) }} as {{ period }}_sum,
        {{ sum_of_ages('sum_great', period_ages) }} as {{ period }}_great,
        {% endfor %}
        metric_type
    from subjects
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
        {% for period, name in [('current', 'total_quantity'), ('previous', 'previous_quantity')] %}
        case
            when {{ period }}_events = 0 then 0
            else {{ meter_total(
                'metric_type',
                period ~ '_events',
                total_of_parts(period ~ '_sum', period ~ '_great')
            ) }}
        end as {{ name }},
        {% endfor %}
        current_events as event_count
    from windows
    where current_events > 0 or previous_events > 0
    union all
    select
        scope,
        user_id,
        org_id,
        time_window,
        metric_type,
        total_quantity,
        previous_quantity,
        event_count
    from {{ ref('int_summary_others') }}
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
