"""The Python client and the API, on a real port; the numbers are those of `served`, by hand."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from served import ACME, CRON_SECRET, MEMBER, OTHER_ORG, OWNER, RUN, STRANGER, Served, token_of

from usage_pipeline.client import AsyncUsageClient, UsageClient, UsageError
from usage_pipeline.settings import PROJECT_DIR

GREAT = Decimal("12345678901234567890123456789.123456789")


@pytest.fixture(scope="module", autouse=True)
def _as_it_was(served: Served) -> Iterator[None]:
    """Other tests share the source, whose own events are of 2025."""
    yield
    served.source.execute("delete from usage_events where created_at >= '2026-01-01'")


@pytest.fixture
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def client(url: str, served: Served) -> Iterator[UsageClient]:
    key = served.key("events:write", "usage:read")
    with UsageClient(url, key=key, cron_secret=CRON_SECRET) as client:
        yield client


def test_events_arrive_as_they_were_logged(client: UsageClient, served: Served) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    data = {"näme": ["ü", 1.5, None]}
    known = client.log_usage(MEMBER, "ai_tokens_used", GREAT, ACME, data, at)
    plain = client.log_usage(STRANGER, "api_call")
    assert client.flush(60)
    rows = served.source.query(
        "select id::text, user_id::text, org_id::text, event_type, quantity, event_data,"
        " created_at from usage_events where id in (%s, %s) order by created_at",
        (str(known), str(plain)),
    )
    assert rows[0] == (str(known), str(MEMBER), str(ACME), "ai_tokens_used", GREAT, data, at)
    assert rows[1][:6] == (str(plain), str(STRANGER), None, "api_call", 1, None)
    assert (client.sent, client.rejected, client.dropped) == (2, 0, 0)


def test_a_bad_event_stops_no_other_and_an_id_counts_once(
    client: UsageClient, served: Served
) -> None:
    good = [client.log_usage(MEMBER, "api_call", number) for number in range(250)]
    assert client.flush(60)
    client.log_usage(MEMBER, "api_call", created_at=datetime.now(UTC) + timedelta(days=1))
    client.log_usage(MEMBER, "api_call", event_data={"a": "nul \0"})
    client.log_usage(MEMBER, "api_call", 7, id=good[0])
    last = client.log_usage(MEMBER, "api_call")
    assert client.flush(60)
    assert (client.sent, client.rejected) == (252, 2)
    ids = [str(known) for known in (*good, last)]
    assert served.source.query(
        "select count(*), sum(quantity) from usage_events where id = any(%s::uuid[])", (ids,)
    ) == [(251, 249 * 250 // 2 + 1)]


def test_usage_is_read_as_it_is_published(client: UsageClient) -> None:
    summary = client.get_usage_summary(MEMBER, period="week")
    assert (summary.as_of_date, summary.window_start, summary.window_end) == (
        date(2025, 4, 2),
        date(2025, 3, 27),
        date(2025, 4, 3),
    )
    assert [(i.metric_type, i.total_quantity, i.event_count) for i in summary.items] == [
        ("ai_tokens_used", GREAT, 1),
        ("api_call", Decimal("102.500000001"), 3),
    ]
    days = list(client.get_aggregated_usage(MEMBER, start=date(2025, 4, 1), end=date(2025, 4, 2)))
    assert sorted((row.org_id is None, row.metric_type, row.total_quantity) for row in days) == [
        (False, "api_call", Decimal(100)),
        (True, "api_call", Decimal("2.5")),
    ]
    assert {row.period_start for row in days} == {datetime(2025, 4, 1, tzinfo=UTC)}
    (month,) = client.get_aggregated_usage(STRANGER, period_type="monthly")
    assert (month.total_quantity, dict(month.metadata)) == (
        Decimal(8),
        {"event_count": 1, "active_days": 1},
    )
    (limit,) = client.get_usage_limits(MEMBER)
    assert (limit.used_quantity, limit.limit_quantity, limit.used_ratio, limit.status) == (
        Decimal("2.5"),
        Decimal(10),
        Decimal("0.25"),
        "ok",
    )


def test_pages_are_followed_to_the_end(
    client: UsageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(client.get_aggregated_usage(MEMBER))
    assert len(whole) == 4
    monkeypatch.setattr("usage_pipeline.client.api._PAGE_ROWS", 1)
    assert list(client.get_aggregated_usage(MEMBER)) == whole


def test_a_token_is_of_its_user_only(url: str) -> None:
    with UsageClient(url, key=token_of(OWNER)) as own:
        assert own.get_usage_summary(org_id=ACME).items
        for refused in (
            lambda: own.get_usage_summary(MEMBER),
            lambda: own.get_usage_summary(org_id=OTHER_ORG),
        ):
            with pytest.raises(UsageError) as told:
                refused()
            assert told.value.status == 403
            assert told.value.problem["title"]
        own.log_usage(MEMBER, "api_call")
        own.log_usage(OWNER, "api_call")
        assert own.flush(60)
        assert (own.sent, own.rejected) == (1, 1)


def test_who_may_not_is_told(url: str, served: Served) -> None:
    reader = UsageClient(url, key=served.key("usage:read"), cron_secret="wrong", exit_timeout=0)
    with pytest.raises(UsageError) as told:
        reader.trigger_usage_aggregation()
    assert told.value.status == 401
    assert reader.log_usage(MEMBER, "api_call")
    assert not reader.flush(1)
    reader.close()
    assert (reader.sent, reader.rejected, reader.pending) == (0, 0, 1)


def test_a_rollup_is_started(client: UsageClient, served: Served) -> None:
    run = client.trigger_usage_aggregation("daily", date(2025, 4, 1), date(2025, 4, 3))
    assert (run, served.done.started[-1]) == (RUN, (date(2025, 4, 1), date(2025, 4, 3)))


def test_asyncio_does_the_same(url: str, served: Served) -> None:
    async def application() -> None:
        async with AsyncUsageClient(url, key=served.key("events:write", "usage:read")) as client:
            await asyncio.gather(*(client.log_usage(MEMBER, "from_asyncio") for _ in range(120)))
            assert await client.flush(60)
            rows = [row async for row in client.get_aggregated_usage(MEMBER)]
            assert len(rows) == 4

    asyncio.run(application())
    found = served.source.query(
        "select count(*) from usage_events where event_type = 'from_asyncio'"
    )
    assert found == [(120,)]


def test_a_killed_process_loses_what_is_told(url: str, served: Served, tmp_path: Path) -> None:
    """What was promised is in the table, or in the number that the process left behind."""
    child = subprocess.Popen(
        [sys.executable, str(PROJECT_DIR / "tests" / "client" / "child.py"), "load", url, tmp_path],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PROJECT_DIR),
            "USAGE_API_KEY": served.key("events:write"),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    promised = [child.stdout.readline().strip() for _ in range(1500)]
    child.send_signal(signal.SIGKILL)
    promised += child.stdout.read().split()
    child.wait()
    lost = UsageClient(url, directory=tmp_path).lost
    (stored,) = served.source.query(
        "select count(*) from usage_events where id = any(%s::uuid[])", (promised,)
    )
    assert len(promised) - stored[0] <= lost
    assert 0 < stored[0] <= len(promised)
