"""One source of a few people, rolled up once, and the web application on it."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from conftest import DatabaseFactory, SettingsFactory
from served import ACCOUNTS, CRON_SECRET, EVENTS, JWT_SECRET, Done, Served, ServedFactory
from support import AppDatabase, days, roll_up

from usage_pipeline.settings import Settings
from usage_pipeline.web import serve as serving
from usage_pipeline.web.app import make_app
from usage_pipeline.web.rates import Rates
from usage_pipeline.web.state import Actions


@pytest.fixture(scope="session")
def rolled_up(
    new_database: DatabaseFactory, make_settings: SettingsFactory
) -> tuple[AppDatabase, Settings]:
    source = new_database()
    for role in ("usage_reader", "dashboard login in role usage_reader"):
        source.execute(
            f"do $$ begin create role {role}; exception when duplicate_object then null; end $$"
        )
    source.execute(ACCOUNTS)
    source.execute(EVENTS)
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_START_DATE="2025-04-01")
    roll_up(settings, days("2025-04-01", "2025-04-03"))
    return source, settings


@pytest.fixture(scope="session")
def serve(rolled_up: tuple[AppDatabase, Settings], make_settings: SettingsFactory) -> ServedFactory:
    """Makes an application on what is rolled up, with more settings; its rates refuse nobody."""

    def make(**variables: Any) -> Served:
        source, settings = rolled_up
        given = {
            "USAGE_HOME": settings.home,
            "USAGE_APP_DATABASE_URL": source.url,
            "USAGE_INGEST_DATABASE_URL": source.url,
            "USAGE_START_DATE": "2025-04-01",
            "USAGE_JWT_SECRET": JWT_SECRET,
            "USAGE_JWT_AUDIENCE": "authenticated",
            "CRON_SECRET": CRON_SECRET,
        }
        wanted = {name: value for name, value in {**given, **variables}.items() if value}
        served, done = make_settings(**wanted), Done(settings.home / "models.html")
        done.models.write_text("<!doctype html>")
        actions = Actions(
            explain=lambda *of: [],
            start_rollup=done.start_rollup,
            document_models=lambda: done.models,
        )
        app = make_app(served, actions)
        patient = Rates(clock=(1_000 * second for second in itertools.count()).__next__)
        app.state.web = replace(app.state.web, rates=patient)
        return Served(served, source, app, done)

    return make


@pytest.fixture(scope="session")
def served(serve: ServedFactory) -> Served:
    return serve()


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    """The application on a port of its own, as `usage-pipeline web` serves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    stopped, said = threading.Event(), threading.Event()
    done = served.done
    actions = Actions(lambda *of: [], done.start_rollup, lambda: done.models)
    thread = threading.Thread(
        target=serving.serve,
        args=(served.settings, actions, ("127.0.0.1", number), stopped, lambda _: said.set()),
    )
    thread.start()
    assert said.wait(30)
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", number), 1):
            break
        time.sleep(0.1)
    yield number
    stopped.set()
    thread.join(30)
    assert not thread.is_alive()
