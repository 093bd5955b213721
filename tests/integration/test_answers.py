"""What was published then, and why a number is what it is, in one home with a history.

All numbers are added up by hand from EVENTS and what `history` does to them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, day, roll_up, snapshot_query
from typer.testing import CliRunner, Result

from usage_pipeline.cli.main import app
from usage_pipeline.landing import erased_users
from usage_pipeline.operations.explain import Question, explain
from usage_pipeline.settings import Settings

ADA = "7f1c9d52-3b0e-4c55-9a07-1d2f6c8e4b90"
BOB = "c2a7e614-9d38-4f0b-8e21-5a6b3f97d0c8"
EVE = "e94b03f7-61cd-4a8e-b5d2-08f7c1a39e64"
ACME = "0b5d8a3e-72f4-4e19-a6c0-93e1d4f7285b"
NAMES = {ADA: "ADA", BOB: "BOB", ACME: "ACME", "None": "-"}

METERS = """
meters:
  - {key: calls, event_type: api_call, aggregation: sum, value: quantity, unit: calls,
     description: Calls of the public API}
  - {key: tokens, event_type: ai_tokens_used, aggregation: sum, value: $.n, unit: tokens,
     filter: {$.model: [gpt-4, gpt-4o]}}
  - {key: documents, event_type: record_created, aggregation: unique_count, value: $.document}
"""
EVENTS = [
    (ADA, ACME, "api_call", None, 5, "2024-03-30"),
    (ADA, ACME, "ai_tokens_used", '{"n": 10, "model": "gpt-4"}', 1, "2024-03-30"),
    (ADA, ACME, "ai_tokens_used", '{"n": "x", "model": "gpt-4o"}', 1, "2024-03-30"),
    (ADA, ACME, "ai_tokens_used", '{"n": 3, "model": "other"}', 1, "2024-03-30"),
    (ADA, ACME, "record_created", '{"document": "d1"}', 1, "2024-03-30"),
    (ADA, None, "api_call", None, 2, "2024-03-31"),
    (ADA, None, "api_call", None, "NaN", "2024-03-31"),
    (ADA, ACME, "record_created", '{"document": "d1"}', 1, "2024-03-31"),
    (ADA, ACME, "record_created", '{"document": "d2"}', 1, "2024-03-31"),
    (BOB, ACME, "api_call", None, 7, "2024-03-31"),
]
LATE = (ADA, ACME, "api_call", None, 4, "2024-03-30")
BACK = (BOB, ACME, "api_call", None, 8, "2024-03-31")
SATURDAY, SUNDAY = day("2024-03-30"), day("2024-03-31")

# By run: user, organisation, metric, quantity, events, and active days of March.
MARCH = {
    "first": [
        ("ADA", "ACME", "calls", 5, 1, 1),
        ("ADA", "ACME", "documents", 1, 1, 1),
        ("ADA", "ACME", "tokens", 10, 1, 1),
    ],
    "second": [
        ("ADA", "-", "calls", 2, 1, 1),
        ("ADA", "ACME", "calls", 5, 1, 1),
        ("ADA", "ACME", "documents", 2, 3, 2),
        ("ADA", "ACME", "tokens", 10, 1, 1),
        ("BOB", "ACME", "calls", 7, 1, 1),
    ],
    "late": [
        ("ADA", "-", "calls", 2, 1, 1),
        ("ADA", "ACME", "calls", 9, 2, 1),
        ("ADA", "ACME", "documents", 2, 3, 2),
        ("ADA", "ACME", "tokens", 10, 1, 1),
        ("BOB", "ACME", "calls", 7, 1, 1),
    ],
    "corrected": [
        ("ADA", "-", "calls", 2, 1, 1),
        ("ADA", "ACME", "calls", 9, 2, 1),
        ("ADA", "ACME", "documents", 1, 2, 2),
        ("ADA", "ACME", "tokens", 10, 1, 1),
    ],
    "back": [
        ("ADA", "-", "calls", 2, 1, 1),
        ("ADA", "ACME", "calls", 9, 2, 1),
        ("ADA", "ACME", "documents", 1, 2, 2),
        ("ADA", "ACME", "tokens", 10, 1, 1),
        ("BOB", "ACME", "calls", 8, 1, 1),
    ],
}
SUNDAYS = {
    "first": [],
    "second": [
        ("ADA", "-", "calls", 2, 1),
        ("ADA", "ACME", "documents", 2, 2),
        ("BOB", "ACME", "calls", 7, 1),
    ],
    "corrected": [("ADA", "-", "calls", 2, 1), ("ADA", "ACME", "documents", 1, 1)],
    "back": [
        ("ADA", "-", "calls", 2, 1),
        ("ADA", "ACME", "documents", 1, 1),
        ("BOB", "ACME", "calls", 8, 1),
    ],
}
SUNDAYS["late"] = SUNDAYS["second"]


@dataclass
class World:
    settings: Settings
    source: AppDatabase
    published_at: dict[str, datetime]

    def add(self, *events: tuple[Any, ...]) -> None:
        first = len(self.source.query("select id from usage_events")) + 100
        self.source.insert(
            "usage_events",
            [
                (str(UUID(int=first + n)), *event[:-1], f"{event[-1]}T12:00Z")
                for n, event in enumerate(events)
            ],
        )

    def ask(self, *words: str, columns: int = 200) -> Result:
        settings = self.settings
        variables = {
            "USAGE_HOME": str(settings.home),
            "USAGE_METERS_FILE": str(settings.meters_file),
            "USAGE_TIMEZONE": settings.timezone,
            "USAGE_APP_DATABASE_URL": self.source.url,
            "COLUMNS": str(columns),
        }
        return CliRunner().invoke(app, ["explain", "--month", "2024-03", *words], env=variables)

    def answer(self, *words: str) -> dict[str, Any]:
        result = self.ask(*words, "--json")
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.output)
        return found

    def refusal(self, *words: str) -> str:
        result = self.ask(*words)
        assert result.exit_code == 1, result.output
        return str(result.exception)


@pytest.fixture(scope="module")
def world(new_york: Any) -> World:
    source, settings = new_york(METERS)
    source.insert("users", [(EVE, None, "2024-01-05T10:00Z", None)])
    world = World(settings, source, {})
    world.add(*EVENTS)

    def publish(run: str, days: Any) -> None:
        roll_up(settings, days, run_id=run)
        ((at,),) = snapshot_query(settings, "select published_at from snapshot")
        world.published_at[run] = at

    publish("first", SATURDAY)
    publish("second", SUNDAY)
    world.add(LATE)
    publish("late", SATURDAY)
    source.execute("delete from usage_events where quantity = 7 or event_data->>'document' = 'd2'")
    publish("corrected", SUNDAY)
    world.add(BACK)
    publish("back", SUNDAY)
    assert_published_alike(settings, source.url)
    return world


@pytest.mark.parametrize("run", MARCH)
@pytest.mark.parametrize("engine", ["DuckDB", "Postgres"])
def test_a_month_and_a_day_as_they_were(world: World, engine: str, run: str) -> None:
    def rows(query: str) -> list[tuple[Any, ...]]:
        if engine == "DuckDB":
            found = snapshot_query(world.settings, query.format(""))
        else:
            found = world.source.query(query.format("usage."))
        return sorted((NAMES[str(r[0])], NAMES[str(r[1])], *r[2:]) for r in found)

    moment = world.published_at[run].isoformat()
    columns = "user_id, org_id, metric_type, total_quantity, event_count"
    assert rows(
        f"select {columns}, active_days from {{}}usage_monthly_as_of('{moment}')"
        " where month = '2024-03-01'"
    ) == sorted(MARCH[run])
    assert rows(
        f"select {columns} from {{}}usage_daily_as_of('{moment}') where usage_date = '2024-03-31'"
    ) == sorted(SUNDAYS[run])


def test_nothing_was_published_before_the_first_publish(world: World) -> None:
    for function in ("usage_daily_as_of", "usage_monthly_as_of"):
        query = f"from {{}}{function}('2024-03-30 00:00:00+00')"
        assert snapshot_query(world.settings, query.format("")) == []
        assert world.source.query(f"select * {query.format('usage.')}") == []


@pytest.mark.parametrize(("function", "period"), [("daily", "usage_date"), ("monthly", "month")])
def test_a_look_up_in_postgres_is_one_of_indexes(world: World, function: str, period: str) -> None:
    """The function is part of the plan, so that user and period reach the indexes."""
    plan = world.source.query(
        "set enable_seqscan to off; explain (costs off)"
        f" select * from usage.usage_{function}_as_of(now() - interval '1 day')"
        f" where user_id = '{ADA}' and {period} = '2024-03-01'"
    )
    told = "\n".join(line for (line,) in plan)
    assert "usage_daily_user_id_usage_date_idx" in told
    assert "usage_restatements_user_id_usage_date_idx" in told
    assert "Seq Scan" not in told and "_as_of" not in told, told


def test_the_number_of_a_user_is_told_from_all_sides(world: World) -> None:
    answer = world.answer("--user", ADA, "--metric", "calls")
    assert [(n["org_id"], n["total_quantity"], n["event_count"]) for n in answer["numbers"]] == [
        (None, "2.000000000", 1),
        (ACME, "9.000000000", 2),
    ]
    assert (answer["total"], answer["event_count"]) == ("11.000000000", 3)
    assert answer["alike"] is True
    assert set(answer["places"]) == {"DuckDB", "Parquet", "Postgres"}
    assert answer["publish"]["run_id"] == "back"
    assert [(d["usage_date"], d["total_quantity"], d["event_count"]) for d in answer["days"]] == [
        ("2024-03-30", "9.000000000", 2),
        ("2024-03-31", "2.000000000", 1),
    ]
    assert list(answer["set_aside"].values()) == [1]
    assert datetime.fromisoformat(answer["first_event_at"]) == datetime(2024, 3, 30, 12, tzinfo=UTC)
    assert datetime.fromisoformat(answer["last_event_at"]) == datetime(2024, 3, 31, 12, tzinfo=UTC)
    (change,) = answer["restatements"]
    assert (change["usage_date"], change["org_id"], change["cause"], change["run_id"]) == (
        "2024-03-30",
        ACME,
        "late_events",
        "late",
    )
    assert (change["old_quantity"], change["new_quantity"]) == ("5.000000000", "9.000000000")
    assert (change["old_event_count"], change["new_event_count"]) == (1, 2)
    # of all users: ADA's 5 and 4; ADA's 2 and BOB's 8
    assert [(p["usage_date"], p["landed_events"], p["landed_sum"]) for p in answer["proof"]] == [
        ("2024-03-30", 2, "9.000000000"),
        ("2024-03-31", 2, "10.000000000"),
    ]


def test_one_day_one_organisation_and_the_platform(world: World) -> None:
    one = world.answer("--user", ADA, "--org", ACME, "--metric", "calls", "--day", "2024-03-30")
    assert [(n["total_quantity"], n["event_count"]) for n in one["numbers"]] == [("9.000000000", 2)]
    assert [d["usage_date"] for d in one["days"]] == ["2024-03-30"]
    org = world.answer("--org", ACME, "--metric", "calls")
    assert (org["total"], org["event_count"], org["alike"]) == ("17.000000000", 3, True)
    platform = world.answer("--platform", "--metric", "calls")
    assert (platform["total"], platform["event_count"]) == ("19.000000000", 4)
    assert [r["run_id"] for r in platform["restatements"]] == ["late", "corrected", "back"]


def test_a_value_that_is_no_number_is_told_as_set_aside(world: World) -> None:
    answer = world.answer("--user", ADA, "--metric", "tokens")
    assert (answer["total"], answer["event_count"]) == ("10.000000000", 1)
    assert answer["set_aside"] == {"value is not a finite number of at most 29 integer digits": 1}


def test_a_user_whose_number_went_and_came_back(world: World) -> None:
    answer = world.answer("--user", BOB, "--metric", "calls")
    assert [
        (r["run_id"], r["cause"], Decimal(r["old_quantity"]), Decimal(r["new_quantity"]))
        for r in answer["restatements"]
    ] == [("corrected", "correction", 7, 0), ("back", "late_events", 0, 8)]


def test_what_was_published_at_a_moment(world: World) -> None:
    moment = world.published_at["second"].isoformat()
    answer = world.answer("--user", ADA, "--metric", "calls", "--as-of", moment)
    assert [n["total_quantity"] for n in answer["numbers"]] == ["2.000000000", "5.000000000"]
    assert [n["total_quantity"] for n in answer["now"]] == ["2.000000000", "9.000000000"]
    assert (answer["publish"]["run_id"], answer["alike"]) == ("second", True)
    assert set(answer["places"]) == {"DuckDB", "Postgres"}
    org = world.answer("--org", ACME, "--metric", "calls", "--as-of", moment)
    assert (org["total"], org["event_count"]) == ("12.000000000", 2)
    documents = world.answer("--user", ADA, "--metric", "documents", "--as-of", moment)
    assert (documents["total"], documents["event_count"]) == ("2.000000000", 3)
    # in the zone of the settings, where it is earlier than in UTC
    local = world.published_at["second"].astimezone(world.settings.zone)
    told = world.ask("--user", ADA, "--metric", "calls", "--as-of", f"{local:%Y-%m-%dT%H:%M:%S.%f}")
    assert "second" in told.output


def test_questions_that_have_no_number(world: World) -> None:
    assert "No metric teleports is published" in world.refusal(
        "--platform", "--metric", "teleports"
    )
    assert "Use one of: calls, documents, tokens" in world.refusal("--platform", "--metric", "x")
    nobody = str(UUID(int=5))
    assert f"Nobody knows the user {nobody}" in world.refusal("--user", nobody, "--metric", "calls")
    assert "Nobody knows the organisation" in world.refusal("--org", nobody, "--metric", "calls")
    later = world.refusal("--platform", "--metric", "calls", "--month", "2024-05")
    assert "2024-05 is not published; published are days from 2024-03-30 to 2024-03-31" in later
    early = world.refusal("--platform", "--metric", "calls", "--as-of", "2024-03-30T09:00")
    assert "Nothing is recorded of what was published at 2024-03-30 09:00" in early
    moment = world.published_at["second"].isoformat()
    unkept = world.refusal("--platform", "--metric", "documents", "--as-of", moment)
    assert "do not add up" in unkept
    known = world.answer("--user", EVE, "--metric", "calls")
    assert (known["numbers"], known["total"]) == ([], None)
    erased_users.add(world.settings, UUID(EVE))
    assert "erased" in world.refusal("--user", EVE, "--metric", "calls")


@pytest.mark.parametrize(
    "words",
    [
        ["--metric", "calls"],
        ["--metric", "calls", "--user", ADA, "--platform"],
        ["--metric", "calls", "--user", "ada"],
        ["--metric", "calls", "--platform", "--day", "2024-04-01"],
        ["--metric", "calls", "--platform", "--as-of", "yesterday"],
        ["--platform"],
    ],
)
def test_wrong_usage_is_exit_code_2(world: World, words: list[str]) -> None:
    assert world.ask(*words).exit_code == 2


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_fits_the_terminal(world: World, columns: int) -> None:
    for words in (["--user", ADA], ["--org", ACME], ["--platform"]):
        for metric in ("calls", "tokens", "documents"):
            page = world.ask(*words, "--metric", metric, columns=columns)
            assert page.exit_code == 0, page.output
            assert max(map(len, page.output.splitlines())) <= columns
            assert "@" not in page.output
    lines = world.ask("--user", ADA, "--metric", "calls", columns=columns).output.splitlines()
    told = " ".join(" ".join(lines).split())
    for said in (
        f"calls of user {ADA} in 2024-03",
        "11 calls, 3 events, of which 2 calls, 1 event",
        "the same in DuckDB, Parquet, Postgres",
        "Calls of the public API: sum of quantity of events api_call",
        "3 events counted, 2024-03-30 08:00:00 to 2024-03-31 08:00:00",
        "1 event set aside: ",
        "2024-03-30 9 2 events",  # a day is a line
        "2024-03-30 5 to 9 calls, 1 to 2 events",
        "late_events, run late",
    ):
        assert said in told, told


@pytest.fixture
def alert(world: World) -> Iterator[None]:
    world.source.execute(
        "insert into usage.usage_alerts (scope, org_id, metric_type, month, threshold,"
        " used_quantity, limit_quantity, usage_date, snapshot_id, raised_at) values ('org', %s,"
        " 'calls', '2024-03-01', 0.8, 9, 10, '2024-03-30', 'x', '2024-04-01 06:00+00')",
        (ACME,),
    )
    yield
    world.source.execute("delete from usage.usage_alerts")


def test_an_alert_that_the_number_raised_is_told(world: World, alert: None) -> None:
    (told,) = world.answer("--org", ACME, "--metric", "calls")["alerts"]
    assert [Decimal(told[it]) for it in ("threshold", "used_quantity")] == [Decimal("0.8"), 9]
    page = " ".join(world.ask("--org", ACME, "--metric", "calls").output.split())
    assert "80% of the limit on 2024-03-30: 9 of 10 calls, raised 2024-04-01 02:00:00" in page
    assert world.answer("--user", ADA, "--metric", "calls")["alerts"] == []


def test_an_alert_of_a_member_is_one_of_the_user(world: World, alert: None) -> None:
    world.source.execute(
        "insert into usage.usage_alerts (scope, user_id, org_id, metric_type, month, threshold,"
        " used_quantity, limit_quantity, usage_date, snapshot_id, raised_at) values ('member', %s,"
        " %s, 'calls', '2024-03-01', 0.125, 9, 72, '2024-03-30', 'x', '2024-04-01 06:00+00')",
        (ADA, ACME),
    )
    for words in (["--user", ADA], ["--user", ADA, "--org", ACME]):
        (told,) = world.answer(*words, "--metric", "calls")["alerts"]
        assert (told["scope"], Decimal(told["limit_quantity"])) == ("member", 72)
    page = " ".join(world.ask("--user", ADA, "--metric", "calls").output.split())
    assert f"12.5% of the limit as a member of {ACME} on 2024-03-30: 9 of 72 calls" in page
    (told,) = world.answer("--org", ACME, "--metric", "calls")["alerts"]
    assert told["scope"] == "org"


def test_the_number_is_told_though_postgres_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_PUBLISH_DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/app")
    page = world.ask("--user", BOB, "--metric", "calls")
    assert page.exit_code == 1
    assert "8 calls, 1 event" in page.output
    assert "the same in DuckDB, Parquet" in page.output
    assert "not known, since Postgres cannot be read" in page.output
    assert "secret" not in page.output


def test_a_place_that_says_something_else_is_named(world: World) -> None:
    change = "update usage.usage_monthly set total_quantity = total_quantity {} where user_id = %s"
    world.source.execute(change.format("+ 1"), (BOB,))
    try:
        page = world.ask("--user", BOB, "--metric", "calls")
    finally:
        world.source.execute(change.format("- 1"), (BOB,))
    assert page.exit_code == 1
    assert "NOT THE SAME in Postgres: 9 calls, 1 event" in page.output
    assert "the same in DuckDB, Parquet" in page.output


def test_days_in_flux_are_named(world: World) -> None:
    state = world.settings.home / "warehouse.json"
    before = state.read_text()
    recorded = json.loads(before)
    state.write_text(json.dumps(recorded | {"pending": [["2024-03-30", "2024-03-31"]]}))
    try:
        answer = world.answer("--user", ADA, "--metric", "calls")
    finally:
        state.write_text(before)
    assert answer["waiting"] == [["2024-03-30", "2024-03-31"]]


def test_it_starts_neither_dbt_nor_dagster(world: World) -> None:
    settings = world.settings
    program = (
        "import sys; from usage_pipeline.cli.main import app;"
        "app(['explain', '--platform', '--month', '2024-03', '--metric', 'calls'],"
        " standalone_mode=False);"
        "assert not {'dagster', 'dbt', 'dbt.version'} & set(sys.modules), 'imported'"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "USAGE_HOME": str(settings.home),
            "USAGE_METERS_FILE": str(settings.meters_file),
            "USAGE_TIMEZONE": settings.timezone,
            "USAGE_APP_DATABASE_URL": world.source.url,
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_copy_of_the_snapshot_answers_too(world: World, tmp_path: Any) -> None:
    copy = tmp_path / "copied.duckdb"
    copy.write_bytes(world.settings.snapshot_path.read_bytes())
    with duckdb.connect() as db:
        db.execute(f"attach '{copy}' as there (read_only); use there")
        ((found,),) = db.execute("select count(*) from usage_daily_as_of(now())").fetchall()
    assert found == 6  # three of each day


def test_several_ask_one_process_at_once(world: World) -> None:
    question = Question("calls", date(2024, 3, 1), org_id=UUID(ACME))
    alone = explain(world.settings, question)
    assert set(alone.places) == {"DuckDB", "Parquet", "Postgres"}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: explain(world.settings, question), range(24)))
    assert answers == [alone] * 24
