{{ config(tags=['current']) }}
-- each with where its usage is, whose subscription counts, and which of the plan's limits
{% set scopes = [
    ('user', ref('usage_monthly'), 'totals.org_id is null and totals.user_id is not null', 'user_id', 'subscriber'),
    ('member', ref('usage_monthly'), 'totals.org_id is not null and totals.user_id is not null', 'org_id', 'member'),
    ('org', ref('org_usage_monthly'), 'totals.org_id is not null', 'org_id', 'subscriber'),
] %}

-- The running month, and the one before as of its last day: what of it is published late may have
-- crossed a limit, too.

with newest as (
    select {{ month_of('max(usage_date)') }} as month from {{ ref('stg_landed_days') }}
),

months as (
    select month from newest
    union all
    select {{ month_of(add_days('month', -1)) }} as month from newest
),

limits as (
    select
        plan,
        metric_type,
        'subscriber' as holder,
        limit_quantity,
        limit_raw is not null as is_unknown
    from {{ ref('stg_plan_limits') }}
    union all
    select
        plan,
        metric_type,
        'member' as holder,
        member_limit_quantity as limit_quantity,
        member_limit_raw is not null as is_unknown
    from {{ ref('stg_plan_limits') }}
    where member_limit_quantity is not null or member_limit_raw is not null
),

subscriptions as (
    select
        month,
        user_id,
        org_id,
        plan
    from {{ ref('int_active_subscriptions') }}
),

subscribers as (
    select distinct
        month,
        user_id,
        org_id
    from subscriptions
),

-- of several plans the most generous one, meter by meter; one that does not speak of it has no say
ranked_limits as (
    select
        subscriptions.month,
        subscriptions.user_id,
        subscriptions.org_id,
        subscriptions.plan,
        limits.metric_type,
        limits.holder,
        limits.limit_quantity,
        limits.is_unknown,
        row_number() over (
            partition by
                subscriptions.month,
                subscriptions.user_id,
                subscriptions.org_id,
                limits.metric_type,
                limits.holder
            order by
                limits.is_unknown asc,
                case when limits.limit_quantity is null then 0 else 1 end asc,
                limits.limit_quantity desc,
                subscriptions.plan asc
        ) as place
    from subscriptions
    inner join limits on subscriptions.plan = limits.plan
),

held_limits as (
    select * from ranked_limits where place = 1
),

free_limits as (
    select * from limits where plan = 'free'
),

used as (
    {% for scope, usage, rows, subscriber, holder in scopes %}
    select
        '{{ scope }}' as scope,
        {{ 'totals.user_id' if scope != 'org' else 'cast(null as ' ~ uuid_type() ~ ')' }} as user_id,
        {{ 'totals.org_id' if scope != 'user' else 'cast(null as ' ~ uuid_type() ~ ')' }} as org_id,
        totals.metric_type,
        totals.month,
        totals.total_quantity as used_quantity,
        case when subscribers.{{ subscriber }} is null then free_limits.plan else held_limits.plan end as plan,
        case
            when subscribers.{{ subscriber }} is null then free_limits.limit_quantity
            else held_limits.limit_quantity
        end as limit_quantity,
        case
            when subscribers.{{ subscriber }} is null then free_limits.is_unknown
            else held_limits.is_unknown
        end as is_unknown
    from {{ usage }} as totals
    inner join months on totals.month = months.month
    left join subscribers
        on totals.month = subscribers.month and totals.{{ subscriber }} = subscribers.{{ subscriber }}
    left join held_limits
        on
            totals.month = held_limits.month
            and totals.{{ subscriber }} = held_limits.{{ subscriber }}
            and totals.metric_type = held_limits.metric_type
            and held_limits.holder = '{{ holder }}'
    left join free_limits
        on totals.metric_type = free_limits.metric_type and free_limits.holder = '{{ holder }}'
    where {{ rows }}
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

limited as (
    select
        *,
        {{ exact_ratio('used_quantity', 'limit_quantity') }} as used_ratio
    from used
    where plan is not null
)

select
    month,
    scope,
    user_id,
    org_id,
    metric_type,
    plan,
    used_quantity,
    limit_quantity,
    used_ratio,
    case
        when used_quantity is null or is_unknown then null
        when limit_quantity is null then 'ok'
        when used_quantity >= limit_quantity and (limit_quantity > 0 or used_quantity > 0) then 'exceeded'
        when limit_quantity > 0 and {{ reaches_share('used_quantity', 'limit_quantity', '0.8', 'used_ratio') }}
            then 'warning'
        else 'ok'
    end as status
from limited
