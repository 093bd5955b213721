"""Erasing persons from a home with everything in it: totals stay, ids go, and stay gone.

The numbers expected here are added up by hand from EVENTS.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import (
    AppDatabase,
    Row,
    assert_published_alike,
    day,
    days,
    roll_up,
    snapshot_query,
)
from typer.testing import CliRunner, Result

from usage_pipeline.alerts import limits
from usage_pipeline.alerts.rolled_up import is_behind
from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing import erased_users
from usage_pipeline.landing.erasing import days_of_user, erase_user
from usage_pipeline.landing.landed_days import data_files
from usage_pipeline.landing.stale_days import days_to_repair
from usage_pipeline.operations.erasure import Trace, erase, find_traces, remedy
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving.exports import export_month, export_user_events
from usage_pipeline.settings import Settings

ADA = UUID("7f1c9d52-3b0e-4c55-9a07-1d2f6c8e4b90")
BOB = UUID("c2a7e614-9d38-4f0b-8e21-5a6b3f97d0c8")
EVE = UUID("e94b03f7-61cd-4a8e-b5d2-08f7c1a39e64")
ACME = UUID("0b5d8a3e-72f4-4e19-a6c0-93e1d4f7285b")
RANGE = days("2024-03-30", "2024-04-02")
MARCH = RANGE.start

METERS = """
meters:
  - {key: api_calls, event_type: api_call, aggregation: sum, value: quantity}
  - key: tokens
    event_type: ai_tokens_used
    aggregation: sum
    value: $.usage.total
    dimensions: {model: $.model}
  - {key: documents, event_type: record_created, aggregation: unique_count, value: $.document}
"""
PROMPT = '{"usage": {"total": 0.1234567890123456789}, "model": "gpt-4", "prompt": "a secret"}'
MENTION = f'{{"document": "d1", "assignee": "{str(ADA).upper()}"}}'
EVENTS = [
    (ADA, ACME, "ai_tokens_used", PROMPT, 1, "2024-03-30"),
    (ADA, None, "api_call", '{"ip": "192.0.2.7"}', 5, "2024-03-30"),
    (BOB, None, "api_call", None, 7, "2024-03-30"),
    (BOB, ACME, "ai_tokens_used", '{"usage": {"total": 2}, "model": "gpt-4"}', 1, "2024-03-31"),
    (BOB, ACME, "record_created", MENTION, 1, "2024-03-31"),
    (EVE, ACME, "record_created", '{"document": "d1"}', 1, "2024-03-31"),
    (ADA, ACME, "record_created", '{"document": "d1", "note": "a secret"}', 1, "2024-04-01"),
    (ADA, None, "unheard_of", '{"mail": "ada@example.com"}', 1, "2024-04-01"),
    (EVE, ACME, "api_call", None, 11, "2024-04-01"),
]
LATE = [(ADA, ACME, "ai_tokens_used", '{"usage": {"total": 10}}', 1, "2024-03-31")]
NUMBERS = itertools.count(1)


def add_events(source: AppDatabase, events: Iterable[tuple[Any, ...]]) -> None:
    source.insert(
        "usage_events",
        [
            (str(UUID(int=next(NUMBERS))), str(user), org and str(org), *event, f"{at}T12:00Z")
            for user, org, *event, at in events
        ],
    )


def add_people(source: AppDatabase) -> None:
    source.execute("alter table usage_events alter event_type type text")
    joined = "2024-01-05T10:00Z"
    source.insert("users", [(str(p), "a@example.com", joined, None) for p in (ADA, BOB, EVE)])
    source.insert("org_members", [(str(ACME), str(p), "member", joined) for p in (ADA, BOB)])
    source.insert(
        "subscriptions", [(str(UUID(int=5)), str(ADA), None, "pro", "active", joined, None)]
    )


def files(settings: Settings) -> dict[Path, tuple[int, int]]:
    """Inode and time of change of every file of the home but the lock that every reader takes."""
    found = {path: path.stat() for path in settings.home.rglob("*") if path.is_file()}
    return {p: (s.st_ino, s.st_mtime_ns) for p, s in found.items() if p.name != "writer.lock"}


def command(settings: Settings, *arguments: str) -> Result:
    """`usage-pipeline erase-user`, in this process."""
    variables = {
        "USAGE_HOME": str(settings.home),
        "USAGE_METERS_FILE": str(settings.meters_file),
        "USAGE_PUBLISH_SCHEMA": settings.publish_schema,
        "USAGE_APP_DATABASE_URL": settings.app_database_url.get_secret_value(),  # type: ignore[union-attr]
        "DAGSTER_PG_URL": settings.dagster_pg_url.get_secret_value(),  # type: ignore[union-attr]
        "COLUMNS": "200",
    }
    return CliRunner().invoke(app, ["erase-user", *arguments], env=variables)


def landed(settings: Settings) -> list[tuple[Any, ...]]:
    return duckdb.sql(
        f"select user_id, event_type, event_data from '{settings.events_dir}/*/*.parquet'"
        " order by created_at, id"
    ).fetchall()


def totals(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """What an erasure must leave alone: organisations and platform without counts of persons."""
    persons = {"active_users", "weekly_active_users", "monthly_active_users", "stickiness"}
    kept = {name: rows for name, rows in tables.items() if name.startswith(("org_", "platform_"))}
    kept["usage_summary"] = [row for row in tables["usage_summary"] if row["scope"] != "user"]
    kept["subscriptions_by_plan_daily"] = tables["subscriptions_by_plan_daily"]
    return {
        name: sorted(({c: v for c, v in row.items() if c not in persons} for row in rows), key=str)
        for name, rows in kept.items()
    }


def without_user(settings: Settings) -> list[tuple[Any, ...]]:
    """Rows of `usage_daily` of nobody: day, whether an organisation's, meter, quantity, events."""
    return snapshot_query(
        settings,
        "select usage_date::text, org_id is not null, metric_type, total_quantity, event_count"
        " from usage_daily where user_id is null order by all",
    )


@dataclass(frozen=True)
class Erased:
    """A home from which ADA was erased, and what was seen on the way."""

    settings: Settings
    source: AppDatabase
    before: dict[str, list[Row]]
    held: list[Trace]
    dry_run: Result
    changed_by_dry_run: bool
    left: list[Trace]
    after: dict[str, list[Row]]


@pytest.fixture(scope="module")
def erased(
    new_database: Any, make_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> Erased:
    source: AppDatabase = new_database()
    add_people(source)
    add_events(source, EVENTS)
    meters = tmp_path_factory.mktemp("meters") / "meters.yml"
    meters.write_text(METERS)
    settings: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url,
        USAGE_METERS_FILE=meters,
        DAGSTER_PG_URL=new_database(schema=False).url,
    )
    source.execute("insert into plan_limits values ('pro', 'api_calls', 4)")
    roll_up(settings, days("2024-03-30", "2024-04-01"))
    limits.left_out(settings, tell=True)
    roll_up(settings, day("2024-04-01"))
    add_events(source, LATE)
    roll_up(settings, day("2024-03-31"), run_id="late")
    export_month(settings, MARCH)
    export_user_events(settings, MARCH, ADA)
    before = assert_published_alike(settings, source.url)
    held = find_traces(Rollup(settings), ADA)
    untouched = files(settings)
    dry_run = command(settings, str(ADA), "--dry-run")
    changed = files(settings) != untouched
    Rollup(settings).announce_days()
    assert not is_behind(settings)
    left = erase(Rollup(settings), ADA)
    after = assert_published_alike(settings, source.url)
    return Erased(settings, source, before, held, dry_run, changed, left, after)


def test_the_search_finds_a_person_in_every_layer(erased: Erased) -> None:
    rows = {trace.place: trace.rows for trace in erased.held}
    march = "exports/2024-03"
    expected = {
        "landing/usage_events/usage_date=2024-03-31/part-1.parquet": 2,  # one only mentions ADA
        "landing/users.parquet": 1,
        "landing/org_members.parquet": 1,
        "landing/subscriptions.parquet": 1,
        "warehouse.duckdb: usage_event_partials_daily": 4,
        "serving/usage.duckdb: usage_daily": 4,
        "serving/usage.duckdb: usage_restatements": 1,
        "serving/parquet/usage_daily/month=2024-03-01/data.parquet": 3,
        f"{march}/manifest.csv": None,
        f"{march}/{str(ADA)[:2]}/{ADA}.csv": None,
        f"{march}/{str(ADA)[:2]}/{ADA}.events.csv": None,
        "Postgres: usage.usage_monthly": 3,
        "Postgres: usage.invalid_usage_events": 1,
        "Postgres: usage.usage_alerts": 2,
        "Postgres: usage.outbox_messages": 1,
    }
    assert {place: rows.get(place, 0) for place in expected} == expected


def test_a_dry_run_lists_places_and_days_and_touches_nothing(erased: Erased) -> None:
    assert erased.dry_run.exit_code == 0, erased.dry_run.output
    assert not erased.changed_by_dry_run
    assert "[2024-03-30, 2024-04-02)" in erased.dry_run.output
    for trace in erased.held:
        assert trace.place in erased.dry_run.output


def test_no_file_and_no_table_holds_the_id(erased: Erased) -> None:
    """By other means than the search itself: whole tables as text, and all bytes."""
    assert erased.left == []
    assert str(ADA) not in str(erased.after)
    assert str(ADA) not in str(landed(erased.settings)).lower()
    for path in erased.settings.home.rglob("*"):
        assert str(ADA) not in path.name
        content = path.read_bytes() if path.is_file() else b""
        assert str(ADA).encode() not in content.lower(), path
        assert ADA.bytes not in content, path
    with duckdb.connect(str(erased.settings.warehouse_path), read_only=True) as db:
        names = db.sql("select table_name from duckdb_tables()").fetchall()
        assert names
        for (name,) in names:
            assert str(ADA) not in str(db.sql(f"from {name}").fetchall()), name


def test_totals_of_organisations_and_platform_stay(erased: Erased) -> None:
    assert totals(erased.after) == totals(erased.before)
    assert without_user(erased.settings) >= [
        ("2024-03-30", False, "api_calls", Decimal(5), 1),
        ("2024-03-30", True, "tokens", Decimal("0.123456789"), 1),
        ("2024-03-31", True, "tokens", Decimal(10), 1),
        ("2024-04-01", True, "documents", Decimal(1), 1),
    ]


def test_a_person_who_is_erased_is_no_active_user_and_in_no_cohort(erased: Erased) -> None:
    def figures(tables: dict[str, list[Row]]) -> list[Any]:
        (first,) = [
            r for r in tables["platform_metrics_daily"] if str(r["metric_date"]) == "2024-03-30"
        ]
        cohorts = {row["cohort_users"] for row in tables["user_retention_monthly"]}
        return [first["active_users"], first["total_users"], cohorts]

    assert figures(erased.before) == [2, 3, {3}]
    assert figures(erased.after) == [1, 3, {2}]


def test_days_that_changed_by_it_wait_for_nobody(erased: Erased) -> None:
    assert not is_behind(erased.settings)


def test_event_data_keeps_what_the_meters_read_and_no_more(erased: Erased) -> None:
    data = [(user, data) for user, _, data in landed(erased.settings)]
    assert data[0] == (None, '{"model": "gpt-4", "usage": {"total": 0.1234567890123456789}}')
    assert data[1] == (None, None)
    assert (BOB, '{"assignee": "erased", "document": "d1"}') in data
    assert (None, '{"document": "d1"}') in data
    (invalid,) = erased.after["invalid_usage_events"]
    assert (invalid["user_id"], invalid["event_data"]) == (None, None)


def test_the_ledger_says_erasure_and_names_nobody(erased: Erased) -> None:
    rows = snapshot_query(
        erased.settings,
        "select usage_date::text, user_id, metric_type, old_quantity, new_quantity,"
        " old_event_count, new_event_count, cause from usage_restatements"
        " where restated_at <= (select min(restated_at) from usage_restatements"
        " where cause = 'erasure') order by all",
    )
    assert rows == [
        ("2024-03-30", None, "api_calls", 0, 5, 0, 1, "erasure"),
        ("2024-03-30", None, "tokens", 0, Decimal("0.123456789"), 0, 1, "erasure"),
        ("2024-03-31", None, "tokens", 0, 10, 0, 1, "erasure"),
        ("2024-03-31", None, "tokens", 0, 10, 0, 1, "late_events"),
        ("2024-04-01", None, "documents", 0, 1, 0, 1, "erasure"),
    ]


def test_what_was_published_before_adds_up_as_it_did_and_names_nobody(erased: Erased) -> None:
    """Of meters that add up; `documents` does not, and ADA's was the only one of her day."""
    moment = max(row["published_at"] for row in erased.before["usage_snapshots"])
    cells = "usage_date::text, org_id::text, metric_type"
    query = f"select {cells}, sum(total_quantity), sum(event_count) from {{}} group by all"
    then = snapshot_query(erased.settings, query.format(f"usage_daily_as_of('{moment}')"))
    assert len(then) == 6
    added_up: dict[tuple[Any, ...], list[Any]] = {}
    for row in erased.before["usage_daily"]:
        cell = str(row["usage_date"]), row["org_id"], row["metric_type"]
        total = added_up.setdefault(cell, [0, 0])
        total[0] += row["total_quantity"]
        total[1] += row["event_count"]
    assert {row[:3]: list(row[3:]) for row in then} == added_up
    people = f"select distinct user_id::text from usage_daily_as_of('{moment}') order by 1"
    assert snapshot_query(erased.settings, people) == [(str(BOB),), (str(EVE),), (None,)]


def test_the_list_of_erased_persons_names_nobody(erased: Erased) -> None:
    content = (erased.settings.home / "erased_users.json").read_text()
    assert str(ADA) not in content
    assert ADA.hex not in content


def test_exports_of_others_stay(erased: Erased) -> None:
    folder = erased.settings.exports_dir / "2024-03"
    users = [line.split(",")[0] for line in (folder / "manifest.csv").read_text().splitlines()]
    assert users == ["user_id", str(BOB), str(EVE)]
    assert sorted(p.name for p in folder.glob("??/*")) == [f"{BOB}.csv", f"{EVE}.csv"]


def test_what_is_no_id_and_whom_nobody_knows_are_refused(erased: Erased) -> None:
    assert command(erased.settings, "ada").exit_code == 2
    listed = (erased.settings.home / "erased_users.json").read_text()
    result = command(erased.settings, str(UUID(int=ADA.int + 1)))
    assert result.exit_code == 1
    assert isinstance(result.exception, UsagePipelineError)
    assert "Nothing about this user" in str(result.exception)
    assert (erased.settings.home / "erased_users.json").read_text() == listed


def test_what_keeps_an_id_on_a_lost_day_is_said(make_settings: Any) -> None:
    settings = make_settings()
    assert "erase the user again" in remedy(settings)
    for lost in ("2024-03-10", "2024-03-12"):
        (settings.damaged_dir / f"usage_date={lost}").mkdir(parents=True)
    for said in (
        "[2024-03-10, 2024-03-11), [2024-03-12, 2024-03-13) are damaged",
        "--start 2024-03-10 --end 2024-03-11 --allow-fewer-events",
        "--start 2024-03-12 --end 2024-03-13 --allow-fewer-events",
    ):
        assert said in remedy(settings)


def test_landing_again_keeps_a_person_erased(erased: Erased) -> None:
    """The application has not erased ADA: every event still names them."""
    before = landed(erased.settings)
    report = roll_up(erased.settings, RANGE)
    assert landed(erased.settings) == before
    assert not {name for name, change in report.tables.items() if change.inserted}
    assert find_traces(Rollup(erased.settings), ADA) == []
    assert all(line.matches for line in Rollup(erased.settings).reconcile(RANGE))


def test_killed_on_the_way_an_erasure_is_published_by_a_rollup_and_completed_by_the_next(
    erased: Erased,
) -> None:
    """BOB's, killed between the renames of the second day: its manifest is new, its data are not.

    Personal usage of ADA and of BOB is one row of nobody then.
    """
    settings = erased.settings
    # Of all days but one, landing holds the only copy now.
    erased.source.execute("delete from usage_events where created_at < '2024-04-01Z'")
    second = data_files(settings.events_dir, RANGE.days()[1])[-1]
    old = second.read_bytes()
    erased_users.add(settings, BOB)
    Rollup(settings).pending.landed([RANGE])
    erase_user(settings, BOB, days_of_user(settings, BOB))
    second.write_bytes(old)
    assert days_to_repair(settings, needs_event_data=True) == []

    roll_up(settings, day("2024-04-01"))
    still = f"select distinct usage_date::text from usage_daily where user_id = '{BOB}'"
    assert snapshot_query(settings, still) == [("2024-03-31",)]

    result = command(settings, str(BOB))
    assert result.exit_code == 0, result.output
    assert "Erased." in result.output
    after = assert_published_alike(settings, erased.source.url)
    assert str(BOB) not in str(after)
    assert totals(after) == totals(erased.before)
    found = without_user(settings)
    assert ("2024-03-30", False, "api_calls", Decimal(12), 2) in found
    assert ("2024-03-31", True, "tokens", Decimal(12), 2) in found
    assert ("2024-03-30", Decimal(5), Decimal(12), 1, 2) in snapshot_query(
        settings,
        "select usage_date::text, old_quantity, new_quantity, old_event_count, new_event_count"
        " from usage_restatements where user_id is null and org_id is null and cause = 'erasure'",
    )
