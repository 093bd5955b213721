"""Nights stop: what readers see becomes old, and the UI, the policy and `status` turn red."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import pytest
from dagster._core.definitions.freshness import CronFreshnessPolicy
from support import days, roll_up, triggers
from typer.testing import CliRunner

from usage_pipeline.audit.freshness import freshness
from usage_pipeline.cli.main import app
from usage_pipeline.days import DayRange
from usage_pipeline.definitions import build_defs
from usage_pipeline.orchestration.checks.freshness import FRESH
from usage_pipeline.serving.tables import RECORDS
from usage_pipeline.settings import Settings

ZONE = "America/New_York"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def stopped(new_database: Any, make_settings: Any) -> Settings:
    """Three nights were published; the last four were not."""
    settings: Settings = make_settings(
        USAGE_APP_DATABASE_URL=new_database().url, USAGE_TIMEZONE=ZONE, USAGE_START_DATE=ago(7)
    )
    roll_up(settings, DayRange(ago(7), ago(4)))
    return settings


def ago(days: int) -> Any:
    return datetime.now(ZoneInfo(ZONE)).date() - timedelta(days)


def tick(
    instance: dg.DagsterInstance, settings: Settings, cursor: str | None
) -> tuple[str | None, str | None]:
    """One evaluation as the daemon does it; the check's status in the UI, and the cursor."""
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        found = triggers(settings)["published_is_fresh"](context)
    for event in getattr(found, "asset_events", ()):
        instance.report_runless_asset_event(event)
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([FRESH])
    shown = latest.get(FRESH)
    return shown.status.value if shown else None, getattr(found, "cursor", cursor)


def status(settings: Settings, monkeypatch: pytest.MonkeyPatch, home: Path) -> Any:
    monkeypatch.chdir(home)
    for name in ("USAGE_HOME", "USAGE_APP_DATABASE_URL", "USAGE_TIMEZONE", "USAGE_START_DATE"):
        value = getattr(settings, name.removeprefix("USAGE_").lower())
        secret = getattr(value, "get_secret_value", lambda value=value: value)()
        monkeypatch.setenv(name, str(secret))
    return CliRunner().invoke(app, ["status"])


def test_when_nights_stop_every_place_turns_red(
    stopped: Settings,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    shown, cursor = tick(instance, stopped, None)
    assert shown == "FAILED"
    red = status(stopped, monkeypatch, tmp_path)
    assert red.exit_code == 1
    assert f"{ago(4)} is not published; it was due at {ago(3)} 06:00 E" in red.output
    assert f"usage-pipeline rollup --start {ago(4)} --end" in red.output
    assert max(map(len, red.output.splitlines())) <= 80
    assert "usage_daily" in red.output  # the published tables

    # Landing alone changes nothing for readers.
    from usage_pipeline.landing.replacement import land_events

    missed = DayRange(ago(4), ago(0))
    land_events(stopped, missed.days())
    assert tick(instance, stopped, cursor) == ("FAILED", cursor)

    roll_up(stopped, missed)
    shown, cursor = tick(instance, stopped, cursor)
    assert shown == "SUCCEEDED"
    green = status(stopped, monkeypatch, tmp_path)
    assert green.exit_code == 0, green.output
    assert "Fresh" in green.output


def test_nothing_published_is_not_fresh(make_settings: Any) -> None:
    settings = make_settings(USAGE_TIMEZONE=ZONE, USAGE_START_DATE=ago(3))
    seen = freshness(settings)
    assert not seen.fresh
    assert seen.missing.start == ago(3)
    assert freshness(
        make_settings(USAGE_TIMEZONE=ZONE, USAGE_START_DATE=ago(0))
    ).fresh  # none is due


def test_a_hole_in_what_is_published_is_not_fresh(make_settings: Any) -> None:
    settings = make_settings(USAGE_TIMEZONE=ZONE, USAGE_START_DATE="2024-03-01")
    now = datetime.fromisoformat("2024-03-10T12:00Z")
    settings.home.mkdir()
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute("create table usage_daily (usage_date date)")
        db.execute(
            "create table published_days as select cast('2024-03-01' as date) + cast(n as integer)"
            " as usage_date from range(9) as days (n)"
        )
    assert freshness(settings, now).fresh
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute("delete from published_days where usage_date in ('2024-03-03', '2024-03-04')")
    seen = freshness(settings, now)
    assert str(seen) == "Late: 2024-03-03 is not published; it was due at 2024-03-04 06:00 EST."
    assert seen.missing == days("2024-03-03", "2024-03-05")


@pytest.mark.parametrize(
    ("now", "days_due"),
    [  # the clock goes forward on 2024-03-10: 05:59 is 09:59Z from then on, 10:59Z before
        ("2024-03-10T09:59Z", 1),
        ("2024-03-10T10:00Z", 2),
        ("2024-03-11T09:59Z", 2),
        ("2024-03-11T10:00Z", 3),
    ],
)
def test_a_day_is_due_at_six_of_the_next_local_day(
    now: str, days_due: int, make_settings: Any
) -> None:
    settings = make_settings(USAGE_TIMEZONE=ZONE, USAGE_START_DATE="2024-03-08")
    assert len(freshness(settings, datetime.fromisoformat(now)).missing.days()) == days_due


def test_published_assets_have_a_freshness_policy_of_the_night(make_settings: Any) -> None:
    graph = build_defs(make_settings(USAGE_TIMEZONE=ZONE)).resolve_asset_graph()
    for name in ("snapshot", "parquet", "postgres", *RECORDS, "usage_reconciliation"):
        policy = graph.get(dg.AssetKey(["publishing", name])).freshness_policy
        assert isinstance(policy, CronFreshnessPolicy)
        assert (policy.deadline_cron, policy.timezone) == ("0 6 * * *", ZONE)
