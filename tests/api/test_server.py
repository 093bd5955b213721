"""The application on a real port, where what is sent and answered comes in pieces."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from served import CRON_SECRET, MEMBER, Served, bearer, by_token
from typer.testing import CliRunner

from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.web.serve import serve
from usage_pipeline.web.state import Actions


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    stopped, said = threading.Event(), threading.Event()
    done = served.done
    actions = Actions(lambda *of: [], done.start_rollup, lambda: done.models)
    thread = threading.Thread(
        target=serve,
        args=(served.settings, actions, ("127.0.0.1", number), stopped, lambda _: said.set()),
    )
    thread.start()
    assert said.wait(30)
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", number), 1):
            break
        time.sleep(0.1)
    yield number
    stopped.set()
    thread.join(30)
    assert not thread.is_alive()


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
