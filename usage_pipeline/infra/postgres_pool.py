"""Connections to Postgres that are kept and shared, for what answers people while they wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import sqlalchemy
from psycopg2.extras import register_uuid
from sqlalchemy.exc import DBAPIError

from usage_pipeline.infra.postgres import APPLICATION_NAME, CONNECT_TIMEOUT_SECONDS, database_error

_MOST, _WAIT_SECONDS = 16, 5.0


class Pool:
    """Connections, each opened when it is first needed; a dead one is replaced.

    Args:
        url: a libpq URL; Unix sockets included.
        variable: the setting to name when the database cannot be reached.
        statement_timeout_ms: after which Postgres cancels a statement.
        read_only: transactions write nothing, and see one state of the database.
        schema: in which tables are looked up.
    """

    def __init__(
        self,
        url: str,
        variable: str,
        *,
        statement_timeout_ms: int = 5_000,
        read_only: bool = True,
        schema: str = "",
    ) -> None:
        self._url, self._variable = url, variable
        self._settings = {
            "statement_timeout": statement_timeout_ms,
            "idle_in_transaction_session_timeout": 60_000,
            "timezone": "UTC",
            "default_transaction_read_only": "on" if read_only else "off",
            "default_transaction_isolation": "repeatable read" if read_only else "read committed",
        }
        if schema:
            self._settings["search_path"] = f'"{schema}"'
        self._engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://",
            creator=self._connect,
            pool_size=_MOST,
            max_overflow=0,
            pool_timeout=_WAIT_SECONDS,
            pool_pre_ping=True,
            pool_recycle=1_800,
        )

    @contextmanager
    def connect(self) -> Iterator[sqlalchemy.Connection]:
        """A connection for the block, in a transaction that is rolled back unless it commits.

        Raises:
            UsagePipelineError: unreachable, all in use, or any database error inside the block.
        """
        try:
            with self._engine.connect() as connection:
                yield connection
        except (DBAPIError, psycopg2.Error, sqlalchemy.exc.TimeoutError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
            raise database_error(Exception(str(cause)), self._url, self._variable) from None

    @property
    def in_use(self) -> int:
        """Connections that somebody has at this moment."""
        return int(self._engine.pool.checkedout())  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close those that nobody uses."""
        self._engine.dispose()

    def _connect(self) -> Any:
        connection = psycopg2.connect(
            self._url,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=APPLICATION_NAME,
            client_encoding="UTF8",
        )
        register_uuid(conn_or_curs=connection)
        with connection, connection.cursor() as cursor:
            for name, value in self._settings.items():
                cursor.execute("select set_config(%s, %s, false)", (name, str(value)))
        return connection
