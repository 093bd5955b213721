{{ config(tags=['current'], post_hook="delete from {{ ref('usage_replaced_partials').render() }}") }}
-- depends_on: {{ ref('usage_forecast_fits') }}, {{ ref('usage_anomalies') }}, which ask what was
-- built again and since when
{% set before = known_relation('usage_trailing_partials') %}

-- What the last run summed up, less the cells that left an age, plus those that came to it. A day
-- that was built again leaves with the cells that it had. Without a last run every day comes.

with dates as (
    select
        (select max(usage_date) from {{ ref('stg_landed_days') }}) as as_of_date,
        {{ '(select max(as_of_date) from ' ~ before ~ ')' if before else 'cast(null as date)' }} as summed_as_of
),

days as (
    select
        calendar.calendar_date as usage_date,
        dates.as_of_date,
        {{ age_of('calendar.calendar_date', 'dates.summed_as_of') }} as age_before,
        {{ age_of('calendar.calendar_date', 'dates.as_of_date') }} as age_now
    from {{ ref('stg_calendar') }} as calendar
    cross join dates
),

replaced_days as (
    select distinct usage_date from {{ ref('usage_replaced_partials') }}
),

-- what a day has now leaves its old age only if that is what was summed up
moved_days as (
    select
        days.usage_date,
        case when replaced_days.usage_date is null then days.age_before end as age_before,
        days.age_now
    from days
    left join replaced_days on days.usage_date = replaced_days.usage_date
    where days.age_now is distinct from days.age_before or replaced_days.usage_date is not null
),

cells as (
    select
        moved_days.age_before,
        moved_days.age_now,
        partials.user_id,
        partials.org_id,
        partials.metric_type,
        partials.event_count,
        partials.sum_quantity,
        partials.sum_great
    from {{ ref('usage_partials_daily') }} as partials
    inner join moved_days on partials.usage_date = moved_days.usage_date
    where {{ is_subtractable('partials.metric_type') }}
    union all
    select
        days.age_before,
        null as age_now,
        replaced.user_id,
        replaced.org_id,
        replaced.metric_type,
        replaced.event_count,
        replaced.sum_quantity,
        replaced.sum_great
    from {{ ref('usage_replaced_partials') }} as replaced
    inner join days on replaced.usage_date = days.usage_date
    where days.age_before is not null and replaced.metric_type is not null
),

changes as (
    select
        {% for age in ages() %}
        {% for part in ['event_count', 'sum_quantity', 'sum_great'] %}
        case when age_now = {{ age }} then {{ part }} when age_before = {{ age }} then -{{ part }} end
            as {{ part }}_{{ age }},
        {% endfor %}
        {% endfor %}
        user_id,
        org_id,
        metric_type
    from cells
    {% if before %}
    union all
    select
        {% for age in ages() %}
        event_count_{{ age }},
        sum_quantity_{{ age }},
        sum_great_{{ age }},
        {% endfor %}
        user_id,
        org_id,
        metric_type
    from {{ before }}
    {% endif %}
),

summed as (
    select
        {% for age in ages() %}
        cast(coalesce(sum(event_count_{{ age }}), 0) as bigint) as event_count_{{ age }},
        cast(coalesce(sum(sum_quantity_{{ age }}), 0) as decimal(38, 9)) as sum_quantity_{{ age }},
        cast(sum(sum_great_{{ age }}) as decimal(38, 0)) as sum_great_{{ age }},
        {% endfor %}
        user_id,
        org_id,
        metric_type
    from changes
    group by user_id, org_id, metric_type
)

select
    {% for age in ages() %}
    summed.event_count_{{ age }},
    summed.sum_quantity_{{ age }},
    summed.sum_great_{{ age }},
    {% endfor %}
    summed.user_id,
    summed.org_id,
    summed.metric_type,
    dates.as_of_date
from summed
cross join dates
where {{ sum_of_ages('event_count', ages()) }} > 0
