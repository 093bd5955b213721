"""The gate before publishing: every data test has a result of this audit, or nothing passes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, build, day, roll_up, snapshot_query
from typer.testing import CliRunner

from usage_pipeline.audit.gate import blocking_failures
from usage_pipeline.audit.notices import notices
from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import DBT_PROJECT_DIR, Settings
from usage_pipeline.warehouse import transform
from usage_pipeline.warehouse.transform import Transformer

SINGULAR = {path.stem for path in (DBT_PROJECT_DIR / "tests").glob("*.sql")}
USER = str(UUID(int=7))


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    """One day with two events and a subscription."""
    database: AppDatabase = new_database()
    database.insert("users", [(USER, None, "2024-02-01T00:00Z", None)])
    database.insert(
        "subscriptions", [(USER, USER, None, "pro", "active", "2024-02-01T00:00Z", None)]
    )
    database.insert(
        "usage_events",
        [(str(UUID(int=n)), USER, None, "api_call", None, n, "2024-03-30T12:00Z") for n in (1, 2)],
    )
    return database


@pytest.fixture(scope="module")
def settings(source: AppDatabase, make_settings: Any) -> Settings:
    """That day, published."""
    made: Settings = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_START_DATE="2024-03-30")
    roll_up(made, day("2024-03-30"))
    return made


def warehouse(settings: Settings, statement: str) -> None:
    with duckdb.connect(str(settings.warehouse_path)) as db:
        db.execute(statement)


def test_a_failing_test_keeps_no_other_from_its_result(settings: Settings) -> None:
    """The first of both used to skip 34 tests, and those counted as passed."""
    rollup = build(settings, day("2024-03-30"))
    warehouse(
        settings,
        "insert into usage_event_partials_daily select * from usage_event_partials_daily",
    )
    warehouse(settings, "update org_usage_daily set total_quantity = total_quantity + 1")
    warehouse(settings, "update user_retention_monthly set retained_users = 2, cohort_users = 1")
    results = {result.name: result.status for result in rollup.audit()}
    assert results.keys() >= SINGULAR
    assert set(results.values()) <= {"pass", "warn", "fail"}
    failed = {name for name, status in results.items() if status == "fail"}
    assert {
        "organisations_equal_users_daily",
        "retention_is_at_most_all",
        "rollup_equals_landing",
    } <= failed
    assert any(name.startswith("unique_grain_usage_daily_") for name in failed)
    said = notices(settings)
    assert "retention_is_at_most_all: 1 row, blocks publishing" in said
    assert {notice.partition(":")[0] for notice in said} >= failed
    with pytest.raises(UsagePipelineError, match="Blocking checks failed: "):
        rollup.publish("refused")
    roll_up(settings, day("2024-03-30"))  # and is good again


# The tables that usage_daily and usage_monthly are views of.
DAYS, MONTHS = "usage_event_partials_daily", "usage_partials_monthly"


@pytest.fixture(scope="module")
def checks(settings: Settings) -> dict[str, str]:
    """The tests of the audit as the SQL that dbt ran; each selects what it objects to."""
    Rollup(settings).audit()
    files = (settings.dbt_target_dir / "compiled").rglob("*.sql")
    return {file.stem: file.read_text() for file in files}


@pytest.mark.parametrize(
    ("check", "table", "parts", "column"),
    [
        ("organisations_equal_users_daily", "org_usage_daily", DAYS, "event_count"),
        ("organisations_equal_users_daily", "org_usage_daily", DAYS, "total_quantity"),
        ("organisations_equal_users_monthly", "org_usage_monthly", MONTHS, "event_count"),
        ("organisations_equal_users_monthly", "org_usage_monthly", MONTHS, "total_quantity"),
        ("platform_equals_users_daily", "platform_usage_daily", DAYS, "event_count"),
        ("platform_equals_users_daily", "platform_usage_daily", DAYS, "total_quantity"),
        ("platform_equals_users_monthly", "platform_usage_monthly", MONTHS, "event_count"),
        ("platform_equals_users_monthly", "platform_usage_monthly", MONTHS, "total_quantity"),
        ("months_equal_their_days", MONTHS, DAYS, "event_count"),
        ("months_equal_their_days", MONTHS, DAYS, "active_days"),
        ("months_equal_their_days", MONTHS, DAYS, "sum_quantity"),
        ("platform_metrics_daily_equal_events", "platform_metrics_daily", DAYS, "event_count"),
        ("platform_metrics_monthly_equal_events", "platform_metrics_monthly", DAYS, "event_count"),
        (
            "subscriptions_equal_their_plans",
            "platform_metrics_daily",
            "subscriptions_by_plan_daily",
            "active_subscriptions",
        ),
    ],
)
def test_a_table_that_differs_from_its_parts_by_one_row_is_seen(
    check: str, table: str, parts: str, column: str, *, settings: Settings, checks: dict[str, str]
) -> None:
    one = "rowid = (select min(rowid) from {0} where {1} > 0)"
    changes = [
        f"update {table} set {column} = {column} + 1 where {one.format(table, column)}",
        f"insert into {table} select * from {table} where {one.format(table, column)}",
        f"delete from {table} where {one.format(table, column)}",
        f"delete from {parts} where rowid = (select min(rowid) from {parts})",
    ]
    with duckdb.connect(str(settings.warehouse_path)) as db:
        assert db.execute(checks[check]).fetchall() == []
        for change in changes:
            db.begin()
            (changed,) = db.execute(change).fetchone() or (0,)
            assert (changed, len(db.execute(checks[check]).fetchall())) == (1, 1), change
            db.rollback()


@pytest.fixture
def own_project(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of the dbt project that a test may change."""
    project = tmp_path / "dbt_project"
    shutil.copytree(DBT_PROJECT_DIR, project, ignore=shutil.ignore_patterns("target", "logs"))
    monkeypatch.setattr(transform, "DBT_PROJECT_DIR", project)
    yield project
    shutil.rmtree(settings.dbt_target_dir, ignore_errors=True)  # parsed from the copy


def test_a_new_test_is_part_of_the_next_audit(settings: Settings, own_project: Path) -> None:
    before = Transformer(settings).version
    (own_project / "tests" / "nobody_uses_anything.sql").write_text(
        "select * from {{ ref('usage_daily') }}"
    )
    rollup = Rollup(settings)
    assert rollup.transformer.version == before  # no number can change: nothing is built again
    results = {result.name: result for result in rollup.audit()}
    assert (results["nobody_uses_anything"].status, results["nobody_uses_anything"].failures) == (
        "fail",
        1,
    )


def test_a_test_without_result_shuts_the_gate(settings: Settings) -> None:
    """A test of the manifest that dbt does not run, as when it is disabled from outside."""
    rollup = Rollup(settings)
    known = rollup.transformer.data_tests()
    silent = "test.usage_pipeline.nobody_ran_this"
    rollup.transformer.data_tests = lambda: {*known, silent}  # type: ignore[method-assign]
    results = rollup.audit()
    assert [result.unique_id for result in blocking_failures(results)] == [silent]
    assert "nobody_ran_this: gave no result, blocks publishing" in notices(settings)
    with pytest.raises(UsagePipelineError, match="nobody_ran_this"):
        rollup.publish("refused")


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("models/usage/usage_daily.yml", "description:", "description: More prose.", False),
        ("models/semantic.yml", "agg: sum", "agg: max", False),
        ("models/usage/calendar.yml", "granularity: day", "granularity: month", False),
        ("models/exposures.yml", "maturity: high", "maturity: low", False),
        ("models/usage/usage_daily.sql", "from {{", "-- a comment\nfrom  {{", False),
        ("macros/engine.sql", "{#", "{# more prose", False),
        ("models/usage/usage_daily.sql", "from {{", "from /* why */ {{", False),
        ("models/usage/usage_daily.sql", "    event_count,", "    event_count + 1,", True),
        ("models/usage/usage_monthly.sql", "'month'", "'day'", True),
        ("macros/engine.sql", "decimal(38, 9)", "decimal(38, 8)", True),
        ("models/usage/usage_daily.yml", "decimal(38, 9)", "decimal(38, 8)", True),
        ("dbt_project.yml", "windowed", "table", True),
    ],
)
def test_only_what_can_change_a_number_changes_the_version(
    file: str,
    old: str,
    new: str,
    changes: bool,
    *,
    settings: Settings,
    own_project: Path,
) -> None:
    before = Transformer(settings).version
    path = own_project / file
    text = path.read_text()
    if old not in text:
        pytest.fail(f"{file} does not hold {old!r}")
    path.write_text(text.replace(old, new, 1))
    assert (Transformer(settings).version != before) is changes


def test_what_warns_is_said_at_the_prompt_as_in_the_checks(
    source: AppDatabase, settings: Settings
) -> None:
    """A week after a day of two events: five, one of them of a type that nobody knows."""
    source.execute("alter table usage_events alter event_type type text")
    roll_up(settings, day("2024-03-31"))
    assert not any("schema" in notice or "row_count" in notice for notice in notices(settings))
    source.insert(
        "usage_events",
        [
            (str(UUID(int=20 + n)), USER, None, kind, None, 1, "2024-04-06T12:00Z")
            for n, kind in enumerate(["api_call"] * 4 + ["[mystery]"])
        ],
    )
    source.execute("alter table users add column nickname text")
    roll_up(settings, day("2024-04-06"))
    said = [
        "no_invalid_events: 1 row",
        "row_count_is_usual: 2024-04-06 has 5 events, 2 are usual",
        "source_schema_is_unchanged: public.users.nickname is new (text)",
        "event_types_are_known: 1 of '[mystery]', 2024-04-06 to 2024-04-06",
    ]
    assert set(said) <= set(notices(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USAGE_HOME", str(settings.home))
        patch.setenv("USAGE_START_DATE", "2024-03-30")
        patch.setenv("USAGE_APP_DATABASE_URL", source.url)
        shown = CliRunner().invoke(app, ["status"]).output.splitlines()
    assert {f"  {notice}" for notice in said} <= set(shown)


def test_retention_counts_both_sides_among_the_same_users(
    new_database: Any, make_settings: Any
) -> None:
    """Accounts are corrected after their months were built: nobody is retained who is in no cohort.

    Of users 1 to 4, active in March: 1 moves from March's cohort to April's, 2 is registered later
    than the last landed day, 3 is gone from the source, 4 moves from April's cohort to March's.
    """
    database: AppDatabase = new_database()
    users = [str(UUID(int=n)) for n in range(1, 5)]
    registered = ["2024-03-01", "2024-03-02", "2024-03-03", "2024-04-01"]
    database.insert(
        "users", [(user, None, at, None) for user, at in zip(users, registered, strict=True)]
    )
    database.insert(
        "usage_events",
        [
            (str(UUID(int=100 + n)), user, None, "api_call", None, 1, "2024-03-31T12:00Z")
            for n, user in enumerate(users)
        ],
    )
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_START_DATE="2024-03-30")
    query = (
        "select cohort_month::text, months_since, cohort_users, retained_users, retention_rate"
        " from user_retention_monthly order by 1, 2"
    )
    roll_up(settings, day("2024-03-31"))
    assert snapshot_query(settings, query) == [("2024-03-01", 0, 3, 3, 1)]
    database.execute("update users set created_at = '2024-04-01' where id = %s", [users[0]])
    database.execute("update users set created_at = '2024-04-09' where id = %s", [users[1]])
    database.execute("delete from users where id = %s", [users[2]])
    database.execute("update users set created_at = '2024-03-04' where id = %s", [users[3]])
    roll_up(settings, day("2024-04-01"))  # March is not built again
    assert snapshot_query(settings, query) == [
        ("2024-03-01", 0, 1, 1, 1),
        ("2024-03-01", 1, 1, 0, 0),
        ("2024-04-01", 0, 1, 0, 0),
    ]
