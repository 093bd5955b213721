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
)

select
    whole_months.time_window,
    whole_months.period,
    months.user_id,
    months.org_id,
    months.metric_type,
    months.value_text
from {{ ref('usage_values_monthly') }} as months
inner join whole_months on months.month = whole_months.whole_month
union distinct
select
    segments.time_window,
    segments.period,
    days.user_id,
    days.org_id,
    days.metric_type,
    days.value_text
from values_of_days as days
inner join segments on days.segment = segments.segment
