{{ config(materialized='ephemeral') }}

with newest as (
    select max(usage_date) as as_of_date from {{ ref('stg_landed_days') }}
),

as_of as (
    select
        {{ month_of('as_of_date') }} as month,
        as_of_date
    from newest
    union all
    select
        {{ month_of(add_days(month_of('as_of_date'), -1)) }} as month,
        {{ add_days(month_of('as_of_date'), -1) }} as as_of_date
    from newest
)

select
    as_of.month,
    subscriptions.subscription_id,
    -- who is named beside an organisation pays for it: were it of both, the user would have two rows
    case when subscriptions.org_id is null then subscriptions.user_id end as user_id,
    subscriptions.org_id,
    subscriptions.plan
from {{ ref('stg_subscriptions') }} as subscriptions
inner join as_of on subscriptions.created_date <= as_of.as_of_date
where
    coalesce(subscriptions.user_id, subscriptions.org_id) is not null  -- not of an erased person
    and (
        subscriptions.canceled_date > as_of.as_of_date
        -- one that is canceled without a date was active on no day that we could name
        or (subscriptions.canceled_date is null and subscriptions.status in ('trialing', 'active', 'past_due'))
    )
