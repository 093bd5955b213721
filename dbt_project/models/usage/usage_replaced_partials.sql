{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    event_time='usage_date',
    tags=['daily']
) }}
{% set calendar = ref('stg_calendar') %}
{% set partials = known_relation('usage_partials_daily') %}

-- A model cannot depend on one that depends on it, so the view is found by its name; and before
-- there is a sum that counts the days, nothing has to be kept.
{% if is_incremental() and partials and known_relation('usage_trailing_partials') %}
with days as (
    select calendar_date as usage_date
    from {{ calendar }}
    where
        {{ in_window('calendar_date') }}
        and calendar_date not in (select usage_date from {{ this }})
),

partials as (
    select * from {{ partials }} where {{ in_window('usage_date') }} and {{ is_subtractable() }}
)

select
    days.usage_date,
    partials.user_id,
    partials.org_id,
    partials.metric_type,
    partials.event_count,
    partials.sum_quantity,
    partials.sum_great
from days
left join partials on days.usage_date = partials.usage_date
{% else %}
select
    usage_date,
    user_id,
    org_id,
    metric_type,
    event_count,
    sum_quantity,
    sum_great
from {{ empty_partials() }}
{% endif %}
