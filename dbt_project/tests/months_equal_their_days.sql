-- Additive meters: a month is the sum of its days. All meters: so are its events.
with days as (
    select
        {{ month_of('usage_date') }} as month,
        user_id,
        org_id,
        metric_type,
        total_quantity as quantity_of_days,
        cast(0 as decimal(38, 9)) as quantity_of_month,
        event_count as events_of_days,
        0 as events_of_month,
        1 as days_found,
        0 as active_days
    from {{ ref('usage_daily') }}
    where {{ in_window('usage_date', 'month') }}
),

months as (
    select
        month,
        user_id,
        org_id,
        metric_type,
        cast(0 as decimal(38, 9)) as quantity_of_days,
        total_quantity as quantity_of_month,
        0 as events_of_days,
        event_count as events_of_month,
        0 as days_found,
        active_days
    from {{ ref('usage_monthly') }}
    where {{ in_window('month', 'month') }}
)

select
    month,
    user_id,
    org_id,
    metric_type,
    {{ total_of('quantity_of_days') }} as quantity_of_days,
    {{ total_of('quantity_of_month') }} as quantity_of_month,
    sum(events_of_days) as events_of_days,
    sum(events_of_month) as events_of_month,
    sum(days_found) as days_found,
    sum(active_days) as active_days
from (
    select * from days
    union all
    select * from months
) as sides
group by month, user_id, org_id, metric_type
having
    sum(events_of_days) <> sum(events_of_month)
    or sum(days_found) <> sum(active_days)
    or ({{ is_additive() }} and {{ totals_differ('quantity_of_days', 'quantity_of_month') }})
