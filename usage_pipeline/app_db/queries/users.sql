select id, created_at, deleted_at from users
