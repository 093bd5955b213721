{{ config(materialized='ephemeral') }}

-- The three stretches of days are read apart, so that the engine can skip all other days.
{% set stretches = ['recent', 'a year back', 'two years back'] %}

with whole_months as (
    select distinct
        time_window,
        period,
        whole_month
    from {{ ref('int_summary_days') }}
    where whole_month is not null
),

edge_days as (
    select distinct
        usage_date,
        segment,
        stretch
    from {{ ref('int_summary_days') }}
    where segment is not null
),

segments as (
    select distinct
        time_window,
        period,
        segment
    from {{ ref('int_summary_days') }}
    where segment is not null
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
    where edge_days.stretch = '{{ stretch }}' and not {{ is_subtractable('partials.metric_type') }}
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
    inner join whole_months on partials.month = whole_months.whole_month
    where not {{ is_subtractable('partials.metric_type') }}
    union all
    select
        segments.time_window,
        segments.period,
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
    inner join segments on partials.segment = segments.segment
)

{{ merged_partials('partials_of_pieces', ['time_window', 'period', 'user_id', 'org_id', 'metric_type']) }}
