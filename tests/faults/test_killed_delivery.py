"""Whoever tells and whoever delivers is killed: each fact is one message, and each one arrives.

`make test` kills a few processes, `make faults` 100.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from uuid import UUID

import pytest
from faults.house import SERVER
from faults.telling import ORGS, message, tell_and_deliver
from receivers import HttpReceiver, receiving, status
from support import AppDatabase

from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.settings import Settings

KILLS, QUICK_KILLS = 100, 6
FACTS_A_ROUND = 40
LONGEST_LIFE_SECONDS = 0.6  # about what an undisturbed process takes
ANSWER_SECONDS = 0.01
PATHS = [f"/{org.int}" for org in ORGS]


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with receiving() as made:
        yield made


def test_each_fact_is_one_message_and_each_arrives(
    receiver: HttpReceiver,
    new_database: Any,
    make_settings: Any,
    _fork_server: None,
    request: pytest.FixtureRequest,
) -> None:
    dice = random.Random(12)
    database: AppDatabase = new_database()
    database.execute("create table facts (number integer primary key)")
    database.insert(
        "org_webhooks",
        [
            (str(org), str(org), receiver.url + path, "whsec_c2VjcmV0", True, "2026-01-01Z")
            for org, path in zip(ORGS, PATHS, strict=True)
        ],
    )
    variables = {
        "USAGE_APP_DATABASE_URL": database.url,
        "USAGE_WEBHOOK_NETWORKS": "127.0.0.0/8",
    }
    settings: Settings = make_settings(**variables)
    variables["USAGE_HOME"] = str(settings.home)
    kills = KILLS if request.config.getoption("thorough") else QUICK_KILLS
    receiver.behaviours |= {path: [slowly] for path in PATHS}
    facts = 0
    ends: Counter[int | None] = Counter()
    for _ in range(kills // 2):
        facts += FACTS_A_ROUND
        pair = [SERVER.Process(target=tell_and_deliver, args=(variables, facts)) for _ in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join(dice.uniform(0, LONGEST_LIFE_SECONDS))
            process.kill()
        for process in pair:
            process.join()
            ends[process.exitcode] += 1
        over(database)
    assert ends.keys() <= {0, -9}
    tell_and_deliver(variables, facts)
    deliver(settings)

    assert database.query("select count(*) from facts") == [(facts,)]
    told = dict(database.query("select key, message_id from usage.outbox_messages"))
    assert told == {f"fact {n}": str(message(n).message_id) for n in range(facts)}
    assert database.query("select state, count(*) from usage.outbox_deliveries group by 1") == [
        ("delivered", facts)
    ]
    arrived = {r.headers["webhook-id"]: r.path for r in receiver.requests}
    assert arrived == {
        f"msg_{UUID(told[f'fact {n}']).hex}": PATHS[n % len(PATHS)] for n in range(facts)
    }


def slowly(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(ANSWER_SECONDS)
    status(204)(handler)


def over(database: AppDatabase) -> None:
    """The leases of the killed are over; their tables may not be there yet."""
    if database.query("select to_regclass('usage.outbox_deliveries')") != [(None,)]:
        database.execute("update usage.outbox_deliveries set leased_until = now()")
