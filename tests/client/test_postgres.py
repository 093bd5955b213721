"""Straight to a real Postgres: events into the application's table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from support import AppDatabase

from usage_pipeline.client import UsageClient, UsageError

USER, ORG = "5f0c8c9e-8f6e-4d0e-9a44-0c1b2d3e4f50", "0e4a6f6c-19e5-4f4c-8f3a-7d2f1a9b8c7d"
AT = datetime(2026, 5, 4, 1, 2, 3, 456789, UTC)


@pytest.fixture(scope="module")
def database(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    return made


@pytest.fixture
def client(database: AppDatabase, no_pauses: None) -> Iterator[UsageClient]:
    database.execute("truncate usage_events")
    with UsageClient(database.url, exit_timeout=60) as made:
        yield made


def test_an_event_is_inserted_as_it_was_logged(database: AppDatabase, client: UsageClient) -> None:
    known = client.log_usage(USER, "ai_tokens_used", "12.5", ORG, {"it's": [1, "ü%s"]}, AT)
    plain = client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert database.query(
        "select id::text, user_id::text, org_id::text, event_type, event_data, quantity, created_at"
        " from usage_events order by created_at limit 1"
    ) == [(str(known), USER, ORG, "ai_tokens_used", {"it's": [1, "ü%s"]}, Decimal("12.5"), AT)]
    assert database.query(
        "select id::text, org_id, event_data, quantity from usage_events where org_id is null"
    ) == [(str(plain), None, None, 1)]


def test_an_id_counts_once(database: AppDatabase, client: UsageClient) -> None:
    known = uuid4()
    for quantity in (1, 2):
        client.log_usage(USER, "api_call", quantity, id=known)
        assert client.flush(60)
    client.log_usage(USER, "api_call", 3, id=known)
    client.log_usage(USER, "api_call", 4, id=known)
    assert client.flush(60)
    assert database.query("select quantity from usage_events") == [(1,)]
    assert client.sent == 4


def test_a_connection_that_broke_is_opened_again(
    database: AppDatabase, client: UsageClient
) -> None:
    client.log_usage(USER, "api_call")
    assert client.flush(60)
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'usage-pipeline-client'"
    )
    for _ in range(150):
        client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert database.query("select count(*), count(distinct id) from usage_events") == [(151, 151)]
    assert (client.sent, client.rejected) == (151, 0)


def test_a_row_that_the_table_refuses_stops_no_other(
    database: AppDatabase, client: UsageClient, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("create type known as enum ('api_call', 'user_active')")
    database.execute(
        "create table app_events (like usage_events including all,"
        " constraint small check (quantity < 1000))"
    )
    database.execute("alter table app_events alter event_type type known using 'api_call'::known")
    database.execute("create role writer login; grant insert on app_events to writer")
    url = database.url.replace("postgres@", "writer@")
    with UsageClient(url, events_table="public.app_events", exit_timeout=60) as straight:
        for number in range(120):
            straight.log_usage(USER, "api_call", number)
        straight.log_usage(USER, "unknown_label", 500)
        straight.log_usage(USER, "api_call", 1000)
        straight.log_usage(USER, "api_call", 501, event_data={"a": "nul \0"})
        straight.log_usage(USER, "user_active", 999)
        assert straight.flush(60)
        assert (straight.sent, straight.rejected) == (121, 3)
    assert database.query("select sum(quantity), count(*) from app_events") == [
        (119 * 120 // 2 + 999, 121)
    ]
    assert "nul" not in caplog.text


def test_a_table_that_is_missing_costs_no_event_when_it_comes(
    database: AppDatabase, client: UsageClient
) -> None:
    with UsageClient(database.url, events_table="later", exit_timeout=60) as straight:
        for _ in range(3):
            straight.log_usage(USER, "api_call")
        assert not straight.flush(0.2)
        database.execute("create table later (like usage_events including all)")
        assert straight.flush(60)
    assert database.query("select count(*) from later") == [(3,)]


def test_what_postgres_cannot_do_is_an_error(client: UsageClient) -> None:
    with pytest.raises(UsageError, match="Postgres starts none"):
        client.trigger_usage_aggregation()
    with pytest.raises(UsageError, match=r"usage\.usage_aggregations"):
        list(client.get_aggregated_usage(USER))


def test_a_server_that_is_away_is_an_error_for_readers_only(no_pauses: None) -> None:
    client = UsageClient("postgresql://nobody@127.0.0.1:1/none")
    assert client.log_usage(USER, "api_call")
    assert not client.flush(0.2)
    with pytest.raises(UsageError, match="Postgres gave no usage"):
        client.get_usage_limits(USER)
    client.close(0)
    assert (client.pending, client.sent, client.dropped) == (1, 0, 0)
