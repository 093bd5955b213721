-- A month's distinct count lies between the greatest day and the sum of days.
with days as (
    select
        {{ month_of('usage_date') }} as month,
        user_id,
        org_id,
        metric_type,
        max(total_quantity) as greatest_day,
        sum(total_quantity) as sum_of_days
    from {{ ref('usage_daily') }}
    where {{ in_window('usage_date', 'month') }} and {{ metric_in('unique_count') }}
    group by {{ month_of('usage_date') }}, user_id, org_id, metric_type
),

months as (
    select
        month,
        user_id,
        org_id,
        metric_type,
        total_quantity
    from {{ ref('usage_monthly') }}
    where {{ in_window('month', 'month') }} and {{ metric_in('unique_count') }}
)

select
    months.month,
    months.user_id,
    months.org_id,
    months.metric_type,
    months.total_quantity,
    days.greatest_day,
    days.sum_of_days
from months
inner join days on {{ same('months', 'days', ['month', 'user_id', 'org_id', 'metric_type']) }}
where months.total_quantity not between days.greatest_day and days.sum_of_days
