"""What was published at a moment, against a record of every publish of random histories.

Numbers come late, change, go and come back; days are published empty; meters change between adding
up and not; the start date and the zone move; persons are erased; publishes are killed between
Postgres and the file. After each publish what readers see is written down; at the end of a history,
both engines have to say the same of each of these moments.

The warehouse is filled by hand here, from events, by plain Python.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from integration.test_publishing import WAREHOUSE_TABLES
from support import AppDatabase, assert_published_alike, snapshot_query

from usage_pipeline.days import DayRange
from usage_pipeline.landing import erased_users
from usage_pipeline.meters.meter import Meter
from usage_pipeline.publishing.postgres_tables import PostgresTables
from usage_pipeline.publishing.publisher import publish
from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.settings import Settings

DAYS = [date(2024, 1, 30) + timedelta(n) for n in range(4)]
WHOLE = DayRange(DAYS[0], DAYS[-1] + timedelta(1))
STARTS = (date(2024, 1, 1), DAYS[1])
PEOPLE = [UUID(int=n) for n in (1, 2, 3)]
ORGS = [None, UUID(int=100)]
METERS = (
    [Meter("a", "a", "sum"), Meter("b", "b", "count")],
    [Meter("a", "a", "max"), Meter("b", "b", "avg"), Meter("distinct", "b", "unique_count")],
    [Meter("a", "a", "latest"), Meter("b", "b", "sum"), Meter("least", "a", "min")],
)
HISTORIES, QUICK_HISTORIES, PUBLISHES = 200, 3, 9

Numbers = tuple[Decimal | None, ...]  # quantity, events, and active days of a month
Cell = tuple[date, UUID | None, UUID | None, str]
Cells = dict[Cell, Numbers]


class Killed(Exception):
    pass


@dataclass(frozen=True)
class Event:
    number: int  # the order in which they happened, too
    day: date
    user: UUID | None
    org: UUID | None
    event_type: str
    quantity: Decimal


def total(aggregation: str, events: Sequence[Event]) -> Decimal:
    values = [event.quantity for event in sorted(events, key=lambda event: event.number)]
    if aggregation == "avg":
        unit = Decimal("1e-9")
        return (sum(values, Decimal()) / len(values)).quantize(unit, ROUND_HALF_UP)
    of: dict[str, Any] = {"sum": sum, "min": min, "max": max, "count": len}
    if aggregation in of:
        return Decimal(of[aggregation](values))
    return values[-1] if aggregation == "latest" else Decimal(len(set(values)))


@dataclass
class World:
    """Events, how they are counted, and what was seen published."""

    dice: random.Random
    settings: Settings
    make_settings: Any
    events: list[Event] = field(default_factory=list)
    landed: set[date] = field(default_factory=set)
    meters: list[Meter] = field(default_factory=lambda: METERS[0])
    used: list[list[Meter]] = field(default_factory=list)
    extracted: int = 0
    erased: set[UUID] = field(default_factory=set)
    seen: list[tuple[datetime, datetime, Cells, Cells]] = field(default_factory=list)

    def change(self) -> None:
        dice = self.dice
        for _ in range(dice.randrange(5)):
            number = max([event.number for event in self.events], default=0) + 1
            self.events.append(self._event(number))
        for _ in range(dice.randrange(3)):
            if self.events:
                at = dice.randrange(len(self.events))
                if dice.random() < 0.5:
                    self.events.pop(at)
                else:
                    self.events[at] = self._event(self.events[at].number)
        self.landed |= set(dice.sample(DAYS, dice.randrange(3)))
        if dice.random() < 0.25:
            self.meters = dice.choice(METERS)
        if dice.random() < 0.2:
            self.settings = self.make_settings(
                USAGE_HOME=self.settings.home,
                USAGE_APP_DATABASE_URL=self.settings.app_database_url.get_secret_value(),  # type: ignore[union-attr]
                USAGE_START_DATE=str(dice.choice(STARTS)),
                USAGE_TIMEZONE=dice.choice(["UTC", "Asia/Tokyo"]),
            )
        if dice.random() < 0.2:
            person = dice.choice(PEOPLE)
            erased_users.add(self.settings, person)
            self.erased.add(person)

    def _event(self, number: int) -> Event:
        dice = self.dice
        quantity = Decimal(dice.choice(["0", "1", "-2.5", "7.000000001", "3"]))
        org, person = dice.choice(ORGS), dice.choice([None, *PEOPLE])
        return Event(number, dice.choice(DAYS), person, org, dice.choice("ab"), quantity)

    def cells(self, *, by_month: bool) -> dict[Cell, list[Event]]:
        found: dict[Cell, list[Event]] = defaultdict(list)
        for event in self.events:
            if event.day not in self.landed or event.day < self.settings.start_date:
                continue
            user = None if event.user in self.erased else event.user
            period = event.day.replace(day=1) if by_month else event.day
            for meter in self.meters:
                if meter.event_type == event.event_type:
                    found[period, user, event.org, meter.key].append(event)
        return found

    def fill_warehouse(self) -> None:
        how = {meter.key: meter.aggregation for meter in self.meters}
        self.extracted += 1
        at = datetime(2024, 3, 1, tzinfo=UTC)
        days = [
            (*cell, total(how[cell[-1]], events), len(events), at, at)
            for cell, events in self.cells(by_month=False).items()
        ]
        months = [
            (*cell, total(how[cell[-1]], events), len(events), len({e.day for e in events}), at, at)
            for cell, events in self.cells(by_month=True).items()
        ]
        landed = [
            (day, 0, 0, at, at + timedelta(self.extracted))
            for day in self.landed
            if day >= self.settings.start_date
        ]
        with duckdb.connect(str(self.settings.warehouse_path)) as db:
            for table, rows in (
                ("usage_daily", days),
                ("usage_monthly", months),
                ("stg_landed_days", landed),
            ):
                db.execute(f"delete from {table}")
                for row in rows:
                    db.execute(f"insert into {table} values ({', '.join('?' * len(row))})", row)

    def publish(self) -> None:
        self.fill_warehouse()
        self.used.append(self.meters)
        report = publish(
            self.settings,
            [WHOLE],
            f"run {len(self.seen)}",
            str(METERS.index(self.meters)),
            meters=self.meters,
            may_shrink=True,
        )
        if report.changed or not self.seen:
            ((published_at,),) = snapshot_query(self.settings, "select published_at from snapshot")
            self.seen.append(
                (
                    published_at,
                    datetime.now(UTC),
                    as_cells(self.query("select usage_date, {} from usage_daily")),
                    as_cells(self.query("select month, {}, active_days from usage_monthly")),
                )
            )

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        names = "user_id, org_id, metric_type, total_quantity, event_count"
        return snapshot_query(self.settings, statement.format(names))

    def additive(self) -> set[str]:
        """Metrics that have added up in all of history."""
        return {"a", "b"} - {m.key for meters in self.used for m in meters if not m.adds_up}

    def merged(self, cells: Iterable[tuple[Cell, Numbers]]) -> dict[Cell, list[Numbers]]:
        found: dict[Cell, list[Numbers]] = defaultdict(list)
        for (period, user, org, metric), numbers in cells:
            found[period, None if user in self.erased else user, org, metric].append(numbers)
        return found


def as_cells(rows: Iterable[tuple[Any, ...]]) -> Cells:
    def id_of(text: Any) -> UUID | None:
        return UUID(str(text)) if text else None

    return {(r[0], id_of(r[1]), id_of(r[2]), r[3]): tuple(r[4:]) for r in rows}


@pytest.fixture(scope="module")
def database(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    return made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    thorough = metafunc.config.getoption("thorough")
    metafunc.parametrize("seed", range(HISTORIES if thorough else QUICK_HISTORIES))


def test_each_moment_is_what_was_published_then(
    database: AppDatabase, make_settings: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("drop schema if exists usage cascade")
    world = World(
        random.Random(seed), make_settings(USAGE_APP_DATABASE_URL=database.url), make_settings
    )
    ensure_snapshot(world.settings)
    with duckdb.connect(str(world.settings.warehouse_path)) as db:
        for table, columns in WAREHOUSE_TABLES.items():
            db.execute(f"create table {table} ({columns})")
    for _ in range(PUBLISHES):
        world.change()
        if world.seen and world.dice.random() < 0.2:
            with monkeypatch.context() as patch:
                patch.setattr(PostgresTables, "write", killed_at_commit)
                with pytest.raises(Killed):
                    world.publish()
            world.change()
        world.publish()
    assert_published_alike(world.settings, database.url)
    for number, (published_at, recorded_at, days, months) in enumerate(world.seen):
        assert published_at < recorded_at
        for moment in (published_at, recorded_at):
            assert_as_of(world, database, moment, days, months)
        if number:
            before = published_at - timedelta(microseconds=1)
            assert_as_of(world, database, before, *world.seen[number - 1][2:])
    first = world.seen[0][0] - timedelta(microseconds=1)
    assert_as_of(world, database, first, {}, {})


def killed_at_commit(self: PostgresTables, *arguments: Any, **options: Any) -> None:
    """The next publish finds what the killed one put into Postgres."""
    WRITE(self, *arguments, **options)
    self._cursor.connection.commit()
    raise Killed


WRITE = PostgresTables.write


def assert_as_of(
    world: World, database: AppDatabase, moment: datetime, days: Cells, months: Cells
) -> None:
    for function, cells in (("usage_daily_as_of", days), ("usage_monthly_as_of", months)):
        query = f"from {{}}{function}('{moment.isoformat()}')"
        ours = snapshot_query(world.settings, query.format(""))
        theirs = database.query(f"select * {query.format('usage.')}")
        for rows in (ours, theirs):
            found = [(key, numbers) for row in rows for key, numbers in as_cells([row]).items()]
            assert_same(world, found, cells)


def assert_same(world: World, found: list[tuple[Cell, Numbers]], wanted: Cells) -> None:
    """Cell by cell. Of erased persons nobody's cells hold what was published, added up; NULL where
    that is not known, which for days that have always added up it is."""
    got, expected = world.merged(found), world.merged(wanted.items())
    assert got.keys() == expected.keys()
    for cell, published in expected.items():
        answers = got[cell]
        if not world.erased or cell[1] is not None:
            assert answers == published, cell
            continue
        of_days, always_adds_up = len(published[0]) == 2, cell[3] in world.additive()
        events, quantities = added_up(answers, 1), added_up(answers, 0)
        assert events in (added_up(published, 1), *(() if of_days else (None,))), cell
        if always_adds_up or len(published) == len(answers) == 1:
            unknown = () if of_days and always_adds_up else (None,)
            assert quantities in (added_up(published, 0), *unknown), cell


def added_up(rows: Sequence[Numbers], column: int) -> Decimal | None:
    values = [value for row in rows if (value := row[column]) is not None]
    return sum(values, Decimal()) if len(values) == len(rows) else None
