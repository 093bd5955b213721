{{ config(materialized='ephemeral') }}

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
)

select
    lengths.time_window,
    'current' as period,
    {{ add_days('as_of.as_of_date', '1 - lengths.days') }} as starts_on,
    {{ add_days('as_of.as_of_date', 1) }} as ends_on,
    as_of.as_of_date
from lengths
cross join as_of
union all
select
    lengths.time_window,
    'previous' as period,
    {{ add_days('as_of.as_of_date', '1 - 2 * lengths.days') }} as starts_on,
    {{ add_days('as_of.as_of_date', '1 - lengths.days') }} as ends_on,
    as_of.as_of_date
from lengths
cross join as_of
