select id, email, deleted_at from users
