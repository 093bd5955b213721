"""The application database: schema, the queries that map it, embedded server, sample data."""

from usage_pipeline.app_db.connection import (
    APPLICATION_NAME,
    conceal,
    connect,
    create_schema,
    database_error,
    redact,
)
from usage_pipeline.app_db.server import (
    app_database_url,
    dagster_database_url,
    keep_embedded,
    leave_embedded_and_exit,
    publish_database_url,
)

__all__ = [
    "APPLICATION_NAME",
    "app_database_url",
    "conceal",
    "connect",
    "create_schema",
    "dagster_database_url",
    "database_error",
    "keep_embedded",
    "leave_embedded_and_exit",
    "publish_database_url",
    "redact",
]
