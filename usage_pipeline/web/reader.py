"""What is published, read by pages and API: in Postgres, or in the snapshot beside it.

One text of SQL serves both engines: tables by their plain names, parameters as `:name`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import duckdb
import psycopg2
import sqlalchemy
from sqlalchemy.exc import DBAPIError

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.postgres import database_error
from usage_pipeline.infra.postgres_pool import open_pool
from usage_pipeline.settings import Settings

Row = Mapping[str, Any]
_PARAMETER = re.compile(r"(?<!:):(\w+)")


@dataclass(frozen=True)
class Snapshot:
    """Which published state is read."""

    snapshot_id: str
    published_at: datetime


class Published(Protocol):
    """One published state, whatever is published meanwhile."""

    @property
    def snapshot(self) -> Snapshot: ...

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        """Rows by column: decimals, UUIDs, dates, and instants in UTC."""


class Reader(Protocol):
    """Opens what is published."""

    @contextmanager
    def open(self) -> Iterator[Published]:
        """One state for all questions in the block.

        Raises:
            UsagePipelineError: nothing is published, or the database cannot be read.
        """
        yield from ()


def open_reader(settings: Settings) -> Reader:
    """The reader that `USAGE_WEB_READS` names."""
    return _Duckdb(settings) if settings.web_reads == "duckdb" else _Postgres(settings)


def _snapshot(rows: list[Row]) -> Snapshot:
    if not rows:
        raise UsagePipelineError("Nothing is published", "Publish it with `usage-pipeline rollup`")
    return Snapshot(rows[0]["snapshot_id"], rows[0]["published_at"])


_WHICH = "select snapshot_id, published_at from snapshot"


class _Postgres:
    """The published schema; read-only transactions of the role that the setting names."""

    def __init__(self, settings: Settings) -> None:
        own = settings.web_database_url
        self._variable = "USAGE_WEB_DATABASE_URL" if own else "USAGE_PUBLISH_DATABASE_URL"
        self._url = own.get_secret_value() if own else publish_database_url(settings)
        self._engine = open_pool(self._url, schema=settings.publish_schema)

    @contextmanager
    def open(self) -> Iterator[Published]:
        try:
            with self._engine.connect() as connection:
                yield _InPostgres(connection)
        except (DBAPIError, psycopg2.Error, sqlalchemy.exc.TimeoutError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
            if getattr(cause, "pgcode", None) == "42P01":  # no such table
                raise UsagePipelineError(
                    "Nothing is published", "Publish it with `usage-pipeline rollup`"
                ) from None
            raise database_error(Exception(str(cause)), self._url, self._variable) from None


class _InPostgres:
    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection
        self.snapshot = _snapshot(self.rows(_WHICH))

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        return [
            dict(row)
            for row in self._connection.execute(sqlalchemy.text(sql), parameters).mappings()
        ]


class _Duckdb:
    """The snapshot file; opened again when another one is there."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.snapshot_path
        self._lock = threading.Lock()
        self._opened: tuple[tuple[int, int], duckdb.DuckDBPyConnection] | None = None

    @contextmanager
    def open(self) -> Iterator[Published]:
        cursor = self._connection().cursor()
        try:
            yield _InDuckdb(cursor)
        finally:
            cursor.close()

    def _connection(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            try:
                there = self._path.stat()
            except FileNotFoundError:
                raise UsagePipelineError(
                    "Nothing is published", "Publish it with `usage-pipeline rollup`"
                ) from None
            which = (there.st_ino, there.st_mtime_ns)
            if self._opened is None or self._opened[0] != which:
                db = duckdb.connect(str(self._path), read_only=True)
                self._opened = which, db
            return self._opened[1]


class _InDuckdb:
    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        cursor.execute("set TimeZone = 'UTC'")
        self.snapshot = _snapshot(self.rows(_WHICH))

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        used = set(_PARAMETER.findall(sql))
        result = self._cursor.execute(
            _PARAMETER.sub(r"$\1", sql), {name: parameters[name] for name in used}
        )
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
