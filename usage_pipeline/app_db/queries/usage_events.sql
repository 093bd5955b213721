select id, user_id, org_id, event_type, event_data, quantity, created_at from usage_events
