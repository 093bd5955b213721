"""Messages on their way: real Postgres, real HTTP receivers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from receivers import HttpReceiver, receiving, status
from standardwebhooks import Webhook
from support import AppDatabase

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.settings import Settings

ORG, OTHER_ORG = UUID(int=1), UUID(int=2)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw"


@pytest.fixture(scope="module")
def receiver() -> Iterator[HttpReceiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    return new_database()


@pytest.fixture
def settings(source: AppDatabase, make_settings: Any, receiver: HttpReceiver) -> Settings:
    source.execute("truncate org_webhooks, users, orgs, org_members")
    source.execute("drop schema if exists usage cascade")
    receiver.requests.clear()
    receiver.behaviours.clear()
    return make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_WEBHOOK_NETWORKS="127.0.0.0/8")


def webhook(
    source: AppDatabase, url: str, org: UUID = ORG, secret: str = SECRET, enabled: bool = True
) -> UUID:
    made = uuid4()
    source.insert("org_webhooks", [(str(made), str(org), url, secret, enabled, "2026-01-01Z")])
    return made


def limit_message(key: str, org: UUID | None = ORG, user: UUID | None = None) -> Message:
    payload = {
        "scope": "org" if user is None else "member" if org else "user",
        "user_id": user,
        "org_id": org,
        "metric_type": "api_call",
        "month": "2026-05-01",
        "threshold": "0.8",
        "used_quantity": "80.5",
        "limit_quantity": "100",
        "plan": "team",
        "usage_date": "2026-05-12",
        "snapshot_id": "a-snapshot",
    }
    return Message("usage.limit_warning", key, org, user, payload)


def add(settings: Settings, *messages: Message) -> int:
    with outbox.opened(settings) as cursor:
        return outbox.add(cursor, settings.publish_schema, messages)


def deliveries(source: AppDatabase) -> list[tuple[Any, ...]]:
    return source.query(
        "select channel, state, attempts, reason from usage.outbox_deliveries order by 1, 2, 3, 4"
    )


def come_due(source: AppDatabase) -> None:
    """The time of all that waits has come."""
    source.execute("update usage.outbox_deliveries set due_at = now(), leased_until = null")


def test_a_message_is_signed_and_delivered_once(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook?token=1")
    webhook(source, f"{receiver.url}/other", org=OTHER_ORG)
    webhook(source, f"{receiver.url}/off", enabled=False)
    message = limit_message("first")
    assert add(settings, message) == 1
    assert add(settings, message) == 0
    report = deliver(settings)
    assert (report.addressed, report.delivered, report.failed) == (1, 1, 0)
    assert deliver(settings).delivered == 0
    (request,) = receiver.requests
    assert request.path == "/hook?token=1"
    told = Webhook(SECRET).verify(request.body, request.headers)
    assert told["type"] == "usage.limit_warning"
    assert told["data"] == json.loads(json.dumps(message.payload, default=str))
    assert deliveries(source) == [("webhook", "delivered", 1, None)]


def test_an_endpoint_that_fails_twice_gets_the_same_id_three_times(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(500), status(404), status(200)]
    add(settings, limit_message("first"))
    for expected in (
        ("waiting", 1, "HTTP 500"),
        ("waiting", 2, "HTTP 404"),
        ("delivered", 3, None),
    ):
        deliver(settings)
        assert deliveries(source) == [("webhook", *expected)]
        come_due(source)
    first, second, third = receiver.requests
    assert (
        first.headers["webhook-id"] == second.headers["webhook-id"] == third.headers["webhook-id"]
    )
    assert first.body == second.body == third.body
    assert [Webhook(SECRET).verify(r.body, r.headers)["type"] for r in receiver.requests]
