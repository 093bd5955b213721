select id, org_id, url, secret, enabled, created_at from org_webhooks
