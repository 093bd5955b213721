"""What is published stays, when the source or a landed file loses events without anybody's word."""

from __future__ import annotations

import re
import shutil
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from support import (
    AppDatabase,
    assert_published_alike,
    numbers_only,
    roll_up,
    snapshot_query,
)
from typer.testing import CliRunner, Result

from usage_pipeline.app_db.fingerprints import EMPTY
from usage_pipeline.cli.main import app
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.landed_days import Manifest, data_files, landed_manifests, partition
from usage_pipeline.landing.lost_events import lost_days, refusal, refused_days
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.landing.stale_days import changed_days, days_to_repair
from usage_pipeline.operations.status import summary
from usage_pipeline.orchestration.launch import dagster_instance
from usage_pipeline.settings import Settings

ADA = str(UUID(int=0xADA << 96))
OLD, OTHER = date(2024, 3, 10), date(2024, 3, 20)  # of one month, before any look-back window
METER = (
    "meters:\n"
    "  - {key: api_call, event_type: api_call, aggregation: sum, value: quantity, unit: calls,"
    " description: Calls}\n"
)
PATH_METER = (
    "  - {key: milliseconds, event_type: api_call, aggregation: sum, value: $.ms, unit: ms,"
    " description: Time}\n"
)


class Place:
    """A source with five events on each of some days, and the settings to roll them up."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def add(self, day: date, events: int = 5, first: int = 0) -> None:
        start = self.settings.day_start(day)
        self.database.insert(
            "usage_events",
            [
                (
                    str(UUID(int=(day.toordinal() << 32) + n)),
                    ADA,
                    None,
                    "api_call",
                    '{"ms": 7}',
                    "1.5",
                    start + timedelta(hours=4 * n + 1),
                )
                for n in range(first, first + events)
            ],
        )

    def prune(self, day: date, left: int = 0) -> None:
        """The source keeps the first events of the day only."""
        self.database.execute(
            "delete from usage_events where created_at >= %s and created_at < %s and id not in"
            " (select id from usage_events where created_at >= %s order by created_at limit %s)",
            (*self.settings.day_bounds(day), self.settings.day_start(day), left),
        )

    def damage(self, day: date) -> None:
        path = data_files(self.settings.events_dir, day)[0]
        path.write_bytes(path.read_bytes()[:-3])

    def with_settings(self, **variables: Any) -> Settings:
        kept = {
            "USAGE_HOME": self.settings.home,
            "USAGE_APP_DATABASE_URL": self.database.url,
            "USAGE_METERS_FILE": self.settings.meters_file,
        }
        return Settings(_env_file=None, **{**kept, **variables})  # type: ignore[call-arg]

    def roll_up(self, *days: date, **options: Any) -> None:
        roll_up(self.settings, *map(_day, days), **options)

    def numbers(self, metric: str = "api_call") -> Any:
        """Every number of the metric in every published table, equal in all three places."""
        tables = numbers_only(assert_published_alike(self.settings, self.database.url))
        return {
            name: [row for row in rows if row.get("metric_type", metric) == metric]
            for name, rows in tables.items()
            if name not in ("usage_reconciliation", "snapshot", "invalid_usage_events")
        }

    def totals(self) -> dict[str, tuple[Decimal, int]]:
        rows = snapshot_query(
            self.settings,
            "select usage_date::varchar, total_quantity, event_count from platform_usage_daily"
            " union all select 'month', total_quantity, event_count from platform_usage_monthly",
        )
        return {day: (total, events) for day, total, events in rows}


def _day(day: date) -> DayRange:
    return ranges_of_days([day])[0]


@pytest.fixture(scope="module")
def original(new_database: Any, make_settings: Any, tmp_path_factory: Any) -> Place:
    database = new_database()
    database.insert("users", [(ADA, "ada@example.com", "2024-01-01T00:00Z", None)])
    meters = tmp_path_factory.mktemp("meters") / "meters.yml"
    meters.write_text(METER)
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_METERS_FILE=meters)
    made = Place(database, settings)
    made.add(OLD)
    made.add(OTHER)
    made.roll_up(OLD, OTHER)
    assert made.totals() == {
        "2024-03-10": (Decimal("7.5"), 5),
        "2024-03-20": (Decimal("7.5"), 5),
        "month": (Decimal("15"), 10),
    }
    return made


@pytest.fixture
def place(original: Place, copy_of: Any, tmp_path: Path) -> Place:
    meters = tmp_path / "meters.yml"
    meters.write_text(METER)
    database, settings = copy_of(original.database, original.settings)
    return Place(database, settings.model_copy(update={"meters_file": meters}))


def test_the_advice_to_lose_events_names_refused_days_only() -> None:
    def refused(day: date) -> Manifest:
        return Manifest(str(day), "UTC", True, 4, 0, 0, "4", None, "", "", {}, refused=EMPTY)

    first = date(2024, 3, 1)
    ago = [0, 1, 5]  # of the days between, nothing but landing may have the events
    said = str(refusal([refused(first + timedelta(n)) for n in ago]))
    assert re.findall(r"rollup --start (\S+) --end (\S+) --allow-fewer-events", said) == [
        ("2024-03-01", "2024-03-03"),
        ("2024-03-06", "2024-03-07"),
    ]
    said = str(refusal([refused(first + timedelta(2 * n)) for n in range(8)]))
    assert said.count("--allow-fewer-events") == 5
    assert "and 3 more ranges" in said


def test_a_damaged_day_whose_source_is_gone_stays_published(place: Place) -> None:
    before = place.numbers()
    place.prune(OLD)
    place.damage(OLD)
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.numbers() == before
    assert lost_days(place.settings) == {OLD}
    assert days_to_repair(place.settings, needs_event_data=True) == []  # not tried every night
    place.roll_up(OLD, OTHER, allow_fewer_events=False)  # nor does asking for the day lose it
    assert place.numbers() == before
    said = summary(place.settings)
    assert not said.healthy
    assert "2024-03-10 (has 5, source 0, files damaged)" in " ".join(said.lines)

    place.roll_up(OLD)  # an operator allows it
    assert place.totals() == {"2024-03-20": (Decimal("7.5"), 5), "month": (Decimal("7.5"), 5)}
    assert snapshot_query(
        place.settings,
        "select usage_date::varchar, old_quantity, new_quantity, cause from usage_restatements",
    ) == [("2024-03-10", Decimal("7.5"), Decimal(0), "correction")]
    assert lost_days(place.settings) == set() and refused_days(place.settings) == {}
    assert "fewer events" not in " ".join(summary(place.settings).lines)


def test_a_damaged_day_is_published_still_when_the_warehouse_is_gone(place: Place) -> None:
    before = place.numbers()
    place.prune(OLD)
    shutil.copytree(partition(place.settings.events_dir, OLD), place.settings.home / "backup")
    place.damage(OLD)
    place.settings.warehouse_path.unlink()
    with pytest.raises(UsagePipelineError, match=r"2024-03-10.*--allow-fewer-events"):
        place.roll_up(OTHER, allow_fewer_events=False)
    assert place.numbers() == before

    shutil.rmtree(partition(place.settings.events_dir, OLD))
    shutil.copytree(place.settings.home / "backup", partition(place.settings.events_dir, OLD))
    place.roll_up(OLD, allow_fewer_events=False)
    assert place.numbers() == before
    assert lost_days(place.settings) == set()
    assert list(refused_days(place.settings)) == [OLD]


@pytest.mark.parametrize("gone", ["manifest", "partition"])
def test_a_published_day_that_is_not_landed_any_more_stays_published(
    place: Place, gone: str
) -> None:
    before = place.numbers()
    place.prune(OLD)
    folder = partition(place.settings.events_dir, OLD)
    (folder / "manifest.json").unlink() if gone == "manifest" else shutil.rmtree(folder)
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.numbers() == before
    assert refused_days(place.settings)[OLD].rows == 5
    place.add(OLD)
    place.roll_up(OLD, allow_fewer_events=False)
    assert place.numbers() == before
    assert refused_days(place.settings) == {} and lost_days(place.settings) == set()


def test_a_damaged_day_whose_source_is_whole_is_landed_again(place: Place) -> None:
    place.damage(OLD)
    place.add(OLD, 1, first=5)
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.totals()["2024-03-10"] == (Decimal("9"), 6)
    assert refused_days(place.settings) == {}


def test_days_are_refused_one_by_one(place: Place) -> None:
    """A range whose source was pruned: the pruned day stays, the others come in."""
    place.prune(OLD, left=4)
    place.add(OTHER, 1, first=5)
    place.roll_up(OLD, OTHER, allow_fewer_events=False)
    assert place.totals() == {
        "2024-03-10": (Decimal("7.5"), 5),
        "2024-03-20": (Decimal("9"), 6),
        "month": (Decimal("16.5"), 11),
    }
    (refused,) = refused_days(place.settings).values()
    assert (refused.rows, refused.refused_rows, refused.lost) == (5, 4, False)
    assert changed_days(place.settings, _day(OLD)) == {}  # the sensor asks for it no more
    place.prune(OLD, left=3)
    assert list(changed_days(place.settings, _day(OLD))) == [OLD]
    place.settings.warehouse_path.unlink()
    place.roll_up(OTHER, allow_fewer_events=False)  # rebuilt from what is landed
    assert place.totals()["month"] == (Decimal("16.5"), 11)


def test_event_data_that_is_wanted_too_late_costs_no_events(place: Place) -> None:
    place.settings = place.with_settings(USAGE_LAND_EVENT_DATA=False)
    place.roll_up(OLD, OTHER)
    before = place.numbers()
    place.prune(OLD)
    place.settings.meters_file.write_text(METER + PATH_METER)
    place.settings = place.with_settings(USAGE_LAND_EVENT_DATA=True)
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.numbers() == before
    assert [
        (row["usage_date"], row["total_quantity"])
        for row in place.numbers("milliseconds")["platform_usage_daily"]
    ] == [(OTHER, Decimal(35))]
    assert list(refused_days(place.settings)) == [OLD]
    assert days_to_repair(place.settings, needs_event_data=True) == []


def test_a_correction_is_recent_and_a_share(new_database: Any, make_settings: Any) -> None:
    database = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_MAX_LOST_SHARE="0.4")
    place = Place(database, settings)
    recent = settings.today() - timedelta(days=settings.lookback_days)
    older = recent - timedelta(days=1)
    for day in (recent, older):
        place.add(day)
    land_events(settings, [recent, older])
    for day in (recent, older):
        place.prune(day, left=3)
    assert [m.rows for m in land_events(settings, [recent, older])] == [3, 5]
    place.prune(recent, left=1)  # two of three
    assert [m.rows for m in land_events(settings, [recent])] == [3]
    assert [m.rows for m in land_events(settings, [recent], may_lose={recent: 2})] == [1]
    assert list(refused_days(settings)) == [older]


def test_another_time_zone_moves_events_and_loses_none(place: Place) -> None:
    between = [OTHER - timedelta(days=1), OTHER]
    place.roll_up(*between)
    tokyo = place.settings = place.with_settings(USAGE_TIMEZONE="Asia/Tokyo")
    # 01, 05, 09 and 13 o'clock UTC are of the same day there, 17 o'clock is of the next one, which
    # is not landed.
    place.roll_up(OLD, allow_fewer_events=False)
    assert {day: events for day, (_, events) in place.totals().items()} == {
        "2024-03-10": 4,
        "2024-03-20": 4,
        "month": 8,
    }
    utc = place.settings = place.with_settings()
    place.prune(OLD)
    with pytest.raises(UsagePipelineError, match=r"USAGE_TIMEZONE was Asia/Tokyo and is UTC"):
        place.roll_up(OTHER, allow_fewer_events=False)
    assert {m.timezone for m in landed_manifests(utc).values()} == {"Asia/Tokyo"}
    place.settings = tokyo
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.totals()["month"] == (Decimal(12), 8)


@pytest.fixture(scope="module")
def pruned(original: Place, copy_of: Any) -> Place:
    """The source lost all events of the older day, which is refused."""
    made = Place(*copy_of(original.database, original.settings))
    made.prune(OLD)
    made.roll_up(OLD, allow_fewer_events=False)
    assert list(refused_days(made.settings)) == [OLD]
    return made


@pytest.mark.parametrize("named", [None, OTHER])
def test_neither_growth_elsewhere_nor_a_word_for_it_pays_for_a_loss(
    pruned: Place, copy_of: Any, named: date | None
) -> None:
    place = Place(*copy_of(pruned.database, pruned.settings))
    place.database.execute(
        "insert into usage_events select gen_random_uuid(), user_id, org_id, event_type,"
        " event_data, quantity, created_at from usage_events"
    )
    place.settings = place.with_settings(USAGE_TIMEZONE="Europe/Berlin")
    may_lose = {named: float("inf")} if named else {}
    days = days_to_repair(place.settings, needs_event_data=False)
    with pytest.raises(UsagePipelineError, match=rf"fewer events of {OLD} \(has 5, source 0\)"):
        land_events(place.settings, days, may_lose=may_lose)
    assert {m.timezone for m in landed_manifests(place.settings).values()} == {"UTC"}
    land_events(place.settings, days, may_lose={OLD: float("inf")})
    assert {m.timezone for m in landed_manifests(place.settings).values()} == {"Europe/Berlin"}


def test_a_refusal_that_was_killed_half_way_is_completed(place: Place) -> None:
    """Set aside, or with its manifest too, but with its files still in place."""
    before = place.numbers()
    place.prune(OLD)
    place.damage(OLD)
    (place.settings.damaged_dir / f"usage_date={OLD}").mkdir(parents=True)
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.numbers() == before
    assert data_files(place.settings.events_dir, OLD) == []
    (aside,) = place.settings.damaged_dir.iterdir()
    (aside / "part-0.parquet").replace(partition(place.settings.events_dir, OLD) / "part-0.parquet")
    assert days_to_repair(place.settings, needs_event_data=True) == [OLD]
    place.roll_up(OTHER, allow_fewer_events=False)
    assert place.numbers() == before
    assert data_files(place.settings.events_dir, OLD) == []


def test_an_operator_is_told_and_decides(
    place: Place, new_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line: what exit codes, status and Dagster's check say of a refused day."""
    for name, value in {
        "USAGE_HOME": place.settings.home,
        "USAGE_APP_DATABASE_URL": place.database.url,
        "USAGE_METERS_FILE": place.settings.meters_file,
        "DAGSTER_PG_URL": new_database(schema=False).url,
        "DAGSTER_HOME": "",
    }.items():
        monkeypatch.setenv(name, str(value))

    def command(name: str, day: date, *options: str) -> Result:
        dates = ["--start", str(day), "--end", str(day + timedelta(days=1))]
        return CliRunner().invoke(app, [name, *dates, *options])

    def check() -> str:
        key = dg.AssetCheckKey(dg.AssetKey(["landing", "usage_events"]), "no_events_lost")
        with dagster_instance(place.settings) as instance:
            latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
        return latest[key].status.value

    place.prune(OLD)
    place.damage(OLD)
    place.add(OTHER, 1, first=5)
    refused = command("rollup", OTHER)
    assert refused.exit_code == 1
    assert "2024-03-10 (has 5, source 0, files damaged)" in str(refused.exception)
    assert place.totals()["month"] == (Decimal("16.5"), 11)  # the other day is published
    assert check() == "FAILED"
    status = CliRunner().invoke(app, ["status"])
    assert status.exit_code == 1
    assert "--start 2024-03-10 --end 2024-03-11 --allow-fewer-events" in status.output

    compared = command("reconcile", OLD)
    assert compared.exit_code == 1
    assert "source 0 events, 0; landed" in compared.output
    assert "--start 2024-03-10 --end 2024-03-11 --allow-fewer-events" in compared.output

    asked = command("rollup", OLD)  # a day of which nothing can be built
    assert asked.exit_code == 1
    assert place.totals()["month"] == (Decimal("16.5"), 11)

    allowed = command("rollup", OLD, "--allow-fewer-events")
    assert allowed.exit_code == 0, allowed.exception
    assert "2024-03-10 has 0 events now, and had 5." in allowed.output
    assert place.totals()["month"] == (Decimal("9"), 6)
    assert check() == "SUCCEEDED"
