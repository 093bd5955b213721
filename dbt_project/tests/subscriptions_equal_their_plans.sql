-- The platform's active subscriptions are those of its plans.
with plans as (
    select
        metric_date,
        sum(active_subscriptions) as active_subscriptions
    from {{ ref('subscriptions_by_plan_daily') }}
    where {{ in_window('metric_date', 'trailing') }}
    group by metric_date
)

select
    metrics.metric_date,
    metrics.active_subscriptions,
    plans.active_subscriptions as active_subscriptions_of_plans
from {{ ref('platform_metrics_daily') }} as metrics
left join plans on metrics.metric_date = plans.metric_date
where
    {{ in_window('metrics.metric_date', 'trailing') }}
    and metrics.active_subscriptions <> coalesce(plans.active_subscriptions, 0)
