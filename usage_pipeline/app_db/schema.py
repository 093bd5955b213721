"""The application's schema where it is ours to make: development, demo and tests."""

from __future__ import annotations

from importlib.resources import files

from usage_pipeline.infra.postgres import connect


def create_schema(url: str) -> None:
    """Create the application's tables where absent (`usage-pipeline app-db init`)."""
    statements = files("usage_pipeline.app_db").joinpath("schema.sql").read_text("utf-8")
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(statements)


def tables_with_rows(url: str) -> list[str]:
    """Tables of a database that hold rows, Postgres's own left out, as `schema.table`."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select format('%I.%I', nspname, relname) from pg_class "
            "join pg_namespace on pg_namespace.oid = relnamespace where relkind in ('r', 'p', 'f') "
            "and nspname not in ('pg_catalog', 'information_schema') and nspname !~ '^pg_' "
            "order by 1"
        )
        tables = [name for (name,) in cursor.fetchall()]
        found = []
        for table in tables:
            cursor.execute(f"select exists (select from {table})")
            if (cursor.fetchone() or (False,))[0]:
                found.append(table)
        return found


def count_users(url: str) -> int:
    """Users in the source."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from users")
        return int((cursor.fetchone() or (0,))[0])
