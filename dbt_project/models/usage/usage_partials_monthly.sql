{{ config(event_time='month', tags=['monthly'], meta={'reach': 'month'}) }}

with partials as (
    select
        {{ month_of('usage_date') }} as month,
        *
    from {{ ref('usage_partials_daily') }}
    where {{ in_window('usage_date', 'month') }}
),

newest as (
    select
        month,
        user_id,
        org_id,
        metric_type,
        latest_quantity,
        latest_event_id,
        row_number() over (
            partition by month, user_id, org_id, metric_type
            order by last_event_at desc, latest_event_id desc
        ) as recency
    from partials
    where {{ metric_in('latest') }}
),

merged as (
    select
        month,
        user_id,
        org_id,
        metric_type,
        sum(event_count) as event_count,
        sum(sum_quantity) as sum_quantity,
        min(min_quantity) as min_quantity,
        max(max_quantity) as max_quantity,
        count(*) as active_days,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at
    from partials
    group by month, user_id, org_id, metric_type
)

select
    merged.month,
    merged.user_id,
    merged.org_id,
    merged.metric_type,
    cast(merged.event_count as bigint) as event_count,
    cast(merged.sum_quantity as decimal(38, 9)) as sum_quantity,
    merged.min_quantity,
    merged.max_quantity,
    newest.latest_quantity,
    newest.latest_event_id,
    merged.active_days,
    merged.first_event_at,
    merged.last_event_at
from merged
left join newest
    on
        {{ same('merged', 'newest', ['month', 'user_id', 'org_id', 'metric_type']) }}
        and newest.recency = 1
