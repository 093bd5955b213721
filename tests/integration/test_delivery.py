"""Messages on their way: real Postgres, real HTTP receivers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from receivers import HttpReceiver, receiving, status
from standardwebhooks import Webhook
from support import AppDatabase
from typer.testing import CliRunner, Result

from usage_pipeline.alerts import delivery, outbox
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.alerts.outbox import Message, Outcome
from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
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
    receiver.forget()
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


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_an_endpoint_that_hangs_holds_up_nobody(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    """All others have everything before the ones that hang have answered anything."""
    released = threading.Event()
    receiver.behaviours |= {f"/hangs{n}": [lambda handler: hang(handler, released)] for n in (1, 2)}
    for path in ("hangs1", "first", "hangs2", "second", "third"):
        webhook(source, f"{receiver.url}/{path}")
    add(settings, *(limit_message(f"message {n}") for n in range(120)))
    reports = []
    delivering = threading.Thread(target=lambda: reports.append(deliver(settings)))
    delivering.start()
    healthy = ("/first", "/second", "/third")
    until(lambda: all(len(receiver.at(path)) == 120 for path in healthy))
    assert [len(receiver.at(f"/hangs{n}")) for n in (1, 2)] == [1, 1]
    # And what was delivered is written down by now.
    until(lambda: ("delivered", 360) in Counter(d[1] for d in deliveries(source)).items())
    released.set()
    delivering.join()
    assert reports[0].delivered == 600
    assert {r.headers["webhook-id"] for r in receiver.at("/hangs1")} == {
        r.headers["webhook-id"] for r in receiver.at("/first")
    }


def address_all(settings: Settings, hook: UUID) -> None:
    """Give all new messages to one webhook."""
    with outbox.opened(settings) as cursor:
        new = [m.message_id for m in outbox.unaddressed(cursor, settings.publish_schema, 1_000)]
        recipients = [(message, "webhook", hook) for message in new]
        outbox.address(cursor, settings.publish_schema, new, recipients)


def hang(handler: Any, released: threading.Event) -> None:
    released.wait()
    status(204)(handler)


def test_what_was_sent_is_written_down_though_the_run_fails(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    """The source is gone when a second turn begins, while another endpoint is still answering."""
    is_failing = threading.Event()

    def break_source(handler: Any) -> None:
        source.execute("alter table org_webhooks rename to elsewhere")
        status(204)(handler)

    def answer_late(handler: Any) -> None:
        is_failing.wait()
        time.sleep(0.5)
        status(204)(handler)

    receiver.behaviours |= {"/quick": [break_source, status(204)], "/slow": [answer_late]}
    quick, slow = (webhook(source, f"{receiver.url}/{path}") for path in ("quick", "slow"))
    add(settings, *(limit_message(f"message {n}") for n in range(delivery.A_TURN + 1)))
    address_all(settings, quick)
    add(settings, limit_message("slow"))
    address_all(settings, slow)
    failing = threading.Timer(2, is_failing.set)
    failing.start()
    try:
        with pytest.raises(UsagePipelineError, match="org_webhooks"):
            deliver(settings)
    finally:
        failing.join()
        source.execute("alter table elsewhere rename to org_webhooks")
    delivered = Counter(d[1] for d in deliveries(source))
    assert delivered == {"delivered": delivery.A_TURN + 1, "waiting": 1}


def test_two_deliverers_send_nothing_twice(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    for path in ("one", "two"):
        webhook(source, f"{receiver.url}/{path}")
    add(settings, *(limit_message(f"message {n}") for n in range(150)))
    both = [threading.Thread(target=deliver, args=[settings]) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    ids = Counter((r.path, r.headers["webhook-id"]) for r in receiver.requests)
    assert (len(ids), set(ids.values())) == (300, {1})
    assert Counter(row[:3] for row in deliveries(source)) == {("webhook", "delivered", 1): 300}


def claim(settings: Settings, lease: UUID) -> list[outbox.Delivery]:
    with outbox.opened(settings) as cursor:
        return outbox.claim(cursor, settings.publish_schema, lease, channel="webhook", limit=10)


def record(settings: Settings, lease: UUID, *outcomes: Outcome) -> None:
    with outbox.opened(settings) as cursor:
        outbox.record(cursor, settings.publish_schema, lease, outcomes)


def test_what_is_leased_is_left_alone_until_the_lease_is_over(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(503), status(204)]
    add(settings, limit_message("first"))
    deliver(settings)
    come_due(source)
    mine, other = uuid4(), uuid4()
    (leased,) = claim(settings, mine)
    assert claim(settings, other) == []
    assert deliver(settings).delivered == 0
    source.execute("update usage.outbox_deliveries set leased_until = now()")
    assert [again.message_id for again in claim(settings, other)] == [leased.message_id]

    # Whose lease is over has nothing to say of the delivery, but that it arrived.
    record(settings, mine, Outcome(leased, "failed", "too late"))
    assert deliveries(source) == [("webhook", "waiting", 1, "HTTP 503")]
    assert source.query("select lease from usage.outbox_deliveries") == [(str(other),)]
    record(settings, mine, Outcome(leased, "delivered"))
    assert deliveries(source) == [("webhook", "delivered", 2, None)]
    record(settings, other, Outcome(leased, "failed", "too late"))
    assert deliveries(source) == [("webhook", "delivered", 2, None)]


@pytest.mark.parametrize(
    ("before", "least", "most"),
    [
        (0, timedelta(seconds=15), timedelta(seconds=30)),
        (1, timedelta(seconds=45), timedelta(seconds=90)),
        (3, timedelta(seconds=405), timedelta(seconds=810)),
        (7, timedelta(seconds=32_805), timedelta(seconds=65_610)),
        (8, timedelta(hours=12), timedelta(hours=24)),
    ],
)
def test_pauses_grow_to_a_day_and_are_not_alike(
    before: int, least: timedelta, most: timedelta, settings: Settings, receiver: HttpReceiver
) -> None:
    """Alike for the messages to one endpoint, which come back together."""
    assert settings.app_database_url
    source = AppDatabase(settings.app_database_url.get_secret_value())
    for path in range(20):
        webhook(source, f"{receiver.url}/{path}")
        receiver.behaviours[f"/{path}"] = [status(500)]
    add(settings, *(limit_message(f"message {n}") for n in range(3)))
    deliver(settings)
    source.execute("update usage.outbox_deliveries set attempts = %s, due_at = now()", [before])
    source.execute("create table failed_at as select now() as at")
    deliver(settings)
    pauses = source.query(
        "select recipient_id, extract(epoch from min(due_at) - at),"
        " extract(epoch from max(due_at) - at) from usage.outbox_deliveries, failed_at"
        " group by recipient_id, at"
    )
    source.execute("drop table failed_at")
    assert len(pauses) == 20
    slack = 30  # of the delivery itself
    for _, first, last in pauses:
        assert least.total_seconds() <= first <= last <= most.total_seconds() + slack
        assert last - first < slack
    if before:
        shares = {round(float(first) / most.total_seconds(), 1) for _, first, _ in pauses}
        assert len(shares) > 2


def test_what_is_refused_ten_times_is_dead_and_can_be_sent_again(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    hook = webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(500)] * 10 + [status(204)]
    add(settings, limit_message("first"))
    for _ in range(12):
        deliver(settings)
        come_due(source)
    assert len(receiver.requests) == 10
    assert deliveries(source) == [("webhook", "dead", 10, "HTTP 500")]
    assert outbox.waiting(settings) == outbox.Waiting(due=0, later=0, dead=1)
    assert outbox.replay(settings, None, uuid4()) == 0
    assert outbox.replay(settings, None, hook) == 1
    assert deliver(settings).delivered == 1
    assert outbox.waiting(settings) == outbox.Waiting()
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1


def test_a_message_is_replayed_to_all_who_get_it_by_now(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/old")
    message = limit_message("first")
    add(settings, message)
    deliver(settings)
    webhook(source, f"{receiver.url}/new")
    assert outbox.replay(settings, uuid4(), None) == 0
    assert outbox.replay(settings, message.message_id, None) == 1
    assert deliver(settings).delivered == 2
    assert [len(receiver.at(path)) for path in ("/old", "/new")] == [2, 1]


def test_a_webhook_that_is_disabled_meanwhile_gets_nothing_more(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(500)]
    add(settings, limit_message("first"))
    deliver(settings)
    source.execute("update org_webhooks set enabled = false")
    come_due(source)
    deliver(settings)
    assert deliveries(source) == [("webhook", "skipped", 1, "the webhook is disabled")]
    assert len(receiver.requests) == 1


def test_a_webhook_that_is_another_organisations_by_now_gets_nothing_of_the_old_one(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(500), status(204)]
    add(settings, limit_message("first"))
    deliver(settings)
    source.execute("update org_webhooks set org_id = %s", (str(OTHER_ORG),))
    add(settings, limit_message("second", org=OTHER_ORG))
    come_due(source)
    deliver(settings)
    assert deliveries(source) == [
        ("webhook", "delivered", 1, None),
        ("webhook", "skipped", 1, "the webhook is another organisation's"),
    ]
    assert len(receiver.requests) == 2


def test_a_pause_that_was_asked_for_costs_the_others_no_attempt(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(204), status(429, Retry_After="7200"), status(204)]
    add(settings, *(limit_message(f"message {n}") for n in range(4)))
    deliver(settings)
    assert deliveries(source) == [
        ("webhook", "delivered", 1, None),
        ("webhook", "waiting", 0, None),
        ("webhook", "waiting", 0, None),
        ("webhook", "waiting", 1, "HTTP 429"),
    ]
    soon = "select count(*) from usage.outbox_deliveries where due_at < now() + interval '119 min'"
    assert source.query(f"{soon} and state = 'waiting'") == [(0,)]
    assert outbox.waiting(settings) == outbox.Waiting(due=0, later=3, dead=0)


def test_an_unreachable_source_costs_no_attempt(
    source: AppDatabase, settings: Settings, make_settings: Any, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    add(settings, limit_message("first"))
    source.execute("alter table org_webhooks rename to elsewhere")
    try:
        with pytest.raises(UsagePipelineError, match="org_webhooks"):
            deliver(settings)
    finally:
        source.execute("alter table elsewhere rename to org_webhooks")
    assert deliver(settings).delivered == 1


def test_a_message_leaves_with_its_transaction_or_not_at_all(
    source: AppDatabase, settings: Settings
) -> None:
    with pytest.raises(RuntimeError), outbox.opened(settings) as cursor:
        outbox.add(cursor, settings.publish_schema, [limit_message("first")])
        raise RuntimeError
    assert outbox.waiting(settings) == outbox.Waiting()
    with pytest.raises(ValueError, match="used_quantity"), outbox.opened(settings) as cursor:
        wrong = Message("usage.limit_warning", "wrong", ORG, None, {"used_quantity": "NaN"})
        outbox.add(cursor, settings.publish_schema, [limit_message("first"), wrong])
    assert outbox.waiting(settings) == outbox.Waiting()


def test_quantities_are_exact_in_what_is_sent(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    message = limit_message("first")
    exact = dict(message.payload) | {"used_quantity": "12345678901234567890123456789.123456789"}
    add(settings, Message(message.event_type, message.key, ORG, None, exact))
    deliver(settings)
    (request,) = receiver.requests
    told = json.loads(request.body, parse_float=lambda text: pytest.fail(f"a float: {text}"))
    assert told["data"]["used_quantity"] == "12345678901234567890123456789.123456789"


def test_old_messages_go_unless_somebody_waits(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(204), status(500)]
    add(settings, limit_message("delivered"))
    deliver(settings)
    add(settings, limit_message("waits"))
    deliver(settings)
    add(settings, limit_message("is new"))
    assert outbox.prune(settings, datetime(2020, 1, 1, tzinfo=UTC)) == 0
    assert outbox.prune(settings, datetime.now(UTC) + timedelta(days=1)) == 1
    kept = source.query("select key from usage.outbox_messages order by key")
    assert kept == [("is new",), ("waits",)]


def test_a_person_is_forgotten(source: AppDatabase, settings: Settings) -> None:
    ada, bob = uuid4(), uuid4()
    add(settings, *(limit_message(f"of {who}", ORG, who) for who in (ada, bob)))
    add(settings, limit_message("of the organisation"))
    with outbox.opened(settings) as cursor:
        messages = outbox.unaddressed(cursor, settings.publish_schema, 10)
        everybody = [
            (message.message_id, "mail", who) for message in messages for who in (ada, bob)
        ]
        outbox.address(cursor, settings.publish_schema, [m.message_id for m in messages], everybody)
        outbox.forget(cursor, settings.publish_schema, ada)
    held = source.query(
        "select m::text from usage.outbox_messages m"
        " union all select d::text from usage.outbox_deliveries d"
    )
    assert len(held) == 4  # two messages, and one delivery of each
    assert str(ada) not in str(held)


def test_neither_url_nor_secret_is_kept(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/a-token?key=hunter2", secret="a-secret")
    webhook(source, "https://ada:hunter2@hooks.example.com/a-token", secret="a-secret")
    receiver.behaviours["/a-token?key=hunter2"] = [status(500)]
    add(settings, limit_message("first"))
    deliver(settings)
    tables = source.query("select relname from pg_class where relname like 'outbox_%'")
    assert len(tables) > 3
    kept = source.query(
        "select m::text from usage.outbox_messages m"
        " union all select d::text from usage.outbox_deliveries d"
    )
    for secret in ("hunter2", "a-token", "a-secret", "127.0.0.1", "example.com"):
        assert secret not in str(kept)


def test_readers_do_not_read_the_outbox(source: AppDatabase, settings: Settings) -> None:
    source.execute(
        "do $$ begin create role usage_reader; exception when duplicate_object then null; end $$;"
        "create schema usage; alter default privileges in schema usage"
        " grant select on tables to usage_reader"
    )
    try:
        add(settings, limit_message("first"))
        for table in outbox.TABLES:
            may = f"select has_table_privilege('usage_reader', 'usage.{table}', 'select')"
            assert source.query(may) == [(False,)]
    finally:
        source.execute("drop schema usage cascade; drop owned by usage_reader")


def test_a_table_of_an_older_release_is_widened(source: AppDatabase, settings: Settings) -> None:
    def columns() -> list[tuple[str]]:
        return source.query(
            "select attname from pg_attribute where attname = 'reason'"
            " and attrelid = 'usage.outbox_deliveries'::regclass"
        )

    add(settings, limit_message("first"))
    source.execute("alter table usage.outbox_deliveries drop column reason")
    assert outbox.waiting(settings) == outbox.Waiting(due=1)
    assert columns() == []  # whoever only looks changes nothing
    assert add(settings, limit_message("second")) == 1
    assert columns() == [("reason",)]
    assert outbox.waiting(settings) == outbox.Waiting(due=2)


def test_who_only_looks_makes_no_outbox(
    source: AppDatabase, settings: Settings, command: Callable[..., Result]
) -> None:
    assert outbox.waiting(settings) == outbox.Waiting()
    assert outbox.prune(settings, datetime.now(UTC)) == 0
    assert command("list").exit_code == 0
    assert source.query("select 1 from pg_namespace where nspname = 'usage'") == []


def test_a_table_of_somebody_else_is_left_alone(source: AppDatabase, settings: Settings) -> None:
    source.execute("create schema usage; create table usage.outbox_messages (id integer)")
    with pytest.raises(UsagePipelineError, match="this pipeline did not make"):
        add(settings, limit_message("first"))
    assert source.query("select count(*) from usage.outbox_messages") == [(0,)]


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in the settings' environment."""
    assert settings.app_database_url
    monkeypatch.setenv("USAGE_HOME", str(settings.home))
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", settings.app_database_url.get_secret_value())
    monkeypatch.setenv("USAGE_WEBHOOK_NETWORKS", "127.0.0.0/8")
    return lambda *arguments: CliRunner().invoke(app, ["webhooks", *arguments])


def test_an_operator_tries_a_webhook(
    source: AppDatabase, receiver: HttpReceiver, command: Callable[..., Result]
) -> None:
    fine = webhook(source, f"{receiver.url}/fine")
    broken = webhook(source, f"{receiver.url}/broken", enabled=False)
    receiver.behaviours["/broken"] = [status(500)]
    result = command("test", "--org", str(ORG), "--webhook", str(fine))
    assert result.exit_code == 0
    assert f"ok   webhook {fine}: HTTP 204" in result.output
    (request,) = receiver.requests
    told = Webhook(SECRET).verify(request.body, request.headers)
    assert told["type"] == "usage.test"
    assert told["data"] == {"org_id": str(ORG), "webhook_id": str(fine)}
    result = command("test", "--org", str(ORG))
    assert result.exit_code == 1
    assert f"FAIL webhook {broken} (disabled): HTTP 500" in result.output
    assert isinstance(command("test", "--org", str(OTHER_ORG)).exception, UsagePipelineError)
    assert receiver.url not in result.output


def test_an_operator_sees_what_waits_and_sends_it_again(
    source: AppDatabase,
    settings: Settings,
    receiver: HttpReceiver,
    command: Callable[..., Result],
) -> None:
    hook = webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(410), status(204)]
    message = limit_message("first")
    add(settings, message)
    result = command("deliver")
    assert result.exit_code == 1
    assert "0 delivered, 0 to be sent again, 1 given up" in result.output
    assert "1 times: HTTP 410: it wants no more messages" in result.output
    result = command("list")
    assert result.exit_code == 1
    message_id = receiver.requests[0].headers["webhook-id"]
    for shown in (message_id, str(hook), "usage.limit_warning", "dead", "HTTP 410"):
        assert shown in result.output
    assert receiver.url not in result.output
    assert str(hook) not in command("list", "--org", str(OTHER_ORG)).output
    assert str(hook) not in command("list", "--state", "waiting").output
    assert command("replay").exit_code == 2
    assert command("replay", "--dead").exit_code == 0
    assert isinstance(command("replay", "--dead").exception, UsagePipelineError)
    result = command("deliver")
    assert (result.exit_code, "1 delivered" in result.output) == (0, True)
    assert command("list").exit_code == 0
    assert command("replay", message_id).exit_code == 0
    assert command("replay", "msg_none").exit_code == 2
    assert "1 delivered" in command("deliver").output
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1


def test_a_backlog_leaves_in_one_run_though_some_of_it_is_refused(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/mixed")
    webhook(source, f"{receiver.url}/away")
    receiver.behaviours["/mixed"] = [status(204), status(500), status(204)]
    receiver.behaviours["/away"] = [status(500)]
    add(settings, *(limit_message(f"message {n}") for n in range(120)))
    report = deliver(settings)
    assert (report.delivered, report.failed) == (119, 121)
    assert len(receiver.at("/away")) == 50  # of which it took nothing: the others are not tried
    assert outbox.waiting(settings) == outbox.Waiting(due=0, later=121)
    assert waits(source) == (121, 0)


def test_a_backlog_that_is_refused_for_the_last_time_is_dead(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    """What is not tried any more goes the way of what was."""
    receiver.behaviours["/away"] = [status(500)]
    add(settings, *(limit_message(f"message {n}") for n in range(120)))
    address_all(settings, webhook(source, f"{receiver.url}/away"))
    source.execute(
        f"update usage.outbox_deliveries set attempts = {outbox.MAX_ATTEMPTS - 1};"
        " update usage.outbox_deliveries set attempts = 0, due_at = now() - interval '1 hour'"
        " where message_id in (select message_id from usage.outbox_messages limit 50)"
    )
    report = deliver(settings)
    assert (report.dead, report.failed, len(receiver.requests)) == (70, 50, 50)
    assert report.reasons == {"HTTP 500": 120}
    states = source.query(
        "select state, attempts, finished_at <= now(), count(*) from usage.outbox_deliveries"
        " group by 1, 2, 3 order by 1"
    )
    assert states == [("dead", outbox.MAX_ATTEMPTS, True, 70), ("waiting", 1, None, 50)]


def test_many_messages_for_nobody_are_done_with_in_one_run(
    source: AppDatabase, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ADDRESSED_TOGETHER", 10)
    add(settings, *(limit_message(f"message {n}") for n in range(35)))
    assert deliver(settings).addressed == 35
    assert outbox.waiting(settings) == outbox.Waiting()


def test_a_backlog_waits_for_the_pause_that_was_asked_for(
    source: AppDatabase, settings: Settings, receiver: HttpReceiver
) -> None:
    webhook(source, f"{receiver.url}/hook")
    receiver.behaviours["/hook"] = [status(429, Retry_After="7200")]
    add(settings, *(limit_message(f"message {n}") for n in range(120)))
    deliver(settings)
    assert len(receiver.requests) == 1
    attempts = "select attempts, count(*) from usage.outbox_deliveries group by 1 order by 1"
    assert source.query(attempts) == [(0, 119), (1, 1)]
    assert waits(source) == (120, 120)


def waits(source: AppDatabase) -> tuple[int, int]:
    """Deliveries that wait and that nobody has leased, and how many of them for two hours."""
    return source.query(
        "select count(*), count(*) filter (where due_at > now() + interval '119 min')"
        " from usage.outbox_deliveries where state = 'waiting' and lease is null"
    )[0]
