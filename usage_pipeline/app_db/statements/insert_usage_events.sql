insert into usage_events (id, user_id, org_id, event_type, event_data, quantity, created_at)
select id, user_id, org_id, event_type, event_data, quantity, created_at
from incoming_events
on conflict do nothing
returning id
