"""Totals of more than 29 integer digits: NULL, named, and in nobody's way."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from support import (
    AppDatabase,
    Row,
    assert_published_alike,
    build,
    days,
    snapshot_query,
)

from usage_pipeline.audit.gate import blocking_failures
from usage_pipeline.audit.reconciliation import reconcile
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.meters.file import load_meters
from usage_pipeline.publishing.ledger import digest
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings
from usage_pipeline.web import figures
from usage_pipeline.web.reader import open_reader

NINES = Decimal("9" * 29)
MINUS_NINES = Decimal("-" + "9" * 29)  # the operator would round to 28 digits
ADA, BOB, CYD, ACME, OTHER = (str(UUID(int=number << 96)) for number in range(1, 6))
RANGE = days("2024-01-01", "2024-03-12")

# event type, day, user, organisation, quantity
EVENTS = [
    # two users of one organisation on one day
    ("api_call", "2024-03-05", ADA, ACME, NINES),
    ("api_call", "2024-03-05", BOB, ACME, NINES),
    ("api_call", "2024-03-05", CYD, OTHER, 7),
    # one user on two days of a month, and what takes it back later
    ("storage_used", "2024-03-05", ADA, ACME, NINES),
    ("storage_used", "2024-03-06", ADA, ACME, NINES),
    ("storage_used", "2024-03-06", BOB, ACME, Decimal("0.5")),
    ("record_created", "2024-03-05", ADA, ACME, NINES),
    ("record_created", "2024-03-05", ADA, ACME, NINES),
    ("record_created", "2024-03-06", ADA, ACME, MINUS_NINES),
    # two months of the year's window
    ("ai_tokens_used", "2024-01-20", ADA, ACME, MINUS_NINES),
    ("ai_tokens_used", "2024-03-10", ADA, ACME, MINUS_NINES),
    # neighbouring windows whose difference cannot be held
    ("user_active", "2024-03-01", ADA, ACME, MINUS_NINES),
    ("user_active", "2024-03-08", ADA, ACME, NINES),
    # a carry: 10^29 - 0.5 fits
    ("automation_run", "2024-03-05", ADA, ACME, NINES),
    ("automation_run", "2024-03-05", BOB, ACME, 1),
    ("automation_run", "2024-03-05", CYD, ACME, Decimal("-0.5")),
]


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    made.insert(
        "usage_events",
        [
            (str(UUID(int=number)), user, org, event_type, None, quantity, f"{day}T12:00:00Z")
            for number, (event_type, day, user, org, quantity) in enumerate(EVENTS)
        ],
    )
    return made


@pytest.fixture(scope="module")
def rolled_up(source: AppDatabase, make_settings: Any) -> tuple[Settings, Rollup]:
    settings: Settings = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_LOOKBACK_DAYS=3650)
    rollup = build(settings, RANGE)
    results = rollup.audit()
    assert not blocking_failures(results), [r.message for r in blocking_failures(results)]
    named = {result.name: result.failures for result in results if result.status == "warn"}
    # api_call: the organisation and the platform, by day and month; record_created: the three
    # tables of days; storage_used: the three of months; and windows of three metrics
    assert named["totals_can_be_held"] == 4 + 3 + 3 + 3
    assert "no_invalid_events" not in named
    rollup.publish("test")
    return settings, rollup


@pytest.fixture(scope="module")
def tables(source: AppDatabase, rolled_up: tuple[Settings, Rollup]) -> dict[str, list[Row]]:
    return assert_published_alike(rolled_up[0], source.url)


def totals(rows: list[Row], metric: str, *keys: str) -> dict[Any, Any]:
    picked = [row for row in rows if row["metric_type"] == metric]
    found = {
        tuple(str(row[key]) for key in keys): (row["total_quantity"], row["event_count"])
        for row in picked
    }
    assert len(found) == len(picked)
    return found


def test_an_organisation_cannot_hold_what_its_users_can(tables: dict[str, list[Row]]) -> None:
    for table, period in (("usage_daily", "usage_date"), ("usage_monthly", "month")):
        assert totals(tables[table], "api_call", "user_id") == {
            (ADA,): (NINES, 1),
            (BOB,): (NINES, 1),
            (CYD,): (7, 1),
        }
        org = totals(tables[f"org_{table}"], "api_call", "org_id")
        assert org == {(ACME,): (None, 2), (OTHER,): (7, 1)}
        (platform,) = totals(tables[f"platform_{table}"], "api_call", period).values()
        assert platform == (None, 3)


def test_a_month_cannot_hold_what_its_days_can(tables: dict[str, list[Row]]) -> None:
    daily = totals(tables["usage_daily"], "storage_used", "usage_date", "user_id")
    assert daily == {
        ("2024-03-05", ADA): (NINES, 1),
        ("2024-03-06", ADA): (NINES, 1),
        ("2024-03-06", BOB): (Decimal("0.5"), 1),
    }
    monthly = totals(tables["usage_monthly"], "storage_used", "user_id")
    assert monthly == {(ADA,): (None, 2), (BOB,): (Decimal("0.5"), 1)}
    assert totals(tables["platform_usage_daily"], "storage_used", "usage_date") == {
        ("2024-03-05",): (NINES, 1),
        ("2024-03-06",): (Decimal("9" * 29 + ".5"), 2),
    }


def test_a_month_can_hold_what_its_days_cannot(tables: dict[str, list[Row]]) -> None:
    for prefix in ("", "org_", "platform_"):
        daily = totals(tables[f"{prefix}usage_daily"], "record_created", "usage_date")
        assert daily == {("2024-03-05",): (None, 2), ("2024-03-06",): (MINUS_NINES, 1)}
        monthly = totals(tables[f"{prefix}usage_monthly"], "record_created", "month")
        assert monthly == {("2024-03-01",): (NINES, 3)}


def test_windows(tables: dict[str, list[Row]]) -> None:
    summary = {
        (row["metric_type"], row["time_window"]): (
            row["total_quantity"],
            row["previous_quantity"],
            row["change_ratio"],
            row["event_count"],
        )
        for row in tables["usage_summary"]
        if row["scope"] == "platform"
    }
    # to 11 March: weeks from the 5th and from 27 February
    assert summary["ai_tokens_used", "week"] == (MINUS_NINES, 0, None, 1)
    assert summary["ai_tokens_used", "month"] == (MINUS_NINES, MINUS_NINES, 0, 1)
    assert summary["ai_tokens_used", "year"] == (None, 0, None, 2)
    assert summary["user_active", "week"] == (NINES, MINUS_NINES, None, 1)
    assert summary["user_active", "month"] == (0, 0, None, 2)
    assert summary["record_created", "week"] == (NINES, 0, None, 3)
    assert summary["storage_used", "week"] == (None, 0, None, 3)


def test_a_sum_that_just_fits_is_held(tables: dict[str, list[Row]]) -> None:
    with_fraction = Decimal("9" * 29 + ".5")
    (day,) = totals(tables["org_usage_daily"], "automation_run", "usage_date").values()
    assert day == (with_fraction, 3)
    (month,) = totals(tables["platform_usage_monthly"], "automation_run", "month").values()
    assert month == (with_fraction, 3)


@pytest.mark.parametrize("reads", ["postgres", "duckdb"])
def test_a_page_adds_up_what_a_table_cannot_hold(
    rolled_up: tuple[Settings, Rollup], reads: str
) -> None:
    settings = rolled_up[0].model_copy(update={"web_reads": reads})
    reader = open_reader(settings)
    with reader.open() as published:
        week = figures.state(published).window("week")
        member = figures.Subject("member", UUID(ADA), UUID(ACME))
        found = {t.metric_type: t.quantity for t in figures.totals(published, member, week)}
    reader.close()
    assert found == {
        "api_call": NINES,
        "automation_run": NINES,
        "storage_used": Decimal("199999999999999999999999999998"),
        "record_created": None,  # a day of it is unknown
        "ai_tokens_used": MINUS_NINES,
        "user_active": NINES,
    }


def test_running_again_changes_nothing_and_reconciles(
    source: AppDatabase, rolled_up: tuple[Settings, Rollup], tables: dict[str, list[Row]]
) -> None:
    settings, _ = rolled_up
    again = build(settings, days("2024-03-05", "2024-03-07"))
    assert not blocking_failures(again.audit())
    report = again.publish("again")
    assert {n for n, c in report.tables.items() if c.inserted or c.updated or c.deleted} == set()
    models = again.transformer.usage_daily_models()
    lines = reconcile(settings, models, load_meters(settings), RANGE)
    assert [line for line in lines if not line.matches] == []
    assert snapshot_query(
        settings,
        "select distinct matches, source_sum is null from usage_reconciliation"
        " where metric_type = 'api_call'",
    ) == [(True, True)]


def test_a_restated_total_that_cannot_be_held_is_null_in_the_ledger(
    source: AppDatabase, rolled_up: tuple[Settings, Rollup], tables: dict[str, list[Row]]
) -> None:
    settings, _ = rolled_up
    source.insert(
        "usage_events",
        [(str(UUID(int=99)), ADA, ACME, "user_active", None, NINES, "2024-03-08T13:00:00Z")],
    )
    rollup = build(settings, days("2024-03-08", "2024-03-09"))
    assert not blocking_failures(rollup.audit())
    rollup.publish("late")
    assert snapshot_query(
        settings, "select old_quantity, new_quantity, new_event_count from usage_restatements"
    ) == [(NINES, None, 2)]
    with open_duckdb(settings, settings.snapshot_path, read_only=True) as db:
        ((*_, change, events),) = digest(db, "usage_restatements", 1)
    assert (change, events) == (None, 1)
