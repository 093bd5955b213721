-- Additive meters: an organisation is the sum of its users' rows, the platform that of all.
-- All meters: so are their events.
with users as (
    select * from {{ ref('usage_monthly') }} where {{ in_window('month', 'month') }}
),

sides as (
    select
        'org' as level,
        month,
        org_id,
        metric_type,
        total_quantity as quantity_of_users,
        cast(0 as decimal(38, 9)) as quantity,
        event_count as events_of_users,
        0 as event_count
    from users
    union all
    select
        'org' as level,
        month,
        org_id,
        metric_type,
        cast(0 as decimal(38, 9)) as quantity_of_users,
        total_quantity as quantity,
        0 as events_of_users,
        event_count
    from {{ ref('org_usage_monthly') }}
    where {{ in_window('month', 'month') }}
    union all
    select
        'platform' as level,
        month,
        cast(null as {{ uuid_type() }}) as org_id,
        metric_type,
        total_quantity as quantity_of_users,
        cast(0 as decimal(38, 9)) as quantity,
        event_count as events_of_users,
        0 as event_count
    from users
    union all
    select
        'platform' as level,
        month,
        cast(null as {{ uuid_type() }}) as org_id,
        metric_type,
        cast(0 as decimal(38, 9)) as quantity_of_users,
        total_quantity as quantity,
        0 as events_of_users,
        event_count
    from {{ ref('platform_usage_monthly') }}
    where {{ in_window('month', 'month') }}
)

select
    level,
    month,
    org_id,
    metric_type,
    {{ total_of('quantity_of_users') }} as quantity_of_users,
    {{ total_of('quantity') }} as quantity,
    sum(events_of_users) as events_of_users,
    sum(event_count) as event_count
from sides
group by level, month, org_id, metric_type
having
    sum(events_of_users) <> sum(event_count)
    or ({{ is_additive() }} and {{ totals_differ('quantity_of_users', 'quantity') }})
