-- The peer inside the database: what an application does without a pipeline. It counts the valid
-- events of one period by the pipeline's rules; being of the least work, it does not remove keys
-- that have disappeared and keeps no first and last event.
create table usage_aggregations (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null,
    org_id uuid,
    period_type text not null,
    period_start timestamptz not null,
    period_end timestamptz not null,
    metric_type text not null,
    total_quantity numeric(38, 9) not null,
    event_count bigint not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique nulls not distinct (user_id, org_id, period_type, period_start, metric_type)
);

create function aggregate_usage(period_type text, period_start timestamptz, period_end timestamptz)
returns bigint
language plpgsql
as $$
declare
    written bigint;
begin
    insert into usage_aggregations as known (
        user_id, org_id, period_type, period_start, period_end, metric_type,
        total_quantity, event_count
    )
    select
        events.user_id,
        events.org_id,
        aggregate_usage.period_type,
        aggregate_usage.period_start,
        aggregate_usage.period_end,
        events.event_type,
        sum(events.quantity::numeric(38, 9)),
        count(*)
    from usage_events as events
    where
        events.created_at >= aggregate_usage.period_start
        and events.created_at < aggregate_usage.period_end
        and events.event_type in (
            'record_created', 'api_call', 'automation_run', 'storage_used',
            'schedule_executed', 'ai_tokens_used', 'user_active'
        )
        -- NaN and Infinity are greater than any number
        and events.quantity > -99999999999999999999999999999.9999999995
        and events.quantity < 99999999999999999999999999999.9999999995
    group by events.user_id, events.org_id, events.event_type
    on conflict on constraint usage_aggregations_user_id_org_id_period_type_period_start__key
    do update set
        total_quantity = excluded.total_quantity,
        event_count = excluded.event_count,
        updated_at = now();
    get diagnostics written = row_count;
    return written;
end
$$;
