{{ config(tags=['current']) }}

{#- A year costs months: whole months inside a window are read as months and only its edges as days.
    - Edge days lie in three stretches, read apart so that the engine can skip all other days: recent
      ones, those a year back, and those two years back.
    - Where windows and months begin and end cuts the edge days into few segments. Days are merged to
      segments first, because most belong to several windows. -#}
{% set stretches = ['recent', 'a year back', 'two years back'] %}
{% set scopes = [('user', ['user_id']), ('org', ['org_id']), ('platform', [])] %}

with as_of as (
    select max(usage_date) as as_of_date from {{ ref('stg_landed_days') }}
),

lengths as (
    {% for time_window, days in [('week', 7), ('month', 30), ('year', 365)] %}
    select
        '{{ time_window }}' as time_window,
        {{ days }} as days
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

windows as (
    select
        lengths.time_window,
        'current' as period,
        {{ add_days('as_of.as_of_date', '1 - lengths.days') }} as starts_on,
        {{ add_days('as_of.as_of_date', 1) }} as ends_on
    from lengths
    cross join as_of
    union all
    select
        lengths.time_window,
        'previous' as period,
        {{ add_days('as_of.as_of_date', '1 - 2 * lengths.days') }} as starts_on,
        {{ add_days('as_of.as_of_date', '1 - lengths.days') }} as ends_on
    from lengths
    cross join as_of
),

days_of_windows as (
    select
        windows.time_window,
        windows.period,
        calendar.calendar_date as usage_date,
        {{ month_of('calendar.calendar_date') }} as month,
        {{ month_of('calendar.calendar_date') }} >= windows.starts_on
        and {{ next_month('calendar.calendar_date') }} <= windows.ends_on
            as is_in_whole_month,
        case
            when calendar.calendar_date > {{ add_days('as_of.as_of_date', -62) }} then 'recent'
            when calendar.calendar_date > {{ add_days('as_of.as_of_date', '-365 - 62') }} then 'a year back'
            else 'two years back'
        end as stretch
    from windows
    cross join as_of
    inner join {{ ref('stg_calendar') }} as calendar
        on windows.starts_on <= calendar.calendar_date and windows.ends_on > calendar.calendar_date
),

whole_months as (
    select distinct
        time_window,
        period,
        month
    from days_of_windows
    where is_in_whole_month
),

cuts as (
    select starts_on as cut_date from windows
    union distinct
    select ends_on as cut_date from windows
    union distinct
    select month as cut_date from days_of_windows
),

edge_days as (
    select
        days.usage_date,
        days.stretch,
        max(cuts.cut_date) as segment
    from days_of_windows as days
    inner join cuts on days.usage_date >= cuts.cut_date
    where not days.is_in_whole_month
    group by days.usage_date, days.stretch
),

edge_segments as (
    select distinct
        days.time_window,
        days.period,
        edge_days.segment
    from days_of_windows as days
    inner join edge_days on days.usage_date = edge_days.usage_date
    where not days.is_in_whole_month
),

partials_of_days as (
    {% for stretch in stretches %}
    select
        edge_days.segment,
        partials.user_id,
        partials.org_id,
        partials.metric_type,
        partials.event_count,
        partials.sum_quantity,
        partials.sum_great,
        partials.min_quantity,
        partials.max_quantity,
        partials.latest_quantity,
        partials.latest_event_id,
        partials.first_event_at,
        partials.last_event_at
    from {{ ref('usage_partials_daily') }} as partials
    inner join edge_days on partials.usage_date = edge_days.usage_date
    where edge_days.stretch = '{{ stretch }}'
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

partials_of_segments as (
    {{ merged_partials('partials_of_days', ['segment', 'user_id', 'org_id', 'metric_type']) }}
),

partials_of_pieces as (
    select
        whole_months.time_window,
        whole_months.period,
        partials.user_id,
        partials.org_id,
        partials.metric_type,
        partials.event_count,
        partials.sum_quantity,
        partials.sum_great,
        partials.min_quantity,
        partials.max_quantity,
        partials.latest_quantity,
        partials.latest_event_id,
        partials.first_event_at,
        partials.last_event_at
    from {{ ref('usage_partials_monthly') }} as partials
    inner join whole_months on partials.month = whole_months.month
    union all
    select
        edge_segments.time_window,
        edge_segments.period,
        partials.user_id,
        partials.org_id,
        partials.metric_type,
        partials.event_count,
        partials.sum_quantity,
        partials.sum_great,
        partials.min_quantity,
        partials.max_quantity,
        partials.latest_quantity,
        partials.latest_event_id,
        partials.first_event_at,
        partials.last_event_at
    from partials_of_segments as partials
    inner join edge_segments on partials.segment = edge_segments.segment
),

partials as (
    {{ merged_partials('partials_of_pieces', ['time_window', 'period', 'user_id', 'org_id', 'metric_type']) }}
),

values_of_days as (
    {% for stretch in stretches %}
    select
        edge_days.segment,
        days.user_id,
        days.org_id,
        days.metric_type,
        days.value_text
    from {{ ref('usage_values_daily') }} as days
    inner join edge_days on days.usage_date = edge_days.usage_date
    where edge_days.stretch = '{{ stretch }}'
    {% if not loop.last %} union distinct {% endif %}
    {% endfor %}
),

distinct_values as (
    select
        whole_months.time_window,
        whole_months.period,
        months.user_id,
        months.org_id,
        months.metric_type,
        months.value_text
    from {{ ref('usage_values_monthly') }} as months
    inner join whole_months on months.month = whole_months.month
    union distinct
    select
        edge_segments.time_window,
        edge_segments.period,
        days.user_id,
        days.org_id,
        days.metric_type,
        days.value_text
    from values_of_days as days
    inner join edge_segments on days.segment = edge_segments.segment
),

totals as (
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
    from ({{ merged_usage('partials', 'distinct_values', ['time_window', 'period'] + grain) }}) as merged_by_{{ scope }}
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
    {{ add_days('windows.ends_on', -1) }} as as_of_date,
    windows.starts_on as window_start,
    windows.ends_on as window_end,
    compared.total_quantity,
    compared.previous_quantity,
    {{ exact_ratio(
        difference('compared.total_quantity', 'compared.previous_quantity'), 'compared.previous_quantity'
    ) }} as change_ratio,
    compared.event_count
from compared
inner join windows
    on compared.time_window = windows.time_window and windows.period = 'current'
