"""What the API answers, as types; and what it does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from usage_api import Call, Reply, UsageApi, document, hang_up, problem

import usage_pipeline.client
from usage_pipeline.client import (
    AsyncUsageClient,
    MetricSummary,
    UsageAggregation,
    UsageClient,
    UsageError,
    UsageLimit,
    UsageSummary,
    configure,
    get_aggregated_usage,
    get_usage_limits,
    get_usage_summary,
    log_usage,
    shared_client,
    trigger_usage_aggregation,
)

USER, ORG = "5f0c8c9e-8f6e-4d0e-9a44-0c1b2d3e4f50", "0e4a6f6c-19e5-4f4c-8f3a-7d2f1a9b8c7d"
SUMMARY = {
    "as_of_date": "2026-05-04",
    "window_start": "2026-04-28",
    "window_end": "2026-05-05",
    "snapshot_id": "s1",
    "items": [
        {
            "metric_type": "api_call",
            "total_quantity": "12345678901234567890.123456789",
            "previous_quantity": "0",
            "change_ratio": None,
            "event_count": 3,
            "something_new": 1,
        }
    ],
}
ROW = {
    "id": "11111111-1111-4111-8111-111111111111",
    "user_id": USER,
    "org_id": None,
    "period_type": "daily",
    "period_start": "2026-05-03T22:00:00Z",
    "period_end": "2026-05-04T22:00:00+00:00",
    "metric_type": "api_call",
    "total_quantity": "12.5",
    "metadata": {"event_count": 3, "active_days": 1},
    "created_at": "2026-05-05T01:00:00Z",
    "updated_at": "2026-05-05T01:00:00.5Z",
}
LIMIT = {
    "scope": "user",
    "user_id": USER,
    "org_id": None,
    "metric_type": "api_call",
    "month": "2026-05-01",
    "plan": "free",
    "used_quantity": "799",
    "limit_quantity": "1000",
    "used_ratio": "0.799",
    "status": "ok",
    "projected_limit_date": "2026-05-20",
}


@pytest.fixture(autouse=True)
def own_shared_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's client is of one test."""
    shared = usage_pipeline.client.shared._shared
    monkeypatch.setattr(shared, "client", None)
    yield
    if shared.client:
        shared.client.close(0)


def pages(call: Call) -> Reply:
    """Three rows on two pages."""
    cursor = {None: (["1", "2"], "c/2=="), "c/2==": (["3"], None)}
    numbers, following = cursor[call.query.get("cursor")]
    items = [{**ROW, "total_quantity": number} for number in numbers]
    return Reply(200, {"items": items, "next_cursor": following, "snapshot_id": "s1"})


def test_a_summary_has_decimals_and_dates(api: UsageApi, new_client: Any) -> None:
    api.always["/api/usage/summary"] = document(SUMMARY)
    assert new_client().get_usage_summary(USER, UUID(ORG), "week") == UsageSummary(
        as_of_date=date(2026, 5, 4),
        window_start=date(2026, 4, 28),
        window_end=date(2026, 5, 5),
        snapshot_id="s1",
        items=(
            MetricSummary(
                "api_call", Decimal("12345678901234567890.123456789"), Decimal(0), None, 3
            ),
        ),
    )
    (call,) = api.calls
    assert (call.method, call.query) == (
        "GET",
        {"user_id": USER, "org_id": ORG, "period": "week"},
    )
    assert call.headers["authorization"] == "Bearer uk_1_secret"


def test_aggregated_usage_is_read_page_by_page(api: UsageApi, new_client: Any) -> None:
    api.always["/api/usage/aggregated"] = pages
    rows = new_client().get_aggregated_usage(
        USER, None, "monthly", date(2026, 5, 1), datetime(2026, 6, 1, tzinfo=UTC), "api_call"
    )
    assert api.calls == []
    assert next(rows) == UsageAggregation(
        id=UUID("11111111-1111-4111-8111-111111111111"),
        user_id=UUID(USER),
        org_id=None,
        period_type="daily",
        period_start=datetime(2026, 5, 3, 22, tzinfo=UTC),
        period_end=datetime(2026, 5, 4, 22, tzinfo=UTC),
        metric_type="api_call",
        total_quantity=Decimal(1),
        metadata={"event_count": 3, "active_days": 1},
        created_at=datetime(2026, 5, 5, 1, tzinfo=UTC),
        updated_at=datetime(2026, 5, 5, 1, tzinfo=UTC) + timedelta(seconds=0.5),
    )
    assert len(api.calls) == 1
    assert [row.total_quantity for row in rows] == [2, 3]
    asked = {
        "user_id": USER,
        "period_type": "monthly",
        "start": "2026-05-01",
        "end": "2026-06-01T00:00:00+00:00",
        "metric_type": "api_call",
        "limit": "1000",
    }
    assert [call.query for call in api.calls] == [asked, {**asked, "cursor": "c/2=="}]


def test_limits_are_read(api: UsageApi, new_client: Any) -> None:
    api.always["/api/usage/limits"] = document({"items": [LIMIT], "snapshot_id": "s1"})
    assert new_client().get_usage_limits(USER) == [
        UsageLimit(
            "user",
            UUID(USER),
            None,
            "api_call",
            date(2026, 5, 1),
            "free",
            Decimal(799),
            Decimal(1000),
            Decimal("0.799"),
            "ok",
            projected_limit_date=date(2026, 5, 20),
        )
    ]


def test_a_rollup_is_started_with_the_secret_of_cron(api: UsageApi, new_client: Any) -> None:
    api.always["/api/cron/aggregate-usage"] = document({"run_id": "r1"}, 202)
    client = new_client(cron_secret="s3cret")
    assert client.trigger_usage_aggregation() == "r1"
    assert client.trigger_usage_aggregation("daily", date(2026, 5, 1), date(2026, 5, 3)) == "r1"
    assert [json.loads(call.body) for call in api.calls] == [
        {},
        {"period_type": "daily", "period_start": "2026-05-01", "period_end": "2026-05-03"},
    ]
    assert {call.headers["authorization"] for call in api.calls} == {"Bearer s3cret"}


def test_a_problem_is_raised_as_the_api_told_it(api: UsageApi, new_client: Any) -> None:
    api.always["/api/usage/summary"] = problem(403, "Not yours", "You are no member of it.")
    with pytest.raises(UsageError, match=r"^403 Not yours: You are no member of it.$") as told:
        new_client().get_usage_summary(USER, ORG)
    assert told.value.status == 403
    assert told.value.problem == {
        "type": "about:blank",
        "title": "Not yours",
        "status": 403,
        "detail": "You are no member of it.",
    }


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (hang_up, None),
        (document(b"<html>", 502), 502),
        (document([], 500), 500),
        (document(b"<html>"), 200),
        (document([]), None),
        (document({"items": [{}]}), None),
        (document({"items": [{**ROW, "total_quantity": "many"}]}), None),
        (document({"items": [{**ROW, "id": None}]}), None),
        (document({"items": [{**ROW, "period_start": 5}]}), None),
    ],
)
def test_an_answer_of_no_use_is_an_error(
    api: UsageApi, new_client: Any, answer: Any, status: int | None
) -> None:
    api.always["/api/usage/aggregated"] = answer
    with pytest.raises(UsageError) as told:
        list(new_client().get_aggregated_usage(USER))
    assert told.value.status == status
    assert {"title", "detail"} <= set(told.value.problem)


def test_the_functions_share_a_client_that_the_environment_makes(
    api: UsageApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.always |= {
        "/api/usage/summary": document(SUMMARY),
        "/api/usage/aggregated": pages,
        "/api/usage/limits": document({"items": [LIMIT]}),
        "/api/cron/aggregate-usage": document({"run_id": "r1"}, 202),
    }
    monkeypatch.setenv("USAGE_API_URL", api.url)
    monkeypatch.setenv("USAGE_API_KEY", "uk_2_secret")
    monkeypatch.setenv("CRON_SECRET", "s3cret")
    assert log_usage(USER, "api_call")
    assert shared_client().flush(60)
    assert get_usage_summary(USER).snapshot_id == "s1"
    assert len(list(get_aggregated_usage(USER))) == 3
    assert len(get_usage_limits(USER)) == 1
    assert trigger_usage_aggregation() == "r1"
    assert [call.headers["authorization"][7:] for call in api.calls] == [
        *["uk_2_secret"] * 5,
        "s3cret",
    ]
    before = shared_client()
    assert configure(api.url, key="uk_3_secret") is shared_client()
    assert (before.log_usage(USER, "api_call"), before.sent) == (None, 1)
    assert get_usage_summary(USER).snapshot_id == "s1"
    assert api.calls[-1].headers["authorization"] == "Bearer uk_3_secret"


def test_an_environment_of_no_use_raises_where_usage_is_read_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("USAGE_API_URL", "usage.example.com")
    assert log_usage(USER, "api_call") is None
    assert shared_client().dropped == 1
    assert "of no use" in caplog.text
    with pytest.raises(UsageError, match="No address"):
        get_usage_summary(USER)


def test_asyncio_has_the_same(api: UsageApi) -> None:
    api.always |= {
        "/api/usage/summary": document(SUMMARY),
        "/api/usage/aggregated": pages,
        "/api/usage/limits": document({"items": [LIMIT]}),
        "/api/cron/aggregate-usage": document({"run_id": "r1"}, 202),
    }

    async def application() -> None:
        async with AsyncUsageClient(api.url, cron_secret="s3cret") as client:
            logged = await asyncio.gather(
                *(client.log_usage(USER, "api_call", number) for number in range(150))
            )
            assert await client.log_usage("nobody", "api_call") is None
            assert await client.flush(60)
            assert set(api.stored) == {str(known) for known in logged}
            assert (client.sent, client.rejected, client.dropped) == (150, 1, 0)
            assert (client.pending, client.lost) == (0, 0)
            assert (await client.get_usage_summary(USER)).snapshot_id == "s1"
            rows = [row.total_quantity async for row in client.get_aggregated_usage(USER)]
            assert rows == [1, 2, 3]
            assert [row.status for row in await client.get_usage_limits(USER)] == ["ok"]
            assert await client.trigger_usage_aggregation() == "r1"
            await client.log_usage(USER, "last")
        assert len(api.of_type("last")) == 1

    asyncio.run(application())


def test_a_slow_endpoint_does_not_stop_the_event_loop(api: UsageApi) -> None:
    """The answer comes only after the loop has done something else."""

    async def application() -> None:
        arrived, released = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(call: Call) -> Reply:
            loop.call_soon_threadsafe(arrived.set)
            asyncio.run_coroutine_threadsafe(released.wait(), loop).result(60)
            return Reply(200, SUMMARY)

        api.always["/api/usage/summary"] = slow
        async with AsyncUsageClient(api.url) as client:
            reading = asyncio.create_task(client.get_usage_summary(USER))
            await arrived.wait()
            released.set()
            assert (await reading).snapshot_id == "s1"

    asyncio.run(application())


def test_the_two_clients_have_the_same_names_and_arguments() -> None:
    import inspect

    for name in ("__init__", *(name for name in vars(UsageClient) if not name.startswith("_"))):
        sync, other = vars(UsageClient)[name], vars(AsyncUsageClient)[name]
        if not isinstance(sync, property):
            assert inspect.signature(sync).parameters == inspect.signature(other).parameters, name
