"""Connections to Postgres, and its errors put into words. No knowledge of what is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn

from usage_pipeline.errors import UsagePipelineError

APPLICATION_NAME = "usage-pipeline"  # as pg_stat_activity shows it
CONNECT_TIMEOUT_SECONDS = 10


def redact(text: str) -> str:
    """The text without passwords of the URLs and connection strings in it."""
    text = re.sub(r"(postgres(?:ql)?(?:\+\w+)?://[^:/@\s]*:)\S*@", r"\1***@", text)
    return re.sub(r"(password\s*=\s*)('[^']*'|\S+)", r"\1***", text, flags=re.IGNORECASE)


def conceal(error: Exception) -> None:
    """Take passwords out of a driver's error, which DuckDB puts there, and which a traceback shows
    as the cause or the context of ours."""
    error.args = (redact(str(error)),)


def where(url: str) -> str:
    """Host and database of a URL, for messages; never user or password."""
    parts = parse_dsn(url)
    host = parts.get("host", "/")
    return f"{'the local socket' if host.startswith('/') else host}/{parts.get('dbname', '')}"


@contextmanager
def connect(url: str, variable: str = "USAGE_APP_DATABASE_URL") -> Iterator[Connection]:
    """A connection in one transaction: committed when the block ends, rolled back on an error.

    Args:
        url: a libpq URL; Unix sockets included.
        variable: the setting to name when the database cannot be reached.

    Raises:
        UsagePipelineError: unreachable, or any database error inside the block.
    """
    try:
        connection = psycopg2.connect(
            url,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=APPLICATION_NAME,
            client_encoding="UTF8",  # whatever the database has
        )
    except psycopg2.OperationalError as error:
        conceal(error)
        raise database_error(error, url, variable) from None
    try:
        with connection:
            yield connection
    except psycopg2.Error as error:
        conceal(error)
        raise database_error(error, url, variable) from error
    finally:
        connection.close()


# What Postgres says, what that means, what to do. The first match counts; `{place}`, `{text}` and
# `{variable}` are filled in.
_DIAGNOSES: tuple[tuple[str, str, str], ...] = (
    (
        r"password authentication failed|no password supplied|role .* does not exist",
        "{place} refused the login",
        "Check the user and password in {variable}",
    ),
    (
        r"relation .* does not exist",
        "A table is missing in {place}: {text}",
        "Map your table in usage_pipeline/app_db/queries/, or create the schema with "
        "`usage-pipeline app-db init`",
    ),
    (
        r"column .* does not exist",
        "A column is missing in {place}: {text}",
        "Map your columns in usage_pipeline/app_db/queries/",
    ),
    (
        r"permission denied",
        "{place} denies a privilege: {text}",
        "Grant it to the role of {variable}; `usage-pipeline doctor` checks all that is needed",
    ),
    (
        r"could not convert string",
        "{place} has a value that is not of its column's kind: {text}",
        "Correct the rows, or leave them out in usage_pipeline/app_db/queries/",
    ),
    (r"database .* does not exist", "{text}", "Create it, or correct {variable}"),
    (
        r"unable to connect|connection to server|could not translate|timeout expired|refused",
        "{place} cannot be reached: {text}",
        "Start it, or correct {variable}",
    ),
    (
        r"closed the connection unexpectedly|terminating connection|connection .*(lost|closed)",
        "The connection to {place} was lost",
        "Run again when the server is up",
    ),
    (r"", "{place} failed: {text}", "Correct the cause and run again"),
)


def database_error(error: Exception, url: str, variable: str) -> UsagePipelineError:
    """A Postgres failure, from psycopg2 or from DuckDB's extension, with its remedy."""
    lines = [line for line in redact(str(error)).splitlines() if line.strip()]
    words = {
        "place": f"the database {where(url)}",
        "text": lines[0] if lines else type(error).__name__,
        "variable": variable,
    }
    message = " ".join(lines).lower()
    problem, remedy = next(
        (problem, remedy) for pattern, problem, remedy in _DIAGNOSES if re.search(pattern, message)
    )
    return UsagePipelineError(problem.format(**words), remedy.format(**words))
