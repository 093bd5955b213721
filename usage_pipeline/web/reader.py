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
import sqlalchemy
from sqlalchemy.exc import ProgrammingError

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.duckdb_files import MEMORY_LIMIT, quoted
from usage_pipeline.infra.postgres_pool import Pool
from usage_pipeline.settings import Settings

Row = Mapping[str, Any]
_PARAMETER = re.compile(r"(?<!:):(\w+)")
_NO_SUCH_TABLE = "42P01"


class NotPublished(UsagePipelineError):
    """No run has published anything yet."""

    def __init__(self) -> None:
        super().__init__("Nothing is published", "Publish it with `usage-pipeline rollup`")


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
            NotPublished: nothing is.
            UsagePipelineError: the database cannot be read.
        """
        yield from ()

    @property
    def in_use(self) -> int:
        """Connections that somebody reads with at this moment."""

    def close(self) -> None:
        """Close what is open, until it is asked for again."""


def open_reader(settings: Settings) -> Reader:
    """The reader that `USAGE_WEB_READS` names."""
    return _Duckdb(settings) if settings.web_reads == "duckdb" else _Postgres(settings)


def _snapshot(rows: list[Row]) -> Snapshot:
    if not rows:
        raise NotPublished
    return Snapshot(rows[0]["snapshot_id"], rows[0]["published_at"])


_WHICH = "select snapshot_id, published_at from snapshot"


class _Postgres:
    """The published schema; read-only transactions of the role that the setting names."""

    def __init__(self, settings: Settings) -> None:
        own = settings.web_database_url
        self._pool = Pool(
            own.get_secret_value() if own else publish_database_url(settings),
            "USAGE_WEB_DATABASE_URL" if own else "USAGE_PUBLISH_DATABASE_URL",
            schema=settings.publish_schema,
        )

    @contextmanager
    def open(self) -> Iterator[Published]:
        with self._pool.connect() as connection:
            try:
                published = _InPostgres(connection)
            except ProgrammingError as error:
                if getattr(error.orig, "pgcode", None) == _NO_SUCH_TABLE:
                    raise NotPublished from None
                raise
            yield published

    @property
    def in_use(self) -> int:
        return self._pool.in_use

    def close(self) -> None:
        self._pool.close()


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
        self.in_use = 0

    @contextmanager
    def open(self) -> Iterator[Published]:
        try:
            with self._connection().cursor() as cursor:
                self.in_use += 1
                try:
                    cursor.execute("use served; set TimeZone = 'UTC'")
                    yield _InDuckdb(cursor)
                finally:
                    self.in_use -= 1
        except duckdb.Error as error:
            raise UsagePipelineError(
                f"{self._path} cannot be read ({str(error).splitlines()[0]})",
                "Make it again with `usage-pipeline rollup`",
            ) from None

    def close(self) -> None:
        self._opened = None

    def _connection(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            try:
                there = self._path.stat()
            except FileNotFoundError:
                raise NotPublished from None
            which = (there.st_ino, there.st_mtime_ns)
            if self._opened is None or self._opened[0] != which:
                # Attached: opening a path again gives the file that the process has open already.
                db = duckdb.connect(config={"memory_limit": MEMORY_LIMIT})
                db.execute(f"attach '{quoted(self._path)}' as served (read_only)")
                self._opened = which, db
            return self._opened[1]


class _InDuckdb:
    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        self.snapshot = _snapshot(self.rows(_WHICH))

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        used = set(_PARAMETER.findall(sql))
        result = self._cursor.execute(
            _PARAMETER.sub(r"$\1", sql), {name: parameters[name] for name in used}
        )
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
