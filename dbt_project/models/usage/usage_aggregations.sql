{{ config(materialized='view', tags=['current'], event_time='period_start') }}

with daily as (
    select
        usage_daily.user_id,
        usage_daily.org_id,
        'daily' as period_type,
        calendar.starts_at as period_start,
        usage_daily.metric_type,
        calendar.ends_at as period_end,
        usage_daily.total_quantity,
        usage_daily.event_count,
        cast(1 as bigint) as active_days
    from {{ ref('usage_daily') }} as usage_daily
    inner join {{ ref('stg_calendar') }} as calendar
        on usage_daily.usage_date = calendar.calendar_date
),

monthly as (
    select
        usage_monthly.user_id,
        usage_monthly.org_id,
        'monthly' as period_type,
        first_days.starts_at as period_start,
        usage_monthly.metric_type,
        next_months.starts_at as period_end,
        usage_monthly.total_quantity,
        usage_monthly.event_count,
        usage_monthly.active_days
    from {{ ref('usage_monthly') }} as usage_monthly
    inner join {{ ref('stg_calendar') }} as first_days
        on usage_monthly.month = first_days.calendar_date
    inner join {{ ref('stg_calendar') }} as next_months
        on {{ next_month('usage_monthly.month') }} = next_months.calendar_date
),

rebuilt as (
    select
        {{ uuid_of("concat(
            coalesce(cast(user_id as " ~ text_type() ~ "), ''), '|',
            coalesce(cast(org_id as " ~ text_type() ~ "), ''), '|',
            period_type, '|',
            cast(" ~ epoch_seconds('period_start') ~ " as " ~ text_type() ~ "), '|',
            metric_type
        )") }} as id,
        *,
        cast(
            concat('{"event_count": ', event_count, ', "active_days": ', active_days, '}') as {{ json_type() }}
        ) as metadata
    from (
        select * from daily
        union all
        select * from monthly
    ) as periods
),

compared as (
    select
        rebuilt.*,
        published.created_at,
        case
            when
                {{ same('published', 'rebuilt', ['total_quantity']) }}
                and cast(published.metadata as {{ text_type() }})
                = cast(rebuilt.metadata as {{ text_type() }})
                then published.updated_at
        end as unchanged_since
    from rebuilt
    -- the id alone would do; its period lets the engine read only the periods asked for
    left join {{ source('published', 'usage_aggregations') }} as published
        on rebuilt.id = published.id and rebuilt.period_start = published.period_start
)

select
    id,
    user_id,
    org_id,
    period_type,
    period_start,
    metric_type,
    period_end,
    total_quantity,
    metadata,
    coalesce(created_at, {{ now() }}) as created_at,
    coalesce(unchanged_since, {{ now() }}) as updated_at
from compared
