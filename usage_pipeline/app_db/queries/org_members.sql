select org_id, user_id, role, created_at from org_members
