"""Whoever tells and whoever delivers is killed: each fact is one message, and each one arrives.

`make test` kills a few processes, `make faults` 100 that tell and deliver, and 100 whole nights.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from typing import Any
from uuid import UUID, uuid4

import pytest
from faults.house import House
from faults.telling import ORGS, message, roll_up_and_deliver, tell_and_deliver
from forked import SERVER
from receivers import HttpReceiver, receiving, status
from support import AppDatabase, day

from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.settings import Settings

KILLS, QUICK_KILLS = 100, 6
NIGHTS_KILLED, QUICK_NIGHTS_KILLED = 100, 1
METRICS = ["api_call", "ai_tokens_used"]
LIMIT = 100_000_000  # more than anybody has used at first
ALERTS = """
    select org_id::text, metric_type, threshold from usage.usage_alerts where scope = 'org'
"""
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
    fork_server: None,
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


def test_a_killed_night_raises_each_alert_once_and_tells_all(
    receiver: HttpReceiver, house: House, request: pytest.FixtureRequest
) -> None:
    """Usage grows before each night, most of which are killed; limits are crossed on the way."""
    dice = random.Random(12)
    house.put_back()
    database, today = house.database, day("2024-04-01")
    variables = house.variables | {"USAGE_WEBHOOK_NETWORKS": "127.0.0.0/8"}
    orgs = [org for (org,) in database.query("select id from orgs order by id")]
    hooks = [
        (str(uuid4()), org, f"{receiver.url}/{org}", "a-secret", True, "2024-01-01Z")
        for org in orgs
    ]
    database.insert("org_webhooks", hooks)
    limits = [("team", metric, LIMIT) for metric in METRICS]
    database.insert("plan_limits", limits)
    night = SERVER.Process(target=roll_up_and_deliver, args=(variables, today))
    started = time.monotonic()
    night.start()
    night.join()
    seconds = time.monotonic() - started
    assert (night.exitcode, receiver.requests) == (0, [])  # the first look tells nobody
    raised_before = set(database.query(ALERTS))
    database.execute("create table before as select * from usage.org_usage_daily")

    kills = NIGHTS_KILLED if request.config.getoption("thorough") else QUICK_NIGHTS_KILLED
    for _ in range(kills):
        more = [
            (str(uuid4()), str(uuid4()), org, metric, None, quantity, "2024-04-01T12:00Z")
            for org, metric, quantity in (
                (orgs[0], METRICS[0], LIMIT * 85 // 100),
                (dice.choice(orgs), dice.choice(METRICS), dice.choice((1, LIMIT // 30))),
            )
        ]
        database.insert("usage_events", more)
        night = SERVER.Process(target=roll_up_and_deliver, args=(variables, today))
        night.start()
        night.join(dice.uniform(0.3 * seconds, seconds))
        night.kill()
        night.join()
        over(database)
    night = SERVER.Process(target=roll_up_and_deliver, args=(variables, today))
    night.start()
    night.join()
    assert night.exitcode == 0

    # Usage only grew, so that what is crossed now is what was ever crossed; by the source's sums.
    crossed = set(
        database.query(
            "select org_id::text, event_type, threshold"
            " from usage_events, (values (0.8), (1.0)) as thresholds (threshold)"
            " where org_id is not null and created_at >= '2024-04-01Z'"
            "  and created_at < '2024-04-02Z' and event_type = any(%s)"
            " group by 1, 2, 3 having sum(quantity) >= %s * threshold",
            [METRICS, LIMIT],
        )
    )
    assert set(database.query(ALERTS)) == crossed
    new = crossed - raised_before
    assert new
    messages = database.query(
        "select org_id::text, payload ->> 'metric_type', (payload ->> 'threshold')::numeric"
        " from usage.outbox_messages where event_type <> 'usage.rolled_up'"
    )
    assert len(messages) == len(set(messages))
    assert set(messages) <= new
    highest = {(org, metric): share for org, metric, share in sorted(new)}
    assert {(org, metric, share) for (org, metric), share in highest.items()} <= set(messages)

    # All arrived, and the newest state that each organisation was told of is the one published.
    assert database.query("select distinct state from usage.outbox_deliveries") == [("delivered",)]
    ids = {UUID(i).hex for (i,) in database.query("select message_id from usage.outbox_messages")}
    assert {r.headers["webhook-id"].removeprefix("msg_") for r in receiver.requests} == ids
    events = [json.loads(request.body) for request in receiver.requests]
    told: dict[str, dict[str, Decimal]] = {}
    for event in sorted(
        (event["data"] for event in events if event["type"] == "usage.rolled_up"),
        key=lambda data: data["published_at"],
    ):
        assert event["usage_date"] == "2024-04-01"
        told[event["org_id"]] = {
            metric: Decimal(total["total_quantity"]) for metric, total in event["totals"].items()
        }
    published: dict[str, dict[str, Decimal]] = {}
    for org, metric, quantity in database.query(
        "select org_id::text, metric_type, total_quantity from usage.org_usage_daily"
        " where usage_date = '2024-04-01' and org_id in (select org_id from"
        "  (select * from usage.org_usage_daily except select * from before) as changed)"
    ):
        published.setdefault(org, {})[metric] = quantity
    assert told == published


def over(database: AppDatabase) -> None:
    """The leases of the killed are over; their tables may not be there yet."""
    if database.query("select to_regclass('usage.outbox_deliveries')") != [(None,)]:
        database.execute("update usage.outbox_deliveries set leased_until = now()")
