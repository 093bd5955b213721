"""Many messages to many endpoints, some of which hang: all others get theirs meanwhile.

`make faults` sends 10,000 to 200, of which ten hang, and prints how long that took; `make test`
a few.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from receivers import receiving
from support import AppDatabase

from usage_pipeline.alerts import outbox, webhooks
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.settings import Settings


def test_all_but_those_that_hang_get_their_messages(
    new_database: Any,
    make_settings: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages, endpoints, hanging = 300, 20, 2
    if request.config.getoption("thorough"):
        messages, endpoints, hanging = 10_000, 200, 10
    else:
        monkeypatch.setattr(webhooks, "ANSWER_SECONDS", 1.0)
    source: AppDatabase = new_database()
    settings: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_WEBHOOK_NETWORKS="127.0.0.0/8"
    )
    orgs = [UUID(int=number + 1) for number in range(endpoints)]
    with receiving() as receiver:
        paths = [f"/{number}" for number in range(endpoints)]
        receiver.behaviours |= {path: [receiver.hang] for path in paths[:hanging]}
        source.insert(
            "org_webhooks",
            [
                (str(uuid4()), str(org), receiver.url + path, "a-secret", True, "2026-01-01Z")
                for org, path in zip(orgs, paths, strict=True)
            ],
        )
        with outbox.opened(settings) as cursor:
            payloads = [{"org_id": org, "webhook_id": org} for org in orgs]
            outbox.add(
                cursor,
                settings.publish_schema,
                (
                    Message(
                        "usage.test", str(n), orgs[n % endpoints], None, payloads[n % endpoints]
                    )
                    for n in range(messages)
                ),
            )
        report = deliver(settings)
        received = Counter(request.path for request in receiver.requests)
    each = messages // endpoints
    assert received == {path: 1 if path in paths[:hanging] else each for path in paths}
    assert report.reasons == {"it did not answer in time": each * hanging}
    ((last, lasted),) = source.query(
        "select extract(epoch from max(finished_at) - min(addressed_at)), now() - min(addressed_at)"
        " from usage.outbox_deliveries inner join usage.outbox_messages using (message_id)"
    )
    print(
        f"{messages} messages: the last that arrived after {last:.1f} s, all ended after {lasted}"
    )
