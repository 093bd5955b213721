with landed as (
    select * from {{ source('landing', 'usage_events') }}
    where cast(usage_date as date) >= {{ first_day() }}
),

judged as (
    select
        *,
        case
            when id is null then 'id is null'
            when quantity is null and quantity_raw is null then 'quantity is null'
            when quantity_raw = 'NaN' then 'quantity is NaN'
            when quantity_raw in ('Infinity', '-Infinity') then 'quantity is infinite'
            when quantity is null then 'quantity has more than 29 integer digits'
            when event_type is null then 'event_type is null'
            when event_type not in ({{ quoted(var('event_types')) or "''" }})
                then 'event_type is not known'
        end as invalid_reason
    from landed
)

select
    cast(usage_date as date) as usage_date,
    id as event_id,
    cast(user_id as {{ uuid_type() }}) as user_id,
    cast(org_id as {{ uuid_type() }}) as org_id,
    event_type,
    event_data,
    quantity,
    quantity_raw,
    created_at,
    invalid_reason,
    invalid_reason is null as is_valid
from judged
