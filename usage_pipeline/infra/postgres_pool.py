"""Connections to Postgres that are kept and shared, for what answers people while they wait."""

from __future__ import annotations

from typing import Any

import psycopg2
import sqlalchemy
from psycopg2.extras import register_uuid

from usage_pipeline.infra.postgres import APPLICATION_NAME, CONNECT_TIMEOUT_SECONDS

_MOST, _WAIT_SECONDS = 16, 5.0


def open_pool(
    url: str, *, statement_timeout_ms: int = 5_000, read_only: bool = True, schema: str = ""
) -> sqlalchemy.Engine:
    """A pool of connections, each opened when it is first needed; a dead one is replaced.

    Args:
        url: a libpq URL; Unix sockets included.
        statement_timeout_ms: after which Postgres cancels a statement.
        read_only: transactions write nothing, and see one state of the database.
        schema: in which tables are looked up.
    """
    settings = {
        "statement_timeout": statement_timeout_ms,
        "idle_in_transaction_session_timeout": 60_000,
        "timezone": "UTC",
        "default_transaction_read_only": "on" if read_only else "off",
        "default_transaction_isolation": "repeatable read" if read_only else "read committed",
    }
    if schema:
        settings["search_path"] = f'"{schema}"'

    def connect() -> Any:
        connection = psycopg2.connect(
            url,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=APPLICATION_NAME,
            client_encoding="UTF8",
        )
        register_uuid(conn_or_curs=connection)
        with connection, connection.cursor() as cursor:
            for name, value in settings.items():
                cursor.execute("select set_config(%s, %s, false)", (name, str(value)))
        return connection

    return sqlalchemy.create_engine(
        "postgresql+psycopg2://",
        creator=connect,
        pool_size=_MOST,
        max_overflow=0,
        pool_timeout=_WAIT_SECONDS,
        pool_pre_ping=True,
        pool_recycle=1_800,
    )
