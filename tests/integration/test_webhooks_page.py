"""docs/webhooks.md: its receiver receives, and what is sent is as its schemas say."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import pytest
import requests
from receivers import receiving
from support import AppDatabase

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.alerts.events import EVENTS
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.settings import PROJECT_DIR, Settings

PAGE = (PROJECT_DIR / "docs" / "webhooks.md").read_text("utf-8")
ORG, USER = UUID(int=1), UUID(int=2)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw"
LIMIT = {
    "scope": "org",
    "user_id": None,
    "org_id": ORG,
    "metric_type": "api_call",
    "month": "2026-05-01",
    "threshold": "0.8",
    "used_quantity": "-80.000000001",
    "limit_quantity": None,
    "plan": None,
    "usage_date": "2026-05-12",
    "snapshot_id": "a-snapshot",
}
PAYLOADS: dict[str, dict[str, Any]] = {
    "usage.limit_warning": LIMIT,
    "usage.limit_exceeded": LIMIT | {"scope": "member", "user_id": USER, "plan": "team"},
    "usage.limit_resolved": LIMIT | {"used_quantity": None},
    "usage.anomaly_detected": {
        "scope": "org",
        "user_id": None,
        "org_id": ORG,
        "metric_type": "api_call",
        "usage_date": "2026-05-12",
        "rule": "weekday_median",
        "kind": "drop",
        "quantity": "0",
        "expected": "120.5",
        "score": "-9.25",
        "snapshot_id": "a-snapshot",
    },
    "usage.rolled_up": {
        "org_id": ORG,
        "usage_date": "2026-05-12",
        "timezone": "UTC",
        "snapshot_id": "a-snapshot",
        "published_at": "2026-05-13T01:00:00+00:00",
        "totals": {
            "api_call": {"total_quantity": "1E+2", "event_count": 3, "active_users": 2},
            "storage_used": {"total_quantity": None, "event_count": 1, "active_users": 1},
        },
    },
    "usage.test": {"org_id": ORG, "webhook_id": uuid4()},
}


@pytest.fixture
def source(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    return made


@pytest.fixture
def settings(source: AppDatabase, make_settings: Any) -> Settings:
    made: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_WEBHOOK_NETWORKS="127.0.0.0/8"
    )
    return made


def add_webhook(source: AppDatabase, url: str) -> None:
    source.insert("org_webhooks", [(str(uuid4()), str(ORG), url, SECRET, True, "2026-01-01Z")])


def add_all(settings: Settings) -> None:
    with outbox.opened(settings) as cursor:
        messages = [Message(name, name, ORG, None, payload) for name, payload in PAYLOADS.items()]
        outbox.add(cursor, settings.publish_schema, messages)


def schemas() -> dict[str, Any]:
    """By event, as the page has them."""
    found = {}
    for heading, schema in re.findall(r"^### ([^\n]+)\n\n```json\n(.*?)^```", PAGE, re.M | re.S):
        for event in re.findall("`(.+?)`", heading):
            found[event] = json.loads(schema)
    return found


def test_what_is_sent_is_as_the_page_says(source: AppDatabase, settings: Settings) -> None:
    with receiving() as receiver:
        add_webhook(source, receiver.url)
        add_all(settings)
        assert deliver(settings).delivered == len(PAYLOADS)
        sent = [json.loads(request.body) for request in receiver.requests]
    described = schemas()
    assert {event["type"] for event in sent} == set(described) == set(EVENTS) == set(PAYLOADS)
    for event in sent:
        assert event.keys() == {"type", "timestamp", "data"}
        schema = described[event["type"]]
        jsonschema.validate(event["data"], schema, jsonschema.Draft202012Validator)
        assert event["data"].keys() == schema["properties"].keys()
        jsonschema.validate(event["data"] | {"added": "later"}, schema)
    (rolled_up,) = (event["data"] for event in sent if event["type"] == "usage.rolled_up")
    assert rolled_up["totals"]["api_call"]["total_quantity"] == "100"


def test_a_schema_refuses_what_is_no_exact_number() -> None:
    schema = schemas()["usage.limit_warning"]
    data = json.loads(json.dumps(LIMIT, default=str))
    jsonschema.validate(data, schema)
    for wrong in (80.5, 80, "80,5", "1e2", "NaN", ""):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data | {"used_quantity": wrong}, schema)


@contextmanager
def running(program: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, str(program)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_receiver_of_the_page_receives(
    source: AppDatabase, settings: Settings, tmp_path: Path
) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len([line for line in text.splitlines() if line]) <= 20
    program = tmp_path / "receiver.py"
    program.write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with running(program, port) as receiver:
        until_it_answers(lambda: requests.post(url, data=b"{}", timeout=10).status_code == 400)
        add_webhook(source, url)
        add_all(settings)
        assert deliver(settings).delivered == len(PAYLOADS)
        message = Message("usage.test", "usage.test", ORG, None, PAYLOADS["usage.test"])
        assert outbox.replay(settings, message.message_id, None) == 1
        assert deliver(settings).delivered == 1
        receiver.kill()
        output, _ = receiver.communicate()
    printed = [line.split(" ", 1)[0] for line in output.splitlines()]
    assert sorted(printed) == sorted(PAYLOADS)  # the repeated one once


def until_it_answers(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        try:
            assert condition()
            return
        except requests.ConnectionError:
            time.sleep(0.05)
    raise AssertionError("it does not answer")
