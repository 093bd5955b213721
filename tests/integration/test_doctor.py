"""`doctor` names each missing privilege of the README's roles before a rollup fails for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from support import AppDatabase

from usage_pipeline.operations.doctor import examine
from usage_pipeline.settings import Settings

README = Path(__file__).parents[2] / "README.md"
ROLES = ("usage_source", "usage_publisher", "usage_reader", "dagster")


def statements() -> list[str]:
    """The README's SQL for an administrator, but for the database that the test has already."""
    script = README.read_text("utf-8").split("```sql\n-- Reads seven tables")[1].split("```")[0]
    lines = [line for line in script.splitlines()[1:] if not line.startswith("--")]
    found = [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]
    assert sum(statement.startswith("create role") for statement in found) == len(ROLES)
    return [statement for statement in found if not statement.startswith("create database")]


def as_role(url: str, role: str) -> str:
    return url.replace("postgresql://postgres@", f"postgresql://{role}:change-me@")


@pytest.fixture(scope="module")
def databases(new_database: Any) -> Iterator[tuple[AppDatabase, AppDatabase]]:
    """The application's and Dagster's, with the roles as the README makes them."""
    app, storage = new_database(), new_database(schema=False)
    for statement in statements():
        unless_there = f"begin {statement}; exception when duplicate_object then null; end"
        is_role = statement.startswith("create role")  # other tests know readers, too
        app.execute(f"do $$ {unless_there} $$" if is_role else statement)
    name = storage.query("select current_database()")[0][0]
    storage.execute(f'alter database "{name}" owner to dagster')
    yield app, storage
    for role in ROLES:
        for database in (app, storage):
            database.execute(f"reassign owned by {role} to postgres; drop owned by {role}")
    for role in ROLES:
        with suppress(psycopg2.errors.DependentObjectsStillExist):
            app.execute(f"drop role {role}")


@pytest.fixture(scope="module")
def settings(databases: tuple[AppDatabase, AppDatabase], make_settings: Any) -> Settings:
    app, storage = databases
    made: Settings = make_settings(
        USAGE_APP_DATABASE_URL=as_role(app.url, "usage_source"),
        USAGE_PUBLISH_DATABASE_URL=as_role(app.url, "usage_publisher"),
        DAGSTER_PG_URL=as_role(storage.url, "dagster"),
    )
    return made


def failures(settings: Settings) -> dict[str, str]:
    """What `doctor` finds wrong."""
    return {f.what: f"{f.detail}. {f.remedy}" for f in examine(settings) if not f.ok}


def failures_while(
    app: AppDatabase, revoked: str, restored: str, settings: Settings
) -> dict[str, str]:
    """What it finds wrong between two statements, after which nothing is."""
    app.execute(revoked)
    try:
        found = failures(settings)
    finally:
        app.execute(restored)
    assert failures(settings) == {}
    return found


def test_the_roles_of_the_readme_are_enough(settings: Settings) -> None:
    assert failures(settings) == {}


@pytest.mark.parametrize(
    ("revoke", "restore", "what", "says"),
    [
        (
            f"revoke select on {table} from usage_source",
            f"grant select on {table} to usage_source",
            f"source table {table}",
            f"permission denied for table {table}",
        )
        for table in ("usage_events", "org_members", "subscriptions", "plan_limits", "org_webhooks")
    ]
    + [
        (
            f"revoke select ({column}) on {table} from usage_source",
            f"grant select ({column}) on {table} to usage_source",
            f"source table {table}",
            f"permission denied for table {table}",
        )
        for table, columns in (
            ("users", ("id", "created_at", "deleted_at")),
            ("orgs", ("id", "name", "created_at", "deleted_at")),
        )
        for column in columns
    ]
    + [
        (
            "revoke usage on schema public from public, usage_source",
            "grant usage on schema public to public, usage_source",
            "source table usage_events",
            "usage_events",
        ),
        (
            "alter schema usage owner to postgres; revoke all on schema usage from usage_publisher",
            "alter schema usage owner to usage_publisher",
            "publish database",
            "permission denied for schema usage",
        ),
        (
            "alter schema usage owner to postgres; grant usage on schema usage to usage_publisher",
            "alter schema usage owner to usage_publisher",
            "publish database",
            "permission denied for schema usage",
        ),
        (
            "create table usage.usage_daily (n int)",
            "drop table usage.usage_daily",
            "publish database",
            "Table usage_daily belongs to the role postgres",
        ),
    ]
    + [
        (
            f"create table usage.{table} (n int)",
            f"drop table usage.{table}",
            "publish database",
            f"Table {table} belongs to the role postgres",
        )
        for table in ("usage_alerts", "alerts_judged")
    ],
)
def test_a_missing_privilege_is_named(
    revoke: str,
    restore: str,
    what: str,
    says: str,
    *,
    databases: tuple[AppDatabase, AppDatabase],
    settings: Settings,
) -> None:
    app, _ = databases
    found = failures_while(app, revoke, restore, settings)
    assert says in found[what]
    assert re.search(r"\. [A-Z]", found[what])  # and a remedy


@pytest.mark.parametrize(
    ("privilege", "role", "what", "says"),
    [
        ("temporary", "usage_publisher", "publish database", "temporary tables"),
        ("connect", "usage_source", "source database", "permission denied for database"),
        ("connect", "usage_publisher", "publish database", "permission denied for database"),
    ],
)
def test_a_missing_privilege_on_the_database_is_named(
    privilege: str,
    role: str,
    what: str,
    says: str,
    *,
    databases: tuple[AppDatabase, AppDatabase],
    settings: Settings,
) -> None:
    app, _ = databases
    name = app.query("select current_database()")[0][0]
    others = ", ".join({"usage_source", "usage_publisher"} - {role})
    found = failures_while(
        app,
        f'revoke {privilege} on database "{name}" from public, {role};'
        f' grant {privilege} on database "{name}" to {others}',
        f'grant {privilege} on database "{name}" to public',
        settings,
    )
    assert says in found[what]


def test_events_that_are_on_no_day_are_counted(
    databases: tuple[AppDatabase, AppDatabase], settings: Settings
) -> None:
    app, _ = databases
    found = failures_while(
        app,
        "insert into usage_events (id, user_id, event_type, quantity, created_at)"
        " select gen_random_uuid(), gen_random_uuid(), 'api_call', 1, created_at"
        " from (values ('infinity'::timestamptz), ('-infinity'), ('2024-03-01')) as t (created_at)",
        "delete from usage_events",
        settings,
    )
    assert found.keys() == {"source table usage_events"}
    assert "2 events have an infinite created_at" in found["source table usage_events"]


def test_a_storage_that_dagster_may_not_write_is_named(
    databases: tuple[AppDatabase, AppDatabase], settings: Settings
) -> None:
    _, storage = databases
    name = storage.query("select current_database()")[0][0]
    found = failures_while(
        storage,
        f'alter database "{name}" owner to postgres',
        f'alter database "{name}" owner to dagster',
        settings,
    )
    assert "permission denied for schema public" in found["Dagster storage"]
