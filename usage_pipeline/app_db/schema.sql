-- The application's tables, as the pipeline reads them (development and tests; a real
-- application brings its own and maps it in queries/). Safe to run again.
create table if not exists users (
    id uuid primary key,
    email text,
    created_at timestamptz not null default now(),
    deleted_at timestamptz
);

create table if not exists orgs (
    id uuid primary key,
    name text,
    created_at timestamptz not null default now(),
    deleted_at timestamptz
);

create table if not exists org_members (
    org_id uuid not null,
    user_id uuid not null,
    role text not null check (role in ('owner', 'admin', 'member')),
    created_at timestamptz not null default now(),
    primary key (org_id, user_id)
);

create table if not exists subscriptions (
    id uuid primary key,
    user_id uuid,
    org_id uuid,
    plan text not null,
    status text not null check (status in ('trialing', 'active', 'past_due', 'canceled')),
    created_at timestamptz not null default now(),
    canceled_at timestamptz,
    check ((user_id is null) <> (org_id is null))
);

create table if not exists plan_limits (
    plan text not null,
    metric_type text not null,
    limit_quantity numeric,
    primary key (plan, metric_type)
);

create table if not exists org_webhooks (
    id uuid primary key,
    org_id uuid not null,
    url text not null,
    secret text not null,
    enabled boolean not null default true,
    created_at timestamptz not null default now()
);

-- No foreign keys and no check on event_type: events outlive users, and new types come first.
create table if not exists usage_events (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null,
    org_id uuid,
    event_type text not null,
    event_data jsonb,
    quantity numeric not null default 1,
    created_at timestamptz not null default now()
);

create index if not exists usage_events_created_at_idx on usage_events (created_at);
