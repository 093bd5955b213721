"""Random histories under random settings, all tables in all places against plain Python.

Between rollups, events come, move between days, change and go, valid ones and others; accounts are
corrected; meters, time zone and start date change. Whatever the history: once all landed days are
up to date, every published table is what `faults.oracle` computes from the source.

`make test` tries a few histories; `make faults` tries many.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import yaml
from faults.oracle import Account, Event, Meter, Oracle
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from support import AppDatabase, Row, assert_published_alike, roll_up

from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.settings import Settings

FIRST = datetime(2024, 3, 29, tzinfo=UTC)  # with a change of clocks in Berlin, and of the month
DAYS = 6
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati")
STARTS = ("2024-03-01", "2024-03-30")
METERS = (
    (Meter("api_call", "api_call", "sum"), Meter("tokens", "ai_tokens_used", "count")),
    (
        Meter("calls", "api_call", "sum"),
        Meter("called", "api_call", "sum", "v"),
        Meter("distinct", "api_call", "unique_count", "v"),
        Meter("newest", "ai_tokens_used", "latest", dimension="m"),
        Meter("average", "ai_tokens_used", "avg"),
        Meter("greatest", "api_call", "max", "v", filter=("m", ("a", "1.5"))),
        Meter("least", "ai_tokens_used", "min", "v", dimension="m"),
    ),
)
BOOKKEEPING = {"id", "created_at", "updated_at", "detected_at", "metadata"}


def uuid(number: int) -> str:
    return str(UUID(int=number))


MOMENTS = st.builds(
    lambda day, second: FIRST + timedelta(days=day, seconds=second),
    st.integers(-1, DAYS),
    st.sampled_from([0, 1, 3_599, 3_600, 20_700, 43_200, 82_800, 86_399]),
)
NUMBERS = ("0", "2", "1.5", "1.50", "-3", "1e-9", "4e-10", "8.5e-12", "1.5e3")
LONG_NUMBERS = ("12345678901234567.01", "12345678901234567.02", "0.000000000009")
VALUES = st.sampled_from(
    [*map(Decimal, NUMBERS + LONG_NUMBERS), *NUMBERS, "+.5", " 7 ", "x", "NaN", None]
)
DATA = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "v": VALUES,
        "m": st.sampled_from(["a", "b", None, Decimal("1.50"), Decimal("1.5")]),
        "other": VALUES,  # what else a document holds changes nothing
    },
)
EVENTS = st.builds(
    Event,
    id=st.just(""),
    user_id=st.integers(1, 3).map(uuid),
    org_id=st.none() | st.integers(101, 102).map(uuid),
    event_type=st.sampled_from(["api_call", "ai_tokens_used", "api_call", "mystery"]),
    event_data=DATA,
    quantity=st.one_of(
        st.decimals("-1e6", "1e6", places=10).map(lambda number: format(number, "f")),
        st.sampled_from(["0", "1", "-1", "NaN", "Infinity", "0.0000000005", "1e28", "1e29"]),
    ),
    created_at=MOMENTS,
)
ACCOUNT_MOMENTS = st.integers(0, 70).map(lambda day: FIRST + timedelta(days=day - 60, hours=3))
ACCOUNTS = st.builds(
    Account,
    id=st.just(""),
    created_at=ACCOUNT_MOMENTS,
    ended_at=st.none() | ACCOUNT_MOMENTS,
    plan=st.sampled_from(["free", "pro"]),
    status=st.sampled_from(["trialing", "active", "past_due", "canceled"]),
)
# Only subscriptions have a status.
PEOPLE = ACCOUNTS.map(lambda account: replace(account, status="active"))


def as_json(data: dict[str, Any]) -> str:
    """With each number as it is written here, digit for digit."""
    return re.sub('"#(.*?)#"', r"\1", json.dumps(data, default=lambda number: f"#{number}#"))


@dataclass(frozen=True)
class Step:
    """What happens in the source, the settings from then on, and the days rolled up."""

    new: list[Event]
    gone: list[int]
    replaced: list[tuple[int, Event]]
    users: list[Account]
    orgs: list[Account]
    subscriptions: list[Account]
    limits: dict[tuple[str, str], Decimal | None]
    zone: str
    start: str
    meters: int
    first: int
    days: int


STEPS = st.builds(
    Step,
    new=st.lists(EVENTS, max_size=10),
    gone=st.lists(st.integers(0, 99), max_size=2),
    replaced=st.lists(st.tuples(st.integers(0, 99), EVENTS), max_size=4),
    users=st.lists(PEOPLE, max_size=4),
    orgs=st.lists(PEOPLE, max_size=2),
    subscriptions=st.lists(ACCOUNTS, max_size=3),
    limits=st.dictionaries(
        st.tuples(
            st.sampled_from(["free", "pro"]),
            st.sampled_from([meter.key for meters in METERS for meter in meters]),
        ),
        st.sampled_from([None, *map(Decimal, ("-1", "0", "1e-9", "1", "2.5", "1e5", "1e28"))]),
        max_size=12,
    ),
    zone=st.sampled_from(ZONES),
    start=st.sampled_from(STARTS),
    meters=st.integers(0, len(METERS) - 1),
    first=st.integers(0, DAYS - 1),
    days=st.integers(1, DAYS),
)
HISTORIES = st.lists(STEPS, min_size=1, max_size=3)


class World:
    """One source and one home; every history begins with empty ones."""

    def __init__(self, database: AppDatabase, make_settings: Any) -> None:
        self.database = database
        self._make_settings = make_settings
        self.settings: Settings = make_settings(USAGE_APP_DATABASE_URL=database.url)

    def begin(self) -> None:
        self.database.execute(
            "truncate usage_events, users, orgs, org_members, subscriptions, plan_limits;"
            " drop schema if exists usage cascade"
        )
        shutil.rmtree(self.settings.home, ignore_errors=True)
        self.events: list[Event] = []
        self._ids = 0

    def apply(self, step: Step) -> None:
        """Change the source and the settings."""
        for event in step.new:
            self._ids += 1
            self.events.append(replace(event, id=uuid(1000 + self._ids)))
        for number in step.gone:
            if self.events:
                self.events.pop(number % len(self.events))
        for number, event in step.replaced:
            if self.events:
                at = number % len(self.events)
                self.events[at] = replace(event, id=self.events[at].id)
        self.database.execute(
            "truncate usage_events, users, orgs, org_members, subscriptions, plan_limits"
        )
        self.database.insert(
            "usage_events",
            [
                (
                    event.id,
                    event.user_id,
                    event.org_id,
                    event.event_type,
                    None if event.event_data is None else as_json(event.event_data),
                    event.quantity,
                    event.created_at,
                )
                for event in self.events
            ],
        )
        self.users, self.orgs, self.subscriptions = (
            [replace(account, id=uuid(first + n)) for n, account in enumerate(accounts)]
            for first, accounts in (
                (1, step.users),
                (101, step.orgs),
                (201, step.subscriptions),
            )
        )
        self.limits = step.limits
        self._insert_accounts()
        self.meters = list(METERS[step.meters])
        self.settings = self._make_settings(
            USAGE_HOME=self.settings.home,
            USAGE_APP_DATABASE_URL=self.database.url,
            USAGE_TIMEZONE=step.zone,
            USAGE_START_DATE=step.start,
            USAGE_METERS_FILE=self._meters_file(),
        )

    def _insert_accounts(self) -> None:
        self.database.insert(
            "users", [(each.id, None, each.created_at, each.ended_at) for each in self.users]
        )
        self.database.insert(
            "orgs", [(each.id, "name", each.created_at, each.ended_at) for each in self.orgs]
        )
        self.database.insert(
            "subscriptions",
            [
                (each.id, uuid(1), None, each.plan, each.status, each.created_at, each.ended_at)
                for each in self.subscriptions
            ],
        )
        self.database.insert("plan_limits", [(*key, limit) for key, limit in self.limits.items()])

    def _meters_file(self) -> Path:
        meters = [
            {
                "key": meter.key,
                "event_type": meter.event_type,
                "aggregation": meter.aggregation,
                "unit": "units",
                "description": "Of a random history",
                **({} if meter.aggregation == "count" else {"value": "quantity"}),
                **({"value": f"$.{meter.value}"} if meter.value else {}),
                **(
                    {"filter": {f"$.{meter.filter[0]}": list(meter.filter[1])}}
                    if meter.filter
                    else {}
                ),
                **(
                    {"dimensions": {meter.dimension: f"$.{meter.dimension}"}}
                    if meter.dimension
                    else {}
                ),
            }
            for meter in self.meters
        ]
        path = self.settings.home.with_name("meters.yml")
        path.write_text(yaml.safe_dump({"meters": meters}))
        return path

    def roll_up(self, step: Step) -> None:
        start = max(FIRST.date() + timedelta(step.first), self.settings.start_date)
        roll_up(self.settings, DayRange(start, start + timedelta(step.days)))

    def roll_up_all_landed(self) -> None:
        roll_up(self.settings, *ranges_of_days(landed_manifests(self.settings)))

    def expected(self) -> dict[str, list[Row]]:
        return Oracle(
            zone=ZoneInfo(self.settings.timezone),
            start=self.settings.start_date,
            landed=[d for d in landed_manifests(self.settings) if d >= self.settings.start_date],
            meters=self.meters,
            events=self.events,
            users=self.users,
            orgs=self.orgs,
            subscriptions=self.subscriptions,
            subscriber=uuid(1),
            limits=self.limits,
        ).tables()


def comparable(table: str, rows: Iterable[Row], columns: set[str]) -> list[list[tuple[str, Any]]]:
    """Rows in one spelling and order, so that a failure shows those that differ."""

    def plain(value: Any) -> Any:
        if isinstance(value, Decimal):
            return format(value, ".9f")
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat()
        return str(value) if isinstance(value, (date, UUID)) else value

    return sorted(([(name, plain(row[name])) for name in sorted(columns)] for row in rows), key=str)


def assert_as_expected(found: dict[str, list[Row]], expected: dict[str, list[Row]]) -> None:
    for table, rows in expected.items():
        published = [
            {
                **row,
                **(json.loads(row["metadata"]) if "metadata" in row else {}),
                "when": row.get("usage_date", row.get("month")),
            }
            for row in found[table]
        ]
        if not rows:
            assert published == [], table
            continue
        columns = set(rows[0])
        assert comparable(table, published, columns) == comparable(table, rows, columns), table
        whole = {name for row in found[table][:1] for name in row} - BOOKKEEPING
        if table != "invalid_usage_events" and "when" not in columns:
            assert whole <= columns, table


@pytest.fixture(scope="module")
def world(new_database: Any, make_settings: Any) -> World:
    return World(new_database(), make_settings)


def test_every_table_is_what_plain_python_finds(world: World, tries: profile) -> None:
    @tries
    @given(HISTORIES)
    def any_history(history: list[Step]) -> None:
        world.begin()
        for step in history:
            world.apply(step)
            world.roll_up(step)
        world.roll_up_all_landed()
        found = assert_published_alike(world.settings, world.database.url)
        assert_as_expected(found, world.expected())
        proof = found["usage_reconciliation"]
        assert all(row["matches"] is not False for row in proof)

    any_history()
