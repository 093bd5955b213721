"""A home and a database that can be put back, the processes that work on them, and their state."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from multiprocessing.context import ForkServerProcess
from typing import Any
from uuid import UUID

import psycopg2
from faults.child import roll_up_and_export
from forked import SERVER
from support import AppDatabase, Row, assert_published_alike, days, numbers_only

from usage_pipeline.days import DayRange
from usage_pipeline.meters.meter import EVENT_TYPES
from usage_pipeline.serving.tables import LEDGER
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

HISTORY = days("2024-03-29", "2024-04-02")  # what is published before anything happens
MOMENTS = {"restated_at", "old_published_at"}  # of the ledger
MONTHS = (date(2024, 3, 1), date(2024, 4, 1))


@dataclass(frozen=True)
class State:
    """Published rows, the ledger without its times, and all files with what is in the exports."""

    tables: dict[str, list[Row]]
    ledger: list[Row]
    files: dict[str, str]

    def differences(self, other: State) -> dict[str, Any]:
        """Rows and files on one side only, by table and path; empty for equal states."""
        found: dict[str, Any] = {}
        for name, rows in (*self.tables.items(), (LEDGER, self.ledger)):
            others = other.ledger if name == LEDGER else other.tables[name]
            if rows != others:
                found[name] = (
                    [row for row in rows if row not in others],
                    [row for row in others if row not in rows],
                )
        for path in self.files.keys() | other.files.keys():
            here, there = (state.files.get(path, "absent") for state in (self, other))
            if here != there:
                found[path] = (here, there)
        return found


class House:
    """What a test works on; `put_back` makes it what it was at a `keep`, under the same names."""

    def __init__(self, server: Any, database: AppDatabase, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.variables = {
            "USAGE_HOME": str(settings.home),
            "USAGE_APP_DATABASE_URL": database.url,
            # So that what a killed run had to delete is a correction to whichever run follows.
            "USAGE_LOOKBACK_DAYS": "3650",
            "USAGE_MAX_LOST_SHARE": "1",
        }
        self._admin = server.get_uri("postgres")
        self._name = database.url.split("?")[0].rsplit("/", 1)[1]

    def keep(self, state: str = "history") -> None:
        self._copy_database(self._name, f"{self._name}_{state}")
        shutil.copytree(self.settings.home, self.settings.home.with_name(state))

    def put_back(self, state: str = "history") -> None:
        self._copy_database(f"{self._name}_{state}", self._name)
        shutil.rmtree(self.settings.home)
        shutil.copytree(self.settings.home.with_name(state), self.settings.home)

    def _copy_database(self, source: str, target: str) -> None:
        connection = psycopg2.connect(self._admin)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"drop database if exists {target} with (force)")
            cursor.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
                (source,),
            )
            cursor.execute(f"create database {target} template {source}")
        connection.close()

    def start(self, ranges: DayRange, point: str | None = None) -> ForkServerProcess:
        """A rollup with exports in a process of its own, that dies at a point if there is one."""
        process = SERVER.Process(
            target=roll_up_and_export, args=(self.variables, ranges, MONTHS, point)
        )
        process.start()
        return process

    def run(self, ranges: DayRange) -> float:
        """An undisturbed rollup; gives its seconds."""
        started = time.monotonic()
        process = self.start(ranges)
        process.join()
        assert process.exitcode == 0
        return time.monotonic() - started

    def asks_for_nothing(self) -> bool:
        """Whether no run left a day to be extracted, built or published."""
        left = json.loads((self.settings.home / "warehouse.json").read_text())
        return not (left["extracting"] or left["pending"] or left["built"])

    def state(self) -> State:
        """What the outputs hold, which have to agree."""
        tables = assert_published_alike(self.settings, self.database.url)
        ledger = [
            {name: cell for name, cell in row.items() if name not in MOMENTS}
            for row in tables[LEDGER]
        ]
        home = self.settings.home
        files = {
            str(path.relative_to(home)): path.read_text() if path.suffix == ".csv" else ""
            for path in home.rglob("*")
            if path.relative_to(home).parts[0] != "dbt"
        }
        return State(numbers_only(tables), sorted(ledger, key=str), files)

    def assert_at_rest(self) -> None:
        """Nobody holds the lock or is connected; Postgres misses a killed client after a moment."""
        assert writer.holder(self.settings) is None
        for _ in range(100):
            connected = self.database.query(
                "select query from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            if not connected:
                return
            time.sleep(0.1)
        assert connected == []


def fill(source: AppDatabase) -> None:
    """Some people's events of the days that are rolled up, and of the days around them."""
    dice = random.Random(5)

    def ids(count: int) -> list[str]:
        return [str(UUID(int=dice.getrandbits(128))) for _ in range(count)]

    people, orgs = ids(12), ids(3)
    joined = "2024-01-01T00:00Z"
    source.insert("users", [(person, None, joined, None) for person in people])
    source.insert("orgs", [(org, "an org", joined, None) for org in orgs])
    source.insert("subscriptions", _subscriptions(orgs, joined))
    first = datetime(2024, 3, 28, tzinfo=UTC)
    events = [
        (
            dice.choice(people),
            dice.choice([*orgs, None]),
            dice.choice(EVENT_TYPES),
            None,
            dice.randrange(10**12) / 10**6,
            first + timedelta(microseconds=dice.randrange(6 * 86_400_000_000)),
        )
        for _ in range(900)
    ]
    source.insert("usage_events", [(i, *e) for i, e in zip(ids(900), events, strict=True)])


def _subscriptions(orgs: Iterable[str], joined: str) -> list[tuple[Any, ...]]:
    return [(org, None, org, "team", "active", joined, None) for org in orgs]
