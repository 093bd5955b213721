"""`usage.rolled_up`: organisations with a webhook are told of each day whose totals changed."""

from __future__ import annotations

import itertools
import tracemalloc
from datetime import datetime
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, day, days, roll_up, snapshot_query

from usage_pipeline.alerts import outbox, rolled_up
from usage_pipeline.alerts.rolled_up import announce, is_behind
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

ADA, BOB = UUID(int=21), UUID(int=22)
ACME, SILENT, DISABLED = UUID(int=1), UUID(int=2), UUID(int=3)
RANGE = days("2024-03-30", "2024-04-02")
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    joined = "2024-01-05T10:00Z"
    made.insert("users", [(str(person), None, joined, None) for person in (ADA, BOB)])
    made.insert("orgs", [(str(org), None, joined, None) for org in (ACME, SILENT, DISABLED)])
    for org, enabled in ((ACME, True), (ACME, True), (DISABLED, False)):
        hook = str(UUID(int=next(NUMBERS)))
        made.insert("org_webhooks", [(hook, str(org), "https://a", "b", enabled, joined)])
    return made


@pytest.fixture(scope="module")
def settings(source: AppDatabase, make_settings: Any) -> Settings:
    made: Settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    return made


def add_event(
    source: AppDatabase, user: UUID, org: UUID | None, event_type: str, quantity: str, *, at: str
) -> str:
    event = str(UUID(int=next(NUMBERS)))
    source.insert(
        "usage_events",
        [(event, str(user), org and str(org), event_type, None, quantity, f"{at}T12:00Z")],
    )
    return event


def told(source: AppDatabase, since: int) -> list[dict[str, Any]]:
    """Payloads of the messages that are new."""
    rows = source.query(
        "select event_type, org_id, user_id, payload from usage.outbox_messages"
        " order by created_at, payload ->> 'usage_date' offset %s",
        [since],
    )
    assert {row[:3] for row in rows} <= {("usage.rolled_up", str(ACME), None)}
    return [payload for *_, payload in rows]


def total(quantity: str, events: int, users: int = 1) -> dict[str, Any]:
    return {"total_quantity": quantity, "event_count": events, "active_users": users}


def test_each_changed_day_is_told_once(source: AppDatabase, settings: Settings) -> None:
    for at in ("2024-03-30", "2024-03-31", "2024-04-01"):
        for org in (ACME, SILENT, DISABLED, None):
            add_event(source, ADA, org, "api_call", "1", at=at)

    # The first look at a history tells nobody.
    roll_up(settings, day("2024-03-30"))
    assert announce(settings) == 0

    # New days are told, with all their totals.
    add_event(source, BOB, ACME, "api_call", "2.5", at="2024-03-31")
    add_event(source, BOB, ACME, "ai_tokens_used", "-0.000000001", at="2024-03-31")
    roll_up(settings, RANGE)
    assert announce(settings) == 2
    assert announce(settings) == 0
    first, second = told(source, 0)
    ((snapshot_id, published_at, zone),) = snapshot_query(
        settings, "select snapshot_id, published_at, timezone from snapshot"
    )
    assert datetime.fromisoformat(first.pop("published_at")) == published_at
    assert first == {
        "org_id": str(ACME),
        "usage_date": "2024-03-31",
        "timezone": zone,
        "snapshot_id": snapshot_id,
        "totals": {
            "api_call": total("3.5", 2, users=2),
            "ai_tokens_used": total("-0.000000001", 1),
        },
    }
    assert (second["usage_date"], second["totals"]) == ("2024-04-01", {"api_call": total("1", 1)})

    # So is a correction, and a day that is empty now; by the next look, when one fails.
    late = add_event(source, ADA, ACME, "api_call", "10", at="2024-03-31")
    roll_up(settings, RANGE)
    source.execute("alter table org_webhooks rename to elsewhere")
    with pytest.raises(UsagePipelineError, match=r"no webhook was told: .*org_webhooks"):
        Rollup(settings).announce_days()
    assert is_behind(settings)
    source.execute("alter table elsewhere rename to org_webhooks")
    source.execute("delete from usage_events where created_at::date = '2024-04-01'")
    roll_up(settings, RANGE)
    assert announce(settings) == 2
    corrected, emptied = told(source, 2)
    assert corrected["totals"]["api_call"] == total("13.5", 3, users=2)
    assert corrected["totals"]["ai_tokens_used"] == total("-0.000000001", 1)
    assert (emptied["usage_date"], emptied["totals"]) == ("2024-04-01", {})
    assert datetime.fromisoformat(corrected["published_at"]) > published_at

    assert not is_behind(settings)

    # What was, is told again when it is so again.
    source.execute("delete from usage_events where id = %s", [late])
    roll_up(settings, RANGE)
    assert announce(settings) == 1
    assert told(source, 4)[0]["totals"] == first["totals"]

    # Two users change, and the organisation's total does not; the warehouse is built anew.
    source.execute(
        "update usage_events set quantity = case when user_id = %s then 2 else 1.5 end"
        " where org_id = %s and event_type = 'api_call' and created_at::date = '2024-03-31'",
        [str(ADA), str(ACME)],
    )
    settings.warehouse_path.unlink()
    roll_up(settings, RANGE)
    assert announce(settings) == 0
    assert outbox.waiting(settings).due == 5


def test_many_organisations_are_told_some_at_once(
    new_database: Any, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 organisations with seven meters each, of which a hundred are held at once."""
    monkeypatch.setattr(rolled_up, "TOLD_TOGETHER", 100)
    monkeypatch.setattr(outbox, "ADDED_TOGETHER", 100)
    database = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    database.execute(
        "insert into org_webhooks select gen_random_uuid(), lpad(to_hex(n), 32, '0')::uuid,"
        " 'https://a', 'b', true, now() from generate_series(1, 2000) as n"
    )
    settings.published_path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute("""
            create table snapshot as
            select 'first' as snapshot_id, timestamptz '2024-03-01' as published_at,
                'UTC' as timezone;
            create table org_usage_daily as
            select date '2024-03-01' as usage_date, lpad(hex(n), 32, '0')::uuid as org_id,
                'metric ' || metric as metric_type, 1.5::decimal(38, 9) as total_quantity,
                1::bigint as event_count, 1::bigint as active_users
            from range(1, 2001) as orgs (n), range(7) as metrics (metric);
            create table usage_daily as
            select *, org_id as user_id, timestamptz '2024-03-02' as created_at,
                timestamptz '2024-03-02' as updated_at
            from org_usage_daily;
            create table usage_restatements (
                usage_date date, org_id uuid, restated_at timestamptz
            );
            create table usage_anomalies (
                usage_date date, scope varchar, user_id uuid, org_id uuid, metric_type varchar,
                rule varchar, kind varchar, quantity decimal(38, 9), expected decimal(38, 9),
                score decimal(38, 9)
            );
        """)
    assert announce(settings) == 0
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute("update snapshot set snapshot_id = 'next', published_at = '2024-03-02'")
    duckdb.execute("select ?", [1])  # which loads pandas
    tracemalloc.start()
    try:
        assert announce(settings) == 2_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # all of them were 11 million
    told = "select count(*), count(distinct org_id) from usage.outbox_messages"
    assert database.query(told) == [(2_000, 2_000)]
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute("update snapshot set snapshot_id = 'same', published_at = '2024-03-03'")
        db.execute("update usage_daily set updated_at = '2024-03-03'")
        db.execute(
            "update org_usage_daily set total_quantity = 2 where metric_type = 'metric 3'"
            " and org_id in (select org_id from org_usage_daily order by 1 limit 70)"
        )
    assert announce(settings) == 10
