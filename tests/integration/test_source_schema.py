"""A source whose schema moves on: what keeps running, what stops, and what says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from support import AppDatabase, assert_published_alike, day, roll_up, snapshot_query

from usage_pipeline.app_db.schema_drift import recent_changes
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.accounts import land_accounts
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.orchestration.checks import build_checks
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

DAY = "2024-03-30"
ADA, ORG = (str(UUID(int=n << 96)) for n in (0xADA, 0x06))
WEEK = timedelta(days=7)


@pytest.fixture
def source(new_database: Any) -> AppDatabase:
    """Narrow types, as an application begins with them; one event of 1.25 and one of 2."""
    database: AppDatabase = new_database()
    database.execute(
        "create type event_kind as enum ('api_call', 'storage_used');"
        "alter table usage_events alter event_type type event_kind using event_type::event_kind,"
        " alter quantity type numeric(10, 2), add note varchar(20);"
        "alter table subscriptions alter plan type varchar(20), alter status type varchar(20);"
        "alter table plan_limits alter limit_quantity type integer"
    )
    database.insert("users", [(ADA, "ada@example.com", "2024-01-01T00:00Z", None)])
    database.insert("orgs", [(ORG, "Org", "2024-01-01T00:00Z", None)])
    database.insert(
        "subscriptions",
        [(str(UUID(int=9)), None, ORG, "pro", "active", "2024-01-02T00:00Z", None)],
    )
    database.insert("plan_limits", [("pro", "api_call", 100)])
    add_event(database, 1, "api_call", "1.25")
    add_event(database, 2, "api_call", "2")
    return database


def add_event(database: AppDatabase, number: int, event_type: str, quantity: str) -> None:
    database.execute(
        "insert into usage_events (id, user_id, org_id, event_type, event_data, quantity,"
        " created_at) values (%s, %s, %s, %s, '{\"ms\": 1}', %s, '2024-03-30T12:00Z')",
        (str(UUID(int=number)), ADA, ORG, event_type, quantity),
    )


@pytest.fixture
def settings(source: AppDatabase, make_settings: Callable[..., Settings]) -> Settings:
    """A home in which the day is landed with the schema as it is at first."""
    made = make_settings(USAGE_APP_DATABASE_URL=source.url)
    land(made)
    return made


def land(settings: Settings) -> None:
    land_accounts(settings)
    land_events(settings, [date.fromisoformat(DAY)])


def totals(settings: Settings) -> list[tuple[Any, ...]]:
    return snapshot_query(settings, "select sum(total_quantity), sum(event_count) from usage_daily")


def changes(settings: Settings) -> list[str]:
    return [found.change for found in recent_changes(settings, WEEK)]


def checked(settings: Settings) -> dict[str, dict[str, Any]]:
    """The metadata of the two checks of the source where they warn."""
    rollup = Rollup(settings)
    found = {}
    for check in build_checks(rollup):
        name = min(key.name for key in check.check_keys)
        if name in ("source_schema_is_unchanged", "event_types_are_known"):
            result: Any = check(rollup)
            if not result.passed:
                assert result.severity == dg.AssetCheckSeverity.WARN
                found[name] = {key: value.value for key, value in result.metadata.items()}
    return found


def test_what_is_seen_first_is_no_change(settings: Settings) -> None:
    assert changes(settings) == []
    assert checked(settings) == {}
    tables = json.loads(settings.source_schema_path.read_text())["tables"]
    assert tables["public.usage_events"]["quantity"] == "numeric(10,2)"
    assert tables["public.usage_events"]["event_type = 'api_call'"] == "label of the enum"
    assert tables["public.users"]["email"] == "text"  # its name, which nobody has to be told
    assert "ada@example.com" not in settings.source_schema_path.read_text()
    assert "public.org_webhooks" not in tables  # no query reads it


def test_new_columns_labels_and_types_are_listed_once_and_keep_running(
    source: AppDatabase, settings: Settings
) -> None:
    """Totals by hand: 1.25 + 2 + 0.000000001 + 4; the event of the new type is set aside."""
    source.execute(
        "alter table usage_events alter quantity type numeric, alter event_data type json,"
        " drop note, add region text, alter id type text, alter user_id type text,"
        " alter org_id type text;"
        "alter table users alter id type text;"
        "alter table orgs alter id type text;"
        "alter table subscriptions drop constraint subscriptions_status_check;"
        "create type state as enum ('active', 'canceled');"
        "alter table subscriptions alter plan type text, alter org_id type text,"
        " alter status type state using status::state;"
        "alter table plan_limits alter limit_quantity type bigint"
    )
    source.execute("alter type event_kind add value 'fax_sent'")
    add_event(source, 3, "api_call", "0.000000001")
    add_event(source, 4, "storage_used", "4")
    add_event(source, 5, "fax_sent", "8.50000000000012")
    roll_up(settings, day(DAY))
    assert totals(settings) == [(Decimal("7.250000001"), 4)]
    assert_published_alike(settings, source.url)
    assert snapshot_query(
        settings, "select event_type, reason, quantity from invalid_usage_events"
    ) == [("fax_sent", "event_type is not known", "8.50000000000012")]  # as it was, not rounded
    assert snapshot_query(
        settings,
        "select plan, active_subscriptions from subscriptions_by_plan_daily"
        f" where metric_date = '{DAY}'",
    ) == [("pro", 1)]
    expected = [
        "public.orgs.id was uuid, is text",
        "public.plan_limits.limit_quantity was integer, is bigint",
        "public.subscriptions.org_id was uuid, is text",
        "public.subscriptions.plan was character varying(20), is text",
        "public.subscriptions.status was character varying(20), is state",
        "public.subscriptions.status = 'active' is new (label of the enum)",
        "public.subscriptions.status = 'canceled' is new (label of the enum)",
        "public.users.id was uuid, is text",
        "public.usage_events.event_data was jsonb, is json",
        "public.usage_events.event_type = 'fax_sent' is new (label of the enum)",
        "public.usage_events.id was uuid, is text",
        "public.usage_events.note is gone (character varying(20))",
        "public.usage_events.org_id was uuid, is text",
        "public.usage_events.quantity was numeric(10,2), is numeric",
        "public.usage_events.region is new (text)",
        "public.usage_events.user_id was uuid, is text",
    ]
    assert sorted(changes(settings)) == sorted(expected)
    assert checked(settings)["source_schema_is_unchanged"]["changes"].keys() == set(expected)
    assert checked(settings)["event_types_are_known"] == {
        "events by type": {"fax_sent": "1 from 2024-03-30 to 2024-03-30"},
        "unknown types": 1,
    }
    land(settings)
    assert sorted(changes(settings)) == sorted(expected)


def test_a_dropped_column_stops_with_its_name_and_the_next_good_run_repairs(
    source: AppDatabase, settings: Settings
) -> None:
    roll_up(settings, day(DAY))
    inode = settings.snapshot_path.stat().st_ino
    source.execute("alter table usage_events rename quantity to amount")
    with pytest.raises(UsagePipelineError, match=r'column "quantity" does not exist') as stopped:
        roll_up(settings, day(DAY))
    assert stopped.value.remedy == "Map your columns in usage_pipeline/app_db/queries/"
    assert settings.snapshot_path.stat().st_ino == inode
    assert totals(settings) == [(Decimal("3.25"), 2)]
    source.execute("alter table usage_events rename amount to quantity")
    add_event(source, 3, "api_call", "1")
    roll_up(settings, day(DAY))
    assert totals(settings) == [(Decimal("4.25"), 3)]
    assert_published_alike(settings, source.url)


def test_old_changes_and_a_damaged_file_are_no_recent_changes(settings: Settings) -> None:
    content = json.loads(settings.source_schema_path.read_text())
    eight_days_ago = datetime.now(UTC) - timedelta(days=8)
    content["changes"] = [{"seen_at": eight_days_ago.isoformat(), "change": "users.id is new"}]
    settings.source_schema_path.write_text(json.dumps(content))
    assert changes(settings) == []
    settings.source_schema_path.write_text("{")
    assert changes(settings) == []
    land(settings)
    assert changes(settings) == []
    assert "public.users" in settings.source_schema_path.read_text()
