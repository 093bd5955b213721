"""An event whose created_at changes is one row once its new day is rolled up, wherever it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, day, roll_up, snapshot_query

from usage_pipeline.app_db.session import count_changes
from usage_pipeline.days import DayRange
from usage_pipeline.landing import moved_events
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.landing.lost_events import refusal, refused_days
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.landing.stale_days import changed_days
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import Settings

ADA = str(UUID(int=0xADA << 96))
# Of two months, and long before any look-back window.
FIRST, SECOND, THIRD = date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)


class Place:
    """A source with events of 1, 10 and 100 calls on each of some days, all rolled up."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def begin(self, *later: date) -> Place:
        self.database.insert("users", [(ADA, "ada@example.com", "2024-01-01T00:00Z", None)])
        for on in (FIRST, SECOND, THIRD, *later):
            self.add(on)
        self.roll_up(FIRST, SECOND, THIRD, *later)
        return self

    def add(self, on: date) -> None:
        self.database.insert(
            "usage_events",
            [
                (_id(on, n), ADA, None, "api_call", None, str(10**n), self._noon(on) + _hours(n))
                for n in range(3)
            ],
        )

    def move(self, event: str, to: date) -> None:
        self.database.execute(
            "update usage_events set created_at = %s where id = %s", (self._noon(to), event)
        )

    def roll_up(self, *days: date, **options: Any) -> None:
        roll_up(self.settings, *(day(on.isoformat()) for on in days), **options)

    def totals(self) -> dict[date, Decimal]:
        """By day, equal in all three places."""
        assert_published_alike(self.settings, self.database.url)
        return dict(
            snapshot_query(
                self.settings, "select usage_date, total_quantity from platform_usage_daily"
            )
        )

    def months(self) -> dict[date, tuple[Decimal, int]]:
        rows = snapshot_query(
            self.settings, "select month, total_quantity, event_count from platform_usage_monthly"
        )
        return {month: (total, events) for month, total, events in rows}

    def _noon(self, on: date) -> datetime:
        return self.settings.day_start(on) + _hours(12)


def _id(on: date, n: int) -> str:
    return str(UUID(int=(on.toordinal() << 32) + n))


def _hours(n: int) -> timedelta:
    return timedelta(hours=n)


@pytest.fixture(scope="module")
def original(new_database: Any, make_settings: Any) -> Place:
    database = new_database()
    return Place(database, make_settings(USAGE_APP_DATABASE_URL=database.url)).begin()


@pytest.fixture
def place(original: Place, copy_of: Any) -> Place:
    return Place(*copy_of(original.database, original.settings))


def test_it_is_taken_out_of_its_old_day_whichever_way_it_went(place: Place) -> None:
    place.move(_id(FIRST, 1), THIRD)
    place.move(_id(THIRD, 2), FIRST)
    place.roll_up(SECOND)  # of none of the two
    assert place.totals() == {FIRST: 111, SECOND: 111, THIRD: 111}
    place.roll_up(THIRD)  # takes 10 from the first day, whose new state has the 100 as well
    assert place.totals() == {FIRST: 201, SECOND: 111, THIRD: 21}
    assert place.months() == {date(2024, 2, 1): (312, 6), date(2024, 3, 1): (21, 3)}
    assert snapshot_query(
        place.settings,
        "select usage_date, old_quantity, new_quantity, old_event_count, new_event_count"
        " from usage_restatements order by usage_date",
    ) == [(FIRST, 111, 201, 3, 3), (THIRD, 111, 21, 3, 3)]


def test_one_that_moved_twice_and_others_in_its_wake(place: Place) -> None:
    """The second day is extracted for the first event, which shows that it has one of the third."""
    place.move(_id(SECOND, 0), THIRD)
    place.move(_id(SECOND, 0), FIRST)
    place.move(_id(THIRD, 1), SECOND)
    place.roll_up(FIRST)
    assert place.totals() == {FIRST: 112, SECOND: 120, THIRD: 101}


def test_an_invalid_one_of_an_unknown_type(place: Place) -> None:
    place.database.execute("alter table usage_events alter event_type type text")
    place.database.execute(
        "update usage_events set event_type = 'unheard_of' where id = %s", (_id(FIRST, 0),)
    )
    place.roll_up(FIRST)
    place.move(_id(FIRST, 0), SECOND)
    place.roll_up(SECOND)
    assert snapshot_query(
        place.settings, "select event_id, usage_date from invalid_usage_events"
    ) == [(_id(FIRST, 0), SECOND)]


def test_a_day_that_lost_other_events_as_well_keeps_all_of_them(place: Place) -> None:
    place.move(_id(FIRST, 0), THIRD)
    place.database.execute("delete from usage_events where id = %s", (_id(FIRST, 2),))
    place.roll_up(THIRD, allow_fewer_events=False)
    assert place.totals() == {FIRST: 111, SECOND: 111, THIRD: 112}
    assert list(refused_days(place.settings)) == [FIRST]


def test_it_stays_where_it_was_while_its_new_day_is_refused(place: Place) -> None:
    place.move(_id(FIRST, 0), THIRD)
    for n in range(3):
        place.database.execute("delete from usage_events where id = %s", (_id(THIRD, n),))
    place.roll_up(THIRD, allow_fewer_events=False)
    assert place.totals() == {FIRST: 111, SECOND: 111, THIRD: 111}
    assert list(refused_days(place.settings)) == [THIRD]
    place.roll_up(THIRD, allow_fewer_events=True)
    assert place.totals() == {FIRST: 110, SECOND: 111, THIRD: 1}


def test_two_rows_of_one_id_are_one_event_where_the_newest_is(
    new_database: Any, make_settings: Any
) -> None:
    database = new_database()
    database.execute("alter table usage_events drop constraint usage_events_pkey")
    place = Place(database, make_settings(USAGE_APP_DATABASE_URL=database.url)).begin()
    newer = (_id(FIRST, 0), ADA, None, "api_call", None, "5", place.settings.day_start(THIRD))
    database.insert("usage_events", [newer])
    for _ in range(2):  # and it stays so
        place.roll_up(THIRD)
        assert place.totals() == {FIRST: 110, SECOND: 111, THIRD: 116}


class Landing:
    """What is landed of a source with events of 1, 10 and 100 calls a day, without a warehouse."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def add(self, *days: date) -> None:
        for on in days:
            self.database.insert(
                "usage_events",
                [
                    (_id(on, n), ADA, None, "api_call", None, str(10**n), f"{on}T{12 + n}:00Z")
                    for n in range(3)
                ],
            )
        land_events(self.settings, days)

    def move(self, event: str, to: date) -> None:
        self.database.execute(
            "update usage_events set created_at = %s where id = %s", (f"{to}T15:00Z", event)
        )

    def delete(self, *events: str) -> None:
        self.database.execute(
            "delete from usage_events where id = any(%s::uuid[])", (list(events),)
        )

    def totals(self) -> dict[date, int]:
        """Of the landed days, each event once."""
        files = f"'{self.settings.events_dir}/*/part-*.parquet'"
        rows = duckdb.sql(f"select usage_date, quantity, id from {landed_events(files)}").fetchall()
        assert len({event for _, _, event in rows}) == len(rows)
        landed = dict.fromkeys(landed_manifests(self.settings), 0)
        for on, quantity, _ in rows:
            landed[on] += int(quantity)
        return landed


@pytest.fixture
def landing(new_database: Any, make_settings: Any) -> Landing:
    database = new_database()
    return Landing(database, make_settings(USAGE_APP_DATABASE_URL=database.url))


@pytest.mark.parametrize("searched", [0, moved_events.EVENTS_SEARCHED])
@pytest.mark.parametrize(("old", "new"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_both_days_are_of_the_run_and_before_any_look_back_window(
    landing: Landing, monkeypatch: pytest.MonkeyPatch, searched: int, old: date, new: date
) -> None:
    landing.add(FIRST, SECOND)
    monkeypatch.setattr(moved_events, "EVENTS_SEARCHED", searched)
    landing.move(_id(old, 1), new)
    land_events(landing.settings, [FIRST, SECOND])
    assert landing.totals() == {old: 101, new: 121}
    assert refused_days(landing.settings) == {}


def test_the_only_event_of_a_recent_day_moves_within_the_run(landing: Landing) -> None:
    first = landing.settings.today() - timedelta(days=9)
    second = first + timedelta(days=1)
    landing.add(first, second)
    landing.delete(_id(first, 1), _id(first, 2))
    land_events(landing.settings, [first], may_lose={first: 2})
    landing.move(_id(first, 0), second)
    land_events(landing.settings, [first, second])
    assert landing.totals() == {first: 0, second: 112}


@pytest.mark.parametrize("searched", [0, moved_events.EVENTS_SEARCHED])
def test_no_day_of_the_run_has_an_event_any_more(
    landing: Landing, monkeypatch: pytest.MonkeyPatch, searched: int
) -> None:
    landing.add(FIRST, SECOND)
    monkeypatch.setattr(moved_events, "EVENTS_SEARCHED", searched)
    landing.database.execute("truncate usage_events")
    land_events(landing.settings, [FIRST, SECOND])
    assert landing.totals() == {FIRST: 111, SECOND: 111}
    assert list(refused_days(landing.settings)) == [FIRST, SECOND]


@pytest.mark.parametrize("asked", [[0, 1, 2], [0, 2, 1], [2]])
def test_days_whose_events_went_to_a_refused_day_keep_them(
    landing: Landing, asked: list[int]
) -> None:
    """Though each of them alone would be a correction; also at one remove."""
    days = [landing.settings.today() - timedelta(days=ago) for ago in (9, 5, 7)]
    first, second, third = days
    landing.add(*days)
    landing.delete(*(_id(third, n) for n in range(3)))
    landing.move(_id(second, 0), third)
    landing.move(_id(first, 1), second)
    land_events(landing.settings, [days[n] for n in asked])
    assert landing.totals() == dict.fromkeys(days, 111)
    assert list(refused_days(landing.settings)) == [third]
    land_events(landing.settings, [third], may_lose={third: 3})
    assert landing.totals() == {first: 101, second: 120, third: 1}


def test_an_operator_is_told_what_is_counted_twice(landing: Landing) -> None:
    """The old day lost more than the event that moved, and keeps what it has."""
    landing.add(FIRST, SECOND)
    landing.delete(_id(FIRST, 1), _id(FIRST, 2))
    land_events(landing.settings, [FIRST])
    said = str(refusal(refused_days(landing.settings).values()))
    assert f"{FIRST} (has 3, source 1)" in said
    landing.move(_id(FIRST, 0), SECOND)
    land_events(landing.settings, [SECOND])
    said = str(refusal(refused_days(landing.settings).values()))
    assert f"{FIRST} (has 3, source 0, some of them counted twice)" in said
    land_events(landing.settings, [FIRST])  # without the other day
    assert str(refusal(refused_days(landing.settings).values())) == said
    land_events(landing.settings, [FIRST], may_lose={FIRST: 3})
    assert landing.totals() == {FIRST: 0, SECOND: 112}


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("extracting", [False, True])
def test_another_process_lands_the_event_meanwhile(
    landing: Landing, landed: bool, extracting: bool
) -> None:
    """After this process looked at the source, and before it put the event's old day in place."""
    landing.database.insert(
        "usage_events",
        [(_id(FIRST, n), ADA, None, "api_call", None, 10**n, f"{FIRST}T12:00Z") for n in range(3)],
    )
    landing.add(THIRD)
    if landed:
        land_events(landing.settings, [FIRST])
    noted: list[date] = []

    def meanwhile() -> None:
        if SECOND not in landed_manifests(landing.settings):
            landing.move(_id(FIRST, 0), SECOND)
            land_events(landing.settings, [SECOND])

    @contextmanager
    def replacing(days: set[date]) -> Iterator[None]:
        meanwhile()
        yield
        noted.extend(days)

    land_events(
        landing.settings,
        [FIRST, THIRD],
        progress=lambda manifest: meanwhile() if extracting else None,
        replacing=replacing,
    )
    assert landing.totals() == {FIRST: 110, SECOND: 1, THIRD: 111}
    assert {FIRST, THIRD} <= {*noted} and len(noted) == len({*noted})  # when they are landed


def test_of_two_rows_of_one_id_the_newer_one_is_deleted(landing: Landing) -> None:
    landing.database.execute("alter table usage_events drop constraint usage_events_pkey")
    landing.add(FIRST, THIRD)
    newer = (_id(FIRST, 0), ADA, None, "api_call", None, "5", f"{THIRD}T00:00Z")
    landing.database.insert("usage_events", [newer])
    land_events(landing.settings, [THIRD])
    assert landing.totals() == {FIRST: 110, THIRD: 116}
    landing.database.execute("delete from usage_events where quantity = 5")
    assert [*changed_days(landing.settings, DayRange(FIRST, THIRD + timedelta(days=1)))] == [THIRD]
    land_events(landing.settings, [THIRD])
    assert landing.totals() == {FIRST: 111, THIRD: 111}


class TestWithManyEventsLanded:
    """Postgres's own count of changed rows says which days are searched."""

    @pytest.fixture(autouse=True)
    def _many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moved_events, "EVENTS_SEARCHED", 0)

    @pytest.fixture
    def recent(self) -> list[date]:
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        return [yesterday - timedelta(days=1), yesterday]

    @pytest.fixture
    def place(self, recent: list[date], new_database: Any, make_settings: Any) -> Place:
        """No copy, of which Postgres would have counted nothing."""
        database = new_database()
        return Place(database, make_settings(USAGE_APP_DATABASE_URL=database.url)).begin(*recent)

    def test_one_that_moved_between_recent_days_is_found(
        self, place: Place, recent: list[date]
    ) -> None:
        place.move(_id(recent[0], 1), recent[1])
        place.roll_up(recent[1])
        totals = place.totals()
        assert [totals[on] for on in recent] == [101, 121]

    def test_nothing_is_searched_while_no_row_was_changed(
        self, place: Place, recent: list[date], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert landed_manifests(place.settings)[recent[0]].rows_changed == count_changes(
            place.settings
        )
        searched: list[Collection[Any]] = []

        def counting(files: Collection[Any], *types: str) -> Any:
            searched.append(files)
            return _none()

        monkeypatch.setattr(moved_events, "_ids", counting)
        place.add(recent[1] - timedelta(days=2))  # events that are new are no changed rows
        place.roll_up(recent[1])
        assert [len(files) for files in searched] == [2]  # those of the new day, not of old ones
        place.move(_id(FIRST, 0), SECOND)
        place.roll_up(recent[1])
        # Those of the one recent day, and those that the new day had itself.
        assert [len(files) for files in searched[1:]] == [2, 2, 2, 2]

    def test_a_view_counts_no_changes(self, landing: Landing) -> None:
        landing.add(FIRST, SECOND)
        assert count_changes(landing.settings)
        landing.database.execute(
            "alter table usage_events rename to events; create view usage_events as"
            " select * from events"
        )
        assert count_changes(landing.settings) == ""


def _none() -> str:
    return "select null::varchar as id, null::date as usage_date where false"
