select id, name, created_at, deleted_at from orgs
