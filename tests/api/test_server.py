"""The application on a real port, where what is sent and answered comes in pieces."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from served import ACME, CRON_SECRET, MEMBER, RUN, Served, bearer, by_token
from typer.testing import CliRunner

from usage_pipeline.cli.main import app
from usage_pipeline.client import UsageClient, UsageError
from usage_pipeline.errors import UsagePipelineError


def ask(port: int, method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers, encode_chunked=body is not None)
    return connection.getresponse()


def test_a_body_in_pieces_ends_at_the_limit(port: int, served: Served) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 65_536
            yield b" " * 65_536

    headers = {
        **bearer(served.key("events:write")),
        "Content-Type": "application/json",
        "Transfer-Encoding": "chunked",
    }
    with suppress(BrokenPipeError, ConnectionResetError):
        answer = ask(port, "POST", "/api/usage/events", headers, pieces())
        assert answer.status == 413
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_size_that_is_said_is_believed_before_it_comes(port: int) -> None:
    headers = {"Content-Length": str(2**40)}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", "/api/usage/events")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413


@pytest.mark.parametrize("path", ["/api/cron/aggregate-usage", "/api/portal-links"])
def test_deep_documents_are_refused(port: int, served: Served, path: str) -> None:
    token = CRON_SECRET if "cron" in path else served.key("portal:write")
    headers = {**bearer(token), "Content-Type": "application/json"}
    for body in (b"[" * 500_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        assert answer.status in (400, 422)
        assert json.loads(answer.read())["status"] == answer.status


def test_an_export_that_fails_on_its_way_is_not_taken_for_whole(port: int, served: Served) -> None:
    folder = served.settings.events_dir / "usage_date=2025-04-02"
    part = next(folder.glob("part-*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(b"damaged")
    try:
        answer = ask(port, "GET", "/api/usage/export?month=2025-04", by_token(MEMBER))
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead) as cut:
            answer.read()
        assert cut.value.partial.startswith(
            b"created_at,id,org_id,event_type,quantity,event_data\n"
        )
    finally:
        part.write_bytes(whole)
    answer = ask(port, "GET", "/api/usage/export?month=2025-04", by_token(MEMBER))
    assert answer.read().count(b"\n") == 5


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, ["--host", "0.0.0.0"]),
        ({"USAGE_WEB_DEVELOPMENT": "true", "USAGE_WEB_URL": "https://usage.example.com"}, []),
    ],
)
def test_the_picker_is_not_served_to_others(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    options: list[str],
) -> None:
    for name, value in {"USAGE_HOME": str(served.settings.home), **variables}.items():
        monkeypatch.setenv(name, value)
    ended = CliRunner().invoke(app, ["web", *options])
    assert isinstance(ended.exception, UsagePipelineError)
    assert "for this machine" in str(ended.exception)


def test_the_client_and_the_api_understand_each_other(port: int, served: Served) -> None:
    key = served.key("events:write", "usage:read")
    with UsageClient(f"http://127.0.0.1:{port}", key=key, cron_secret=CRON_SECRET) as client:
        sent = client.log_usage(MEMBER, "api_call", "0.1", org_id=ACME, event_data={"a": 1})
        again = client.log_usage(MEMBER, "api_call", 7, id=sent)
        assert client.flush(30)
        assert (sent, client.sent, client.rejected) == (again, 2, 0)
        rows = served.source.query(
            "select quantity, org_id::text, event_data from usage_events where id = %s", [str(sent)]
        )
        assert rows == [(Decimal("0.1"), str(ACME), {"a": 1})]
        served.source.execute("delete from usage_events where id = %s", [str(sent)])

        summary = client.get_usage_summary(MEMBER, period="week")
        assert (summary.as_of_date, summary.window_end) == (date(2025, 4, 2), date(2025, 4, 3))
        totals = {item.metric_type: item.total_quantity for item in summary.items}
        assert totals["api_call"] == Decimal("102.500000001")
        days = client.get_aggregated_usage(MEMBER, start=date(2025, 4, 1), end=date(2025, 4, 3))
        calls = [day.total_quantity or 0 for day in days if day.metric_type == "api_call"]
        assert sum(calls) == Decimal("102.500000001")
        (limit,) = client.get_usage_limits(MEMBER)
        assert (limit.metric_type, limit.used_quantity) == ("api_call", Decimal("2.5"))
        assert client.trigger_usage_aggregation() == RUN
    with (
        UsageClient(f"http://127.0.0.1:{port}", key="uk_x_y") as stranger,
        pytest.raises(UsageError) as refused,
    ):
        stranger.get_usage_summary(MEMBER)
    assert "401" in str(refused.value) or refused.value.status == 401
