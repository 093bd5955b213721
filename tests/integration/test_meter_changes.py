"""`meters diff`, `plan` and `apply` on a home with two months, against numbers added up by hand."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, days, roll_up, snapshot_query
from typer.testing import CliRunner, Result

from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.meters.comparison import compare_meters
from usage_pipeline.meters.file import parse_meters
from usage_pipeline.meters.version import meters_version
from usage_pipeline.operations import meter_changes
from usage_pipeline.operations.meter_changes import Example, MonthChange
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

ADA, BOB = UUID(int=0xADA << 96), UUID(int=0xB0B << 96)
MARCH, APRIL = date(2024, 3, 1), date(2024, 4, 1)
RANGE = days("2024-03-31", "2024-04-02")
OLD = """
meters:
  - {key: calls, event_type: api_call, aggregation: sum, value: quantity, description: Calls}
  - {key: tokens, event_type: ai_tokens_used, aggregation: sum, value: $.n,
     filter: {$.model: [gpt-4]}}
  - {key: documents, event_type: record_created, aggregation: count}
  - {key: gone, event_type: api_call, aggregation: max, value: quantity}
"""
NEW = """
meters:
  - {key: calls, event_type: api_call, aggregation: sum, value: quantity, description: All calls}
  - {key: tokens, event_type: ai_tokens_used, aggregation: sum, value: $.n,
     filter: {$.model: [gpt-4, gpt-4o]}}
  - {key: papers, event_type: record_created, aggregation: count, unit: papers}
  - {key: mean, event_type: api_call, aggregation: avg, value: quantity}
"""
EVENTS = [
    (ADA, "api_call", None, 5, "2024-03-31"),
    (ADA, "api_call", None, 2, "2024-03-31"),
    (BOB, "api_call", None, 4, "2024-04-01"),
    (ADA, "ai_tokens_used", '{"n": 10, "model": "gpt-4"}', 1, "2024-03-31"),
    (ADA, "ai_tokens_used", '{"n": 30, "model": "gpt-4o"}', 1, "2024-03-31"),
    (BOB, "ai_tokens_used", '{"n": 7, "model": "gpt-4o"}', 1, "2024-04-01"),
    (ADA, "record_created", None, 1, "2024-03-31"),
    (ADA, "record_created", None, 1, "2024-03-31"),
]

PLANNED = [  # rows added, removed and changed; totals before and after
    MonthChange("documents", MARCH, 0, 1, 0, Decimal(2), None),
    MonthChange("gone", MARCH, 0, 1, 0, Decimal(5), None),
    MonthChange("gone", APRIL, 0, 1, 0, Decimal(4), None),
    MonthChange("mean", MARCH, 1, 0, 0, None, Decimal("3.5")),
    MonthChange("mean", APRIL, 1, 0, 0, None, Decimal(4)),
    MonthChange("papers", MARCH, 1, 0, 0, None, Decimal(2)),
    MonthChange("tokens", MARCH, 0, 0, 1, Decimal(10), Decimal(40)),
    MonthChange("tokens", APRIL, 1, 0, 0, None, Decimal(7)),
]


@dataclass
class World:
    settings: Settings
    changed: Settings
    source: AppDatabase
    make_settings: Callable[..., Settings]

    def command(self, *words: str, meters: Path | None = None) -> Result:
        url = self.settings.app_database_url
        assert url
        variables = {
            "USAGE_HOME": str(self.settings.home),
            "USAGE_METERS_FILE": str(meters or self.settings.meters_file),
            "USAGE_APP_DATABASE_URL": url.get_secret_value(),
            "COLUMNS": "120",
        }
        return CliRunner().invoke(app, ["meters", *words], env=variables)

    def state(self) -> dict[str, tuple[int, int]]:
        """Every file of the home, but those of the embedded database and of waiting."""
        found = (path for path in self.settings.home.rglob("*") if path.is_file())
        return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


@pytest.fixture(scope="module")
def world(new_database: Any, make_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    source: AppDatabase = new_database()
    source.insert(
        "usage_events",
        [
            (str(UUID(int=n)), str(user), None, kind, data, quantity, f"{on}T12:00Z")
            for n, (user, kind, data, quantity, on) in enumerate(EVENTS, 1)
        ],
    )
    folder = tmp_path_factory.mktemp("meters")
    for name, text in (("old.yml", OLD), ("new.yml", NEW)):
        (folder / name).write_text(text)
    settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_METERS_FILE=folder / "old.yml"
    )
    roll_up(settings, RANGE)
    changed = settings.model_copy(update={"meters_file": folder / "new.yml"})
    return World(settings, changed, source, make_settings)


def test_what_became_of_each_meter(world: World) -> None:
    old, new = (parse_meters(s.meters_file) for s in (world.settings, world.changed))
    found = compare_meters(old, new)
    assert [meter.key for meter in found.added] == ["mean"]
    assert [meter.key for meter in found.removed] == ["gone"]
    assert [(a.key, b.key) for a, b in found.renamed] == [("documents", "papers")]
    assert [b.key for _, b in found.redefined] == ["tokens"]
    assert [b.key for _, b in found.reworded] == ["calls"]
    assert not compare_meters(old, old).changes_numbers


def test_the_plan_says_what_would_change_and_changes_nothing(world: World) -> None:
    before = world.state()
    with writer.exclusive(world.settings, "a night"):  # which it neither waits for nor stops
        found = meter_changes.plan(
            world.settings,
            parse_meters(world.changed.meters_file),
            lambda what, done, total: None,
        )
    after = world.state()
    assert {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)} <= {
        str(world.settings.home / "writer.lock")
    }
    assert found.months == PLANNED
    assert found.unlike == []
    assert Example("tokens", MARCH, ADA, None, Decimal(10), Decimal(40)) in found.examples
    assert Example("gone", APRIL, BOB, None, Decimal(4), None) in found.examples


def test_the_commands_tell_it(world: World) -> None:
    told = world.command("plan", str(world.changed.meters_file))
    assert told.exit_code == 0, told.output
    for line in (
        "> documents is renamed to papers",
        "+ mean: average quantity of events api_call",
        "- gone: greatest quantity of events api_call",
        "    filter: $.model gpt-4 → $.model gpt-4/gpt-4o",
        "Rows of usage_monthly: 4 added, 3 removed, 1 changed. For example:",
        f"  tokens 2024-03 user {ADA}: 10 → 40",
    ):
        assert line in told.output.splitlines(), told.output
    same = world.command("plan")
    assert "No number changes." in same.output
    assert "No published row would change." in same.output

    missing = world.command("plan", "nowhere.yml")
    assert isinstance(missing.exception, UsagePipelineError)
    assert "nowhere.yml cannot be read" in str(missing.exception)


def test_versions_are_files_git_revisions_and_what_is_published(
    world: World, tmp_path: Path
) -> None:
    def git(*words: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    file = tmp_path / "meters.yml"
    shutil.copy(world.settings.meters_file, file)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "old")
    shutil.copy(world.changed.meters_file, file)
    for revision in ("HEAD", "published", str(world.settings.meters_file)):
        told = world.command("diff", revision, meters=file)
        assert told.exit_code == 1, told.output
        assert "> documents is renamed to papers" in told.output
    same = world.command("diff")
    assert (same.exit_code, same.output) == (0, "No number changes.\n")
    unknown = world.command("diff", "v99", meters=file)
    assert "'v99' is no file, and no revision of" in str(unknown.exception)
    assert "Name a file, a git revision, or `published`" in str(unknown.exception)

    (tmp_path / "taken:.").mkdir()  # where git would write, were this an option of its own
    option = world.command("diff", "--", f"--output={tmp_path}/taken", meters=file)
    assert "is no file, and no revision of" in str(option.exception)
    assert not [*(tmp_path / "taken:.").iterdir()]


def test_a_home_that_does_not_say_its_meters_has_all_of_them_built(world: World) -> None:
    """As an older release left it."""
    home = world.settings.home.with_name("older")
    shutil.copytree(world.settings.home, home)
    settings = world.settings.model_copy(update={"home": home})
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute("delete from usage_snapshots")
    found = meter_changes.plan(
        settings, parse_meters(world.changed.meters_file), lambda what, done, total: None
    )
    assert (found.comparison, found.months) == (None, PLANNED)
    with pytest.raises(UsagePipelineError, match="does not say by which meters"):
        meter_changes.meters_of(settings, "published")


def test_applied_it_is_as_planned_and_the_ledger_names_the_change(world: World) -> None:
    """Last, since it changes the home."""
    ((before,),) = snapshot_query(world.settings, "select published_at from snapshot")
    monthly = "select metric_type, month::text, total_quantity, event_count from {}"
    then = sorted(snapshot_query(world.settings, monthly.format("usage_monthly")))

    told = world.command("apply", meters=world.changed.meters_file)

    assert told.exit_code == 0, told.output
    assert "4 rows of usage_monthly added, 1 changed, 3 removed." in told.output
    tables = assert_published_alike(world.changed, world.source.url)
    assert sorted(
        (r["metric_type"], str(r["month"]), r["total_quantity"])
        for r in tables["platform_usage_monthly"]
    ) == [
        ("calls", "2024-03-01", 7),
        ("calls", "2024-04-01", 4),
        ("mean", "2024-03-01", Decimal("3.5")),
        ("mean", "2024-04-01", 4),
        ("papers", "2024-03-01", 2),
        ("tokens", "2024-03-01", 40),
        ("tokens", "2024-04-01", 7),
    ]
    version = meters_version(parse_meters(world.changed.meters_file))
    assert {(r["cause"], r["run_id"]) for r in tables["usage_restatements"]} == {
        ("rebuild", f"meters-{version}")
    }
    assert tables["usage_snapshots"][-1]["meters_version"] in (
        version,
        meters_version(parse_meters(world.settings.meters_file)),
    )
    assert {r["meters_version"] for r in tables["usage_snapshots"]} == {
        version,
        meters_version(parse_meters(world.settings.meters_file)),
    }
    as_of = f"usage_monthly_as_of('{before.isoformat()}')"
    assert sorted(snapshot_query(world.changed, monthly.format(as_of))) == then
    again = world.command("apply", meters=world.changed.meters_file)
    assert again.output.strip() == "What is published is of these meters already."
