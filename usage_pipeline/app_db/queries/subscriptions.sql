select id, user_id, org_id, plan, status, created_at, canceled_at from subscriptions
