"""Events on their way to the API: whole, once, and never at the cost of the caller."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email.utils import format_datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from usage_api import Answer, Call, Reply, UsageApi, document, hang_up, problem, usage_api

from usage_pipeline.client import UsageClient, sender
from usage_pipeline.client.sender import Sender

EVENTS = "/api/usage/events"
USER, ORG = "5f0c8c9e-8f6e-4d0e-9a44-0c1b2d3e4f50", "0e4a6f6c-19e5-4f4c-8f3a-7d2f1a9b8c7d"
BERLIN = timezone(timedelta(hours=2))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool]]:
    """Pauses are noted instead of made: seconds, and whether the other side asked for it."""
    made: list[tuple[float, bool]] = []
    monkeypatch.setattr(
        Sender, "_pause", lambda self, seconds, asked_for: made.append((seconds, asked_for))
    )
    return made


def test_an_event_arrives_as_it_was_logged(api: UsageApi, new_client: Any) -> None:
    client = new_client()
    known = uuid4()
    at = datetime(2026, 5, 4, 1, 2, 3, 456789, BERLIN)
    data = {"model": "gpt-4o", "näme": [1, Decimal("0.10"), None], "at": at}
    given = client.log_usage(USER.upper(), "ai.tokens", "12.50", UUID(ORG), data, at, str(known))
    data["model"] = "changed later"
    assert given == known
    assert client.flush(60)
    assert api.stored[str(known)] == {
        "id": str(known),
        "user_id": USER,
        "org_id": ORG,
        "event_type": "ai.tokens",
        "quantity": "12.5",
        "event_data": {
            "model": "gpt-4o",
            "näme": [1, "0.10", None],
            "at": "2026-05-04T01:02:03.456789+02:00",
        },
        "created_at": "2026-05-03T23:02:03.456789+00:00",
    }
    assert api.calls[0].headers["authorization"] == "Bearer uk_1_secret"
    assert (client.sent, client.rejected, client.dropped, client.pending) == (1, 0, 0, 0)


def test_what_is_not_given_is_one_now_and_personal(api: UsageApi, new_client: Any) -> None:
    client = new_client()
    before = datetime.now(UTC)
    known = client.log_usage(UUID(USER), "api_call")
    after = datetime.now(UTC)
    assert client.flush(60)
    event = api.stored[str(known)]
    assert before <= datetime.fromisoformat(event["created_at"]) <= after
    assert (event["quantity"], set(event)) == (
        "1",
        {"id", "user_id", "event_type", "quantity", "created_at"},
    )


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        (0, "0"),
        (-3, "-3"),
        (1200, "1200"),
        (0.1, "0.1"),
        (1e22, "10000000000000000000000"),
        (Decimal("0E-20"), "0"),
        (Decimal("1.0000000005"), "1.000000001"),
        (Decimal("-1.0000000005"), "-1.000000001"),
        (Decimal("1e-10"), "0"),
        ("99999999999999999999999999999.999999999", "99999999999999999999999999999.999999999"),
        ("  7.250 ", "7.25"),
    ],
)
def test_quantities_are_exact_to_nine_digits(
    api: UsageApi, new_client: Any, given: Any, spelled: str
) -> None:
    client = new_client()
    known = client.log_usage(USER, "api_call", given)
    assert client.flush(60)
    assert api.stored[str(known)]["quantity"] == spelled


class Sulky(Mapping[str, Any]):
    """A mapping that does not want to be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("secret of the application")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("secret of the application")

    def __len__(self) -> int:
        return 1


def endless() -> dict[str, Any]:
    document: dict[str, Any] = {}
    document["again"] = document
    return document


@pytest.mark.parametrize(
    "wrong",
    [
        {"user_id": "nobody"},
        {"user_id": None},
        {"user_id": 7},
        {"event_type": ""},
        {"event_type": "API call"},
        {"event_type": "api_call\n"},
        {"event_type": "a" * 101},
        {"event_type": None},
        {"quantity": "many"},
        {"quantity": None},
        {"quantity": float("nan")},
        {"quantity": Decimal("Infinity")},
        {"quantity": Decimal("sNaN")},
        {"quantity": 10**29},
        {"quantity": Decimal("1e999999")},
        {"quantity": [1]},
        {"org_id": "none"},
        {"event_data": [1]},
        {"event_data": {"a": object()}},
        {"event_data": {"a": float("nan")}},
        {"event_data": {("a", "b"): 1}},
        {"event_data": {"a": "\ud800"}},
        {"event_data": {"a": "x" * 16 * 1024}},
        {"event_data": endless()},
        {"event_data": Sulky()},
        {"created_at": datetime(2026, 5, 4)},  # noqa: DTZ001
        {"created_at": "2026-05-04"},
        {"created_at": datetime(1, 1, 1, tzinfo=BERLIN)},
        {"id": "first"},
    ],
)
def test_bad_arguments_are_counted_and_logged_once(
    api: UsageApi, new_client: Any, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    client = new_client()
    for _ in range(3):
        assert client.log_usage(**{"user_id": USER, "event_type": "api_call", **wrong}) is None
    known = client.log_usage(USER, "api_call", event_data={"a": "x" * (16 * 1024 - 8)})
    assert client.flush(60)
    assert set(api.stored) == {str(known)}
    assert (client.rejected, client.sent, client.dropped) == (3, 1, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "rejected" in said
    assert "secret" not in said


def test_a_queue_that_is_long_leaves_in_batches(api: UsageApi, new_client: Any) -> None:
    released = hold(api)
    client = new_client()
    client.log_usage(USER, "first")
    assert not client.flush(0)
    api.wait_for_calls(1)
    logged = {str(client.log_usage(USER, "api_call")) for _ in range(250)}
    released.set()
    assert client.flush(60)
    assert [len(call.events) for call in api.calls] == [1, 100, 100, 50]
    assert {event["id"] for event in api.of_type("api_call")} == logged


def test_batches_of_great_events_fit_into_a_request(api: UsageApi, new_client: Any) -> None:
    released = hold(api)
    client = new_client()
    for _ in range(201):
        assert client.log_usage(USER, "api_call", event_data={"a": "x" * 16_000})
    released.set()
    assert client.flush(60)
    assert len(api.stored) == 201
    assert max(len(call.body) for call in api.calls) <= 1024 * 1024


def test_a_full_queue_drops_and_says_so(
    api: UsageApi, new_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    released = hold(api)
    client = new_client(capacity=10)
    logged = [client.log_usage(USER, "api_call") for _ in range(25)]
    assert [known is None for known in logged] == [False] * 10 + [True] * 15
    assert (client.pending, client.dropped) == (10, 15)
    released.set()
    assert client.flush(60)
    assert client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert (client.sent, client.pending, client.dropped, len(api.stored)) == (11, 0, 15, 11)
    assert [record.getMessage() for record in caplog.records] == [
        "Usage events are dropped: 10 are waiting"
    ]


def test_an_endpoint_that_is_away_gets_everything_when_it_is_back(
    new_client: Any, no_pauses: None, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    client = new_client(f"http://127.0.0.1:{port}")
    logged = {str(client.log_usage(USER, "api_call")) for _ in range(120)}
    assert not client.flush(0.2)
    assert client.pending == 120
    with usage_api(port) as api:
        assert client.flush(60)
        assert (set(api.stored), api.doubled) == (logged, 0)
    assert (client.sent, client.rejected, client.dropped) == (120, 0, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def lost_answer(api: UsageApi) -> Answer:
    """Everything is stored, and then the connection breaks."""

    def answer(call: Call) -> Reply:
        api.take(call)
        return hang_up(call)

    return answer


def cut_off(call: Call) -> Reply:
    """The connection breaks within the answer."""
    return Reply(200, {"results": []}, halfway=lambda: 1 / 0)


@pytest.mark.parametrize(
    "trouble",
    [
        [hang_up],
        [cut_off] * 2,
        [problem(500, "Internal Server Error")] * 9,
        [problem(502, "Bad Gateway")] * 3,
        [problem(503, "Unavailable")] * 3,
        [problem(401, "Unauthorized")] * 20,
        [problem(403, "Forbidden")] * 20,
        [problem(404, "Not Found")] * 20,
        [problem(301, "Moved", Location="http://example.com")] * 3,
        [problem(429, "Too many", Retry_After="0")] * 5,
        [document(b"<html>")] * 3,
        [document(b"")],
        [document([])],
        [document({"results": "none"})],
        [document({"results": []})],
        [document({"results": [{"status": "accepted"}]})],
        [document({"results": [{"status": "?"}] * 7})],
        [document(b"[" * 100_000)],
    ],
)
def test_trouble_that_passes_costs_no_event(
    api: UsageApi, new_client: Any, no_pauses: None, trouble: list[Answer]
) -> None:
    api.answers[EVENTS] = list(trouble)
    client = new_client()
    logged = {str(client.log_usage(USER, "api_call")) for _ in range(7)}
    assert client.flush(60)
    assert set(api.stored) == logged
    assert (client.sent, client.rejected, client.dropped, client.pending) == (7, 0, 0, 0)
    assert api.answers[EVENTS] == []


def test_an_answer_that_is_lost_doubles_nothing(
    api: UsageApi, new_client: Any, no_pauses: None
) -> None:
    api.answers[EVENTS] = [lost_answer(api)]
    client = new_client()
    logged = [str(client.log_usage(USER, "api_call", n)) for n in range(5)]
    assert client.flush(60)
    assert {i: api.stored[i]["quantity"] for i in logged} == {
        i: str(n) for n, i in enumerate(logged)
    }
    assert (len(api.stored), api.doubled, client.sent) == (5, 5, 5)


def test_a_connection_that_was_closed_meanwhile_is_no_trouble(
    api: UsageApi, new_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    client.log_usage(USER, "api_call")
    assert client.flush(60)
    api.answers[EVENTS] = [hang_up]
    client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert (len(api.stored), client.sent, caplog.records) == (2, 2, [])


@pytest.mark.parametrize(
    ("status", "header", "wait"),
    [
        (429, "7", 7.0),
        (503, "7", 7.0),
        (429, "86400", 3600.0),
        (503, format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True), 0.0),
    ],
)
def test_the_other_side_says_how_long_to_wait(
    api: UsageApi, pauses: list[tuple[float, bool]], status: int, header: str, wait: float
) -> None:
    api.answers[EVENTS] = [problem(status, "Later", Retry_After=header)]
    client = UsageClient(api.url)
    client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert pauses == [(wait, True)]


def test_pauses_grow_to_a_minute(
    api: UsageApi, new_client: Any, pauses: list[tuple[float, bool]]
) -> None:
    api.answers[EVENTS] = [problem(503, "Unavailable")] * 10
    client = new_client()
    client.log_usage(USER, "api_call")
    api.wait_for_calls(11)
    assert client.flush(60)
    longest = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(pauses) == 10
    for (seconds, asked_for), most in zip(pauses, longest, strict=True):
        assert most / 2 <= seconds <= most
        assert not asked_for


def test_an_event_that_is_rejected_stops_no_other(
    api: UsageApi, new_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    for number in range(30):
        client.log_usage(USER, "poison" if number % 10 == 3 else "api_call")
    assert client.flush(60)
    assert (len(api.stored), client.sent, client.rejected) == (27, 27, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "A usage event was rejected: Not valid (event_data.a). Further ones are counted only"
    ]


@pytest.mark.parametrize("status", [400, 413, 422, 403, 409, 500])
def test_an_event_for_which_the_whole_batch_is_refused_stops_no_other(
    api: UsageApi,
    new_client: Any,
    no_pauses: None,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(sender, "_STRIKES", 5)

    def refuse(call: Call) -> Reply:
        if any(event["event_type"] == "poison" for event in call.events):
            return problem(status, "Bad")(call)
        return api.take(call)

    api.always[EVENTS] = refuse
    client = new_client()
    released = hold(api)
    for number in range(150):
        client.log_usage(USER, "poison" if number in (3, 77, 149) else "api_call")
    released.set()
    while not client.flush(0.05):  # as an application goes on
        client.log_usage(USER, "later")
    assert (len(api.of_type("api_call")), client.rejected) == (147, 3)
    assert client.sent == len(api.stored)


def test_others_pass_while_an_event_waits_for_its_next_attempt(
    api: UsageApi, new_client: Any
) -> None:
    def refuse(call: Call) -> Reply:
        if any(event["event_type"] == "odd" for event in call.events):
            return problem(500, "Bad")(call)
        return api.take(call)

    api.always[EVENTS] = refuse
    client = new_client()
    client.log_usage(USER, "odd")
    for _ in range(9):
        client.log_usage(USER, "api_call")
    while client.sent < 9:
        client.flush(0.05)
    assert (len(api.stored), client.pending, client.rejected) == (9, 1, 0)
    api.always[EVENTS] = api.take
    assert client.flush(60)
    assert (len(api.stored), client.sent, client.rejected) == (10, 10, 0)


@pytest.mark.parametrize("trouble", [problem(500, "Bad"), problem(503, "Busy"), hang_up])
def test_an_endpoint_that_fails_most_of_the_time_costs_no_event(
    api: UsageApi, new_client: Any, no_pauses: None, trouble: Answer
) -> None:
    """Nine of ten requests fail, whatever they hold."""
    api.always[EVENTS] = every(10, api, trouble)
    client = new_client()
    logged = {str(client.log_usage(USER, "api_call")) for _ in range(60)}
    assert client.flush(120)
    assert set(api.stored) == logged
    assert (client.sent, client.rejected, client.dropped) == (60, 0, 0)


@pytest.mark.parametrize("trouble", [problem(503, "Busy"), problem(502, "Away"), hang_up])
def test_nobody_is_blamed_without_an_answer(
    api: UsageApi,
    new_client: Any,
    no_pauses: None,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Answer,
) -> None:
    monkeypatch.setattr(sender, "_STRIKES", 1)
    api.always[EVENTS] = every(3, api, trouble)
    client = new_client()
    for _ in range(20):
        client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert (len(api.stored), client.rejected) == (20, 0)


def test_threads_share_a_client(api: UsageApi, new_client: Any) -> None:
    client = new_client()
    logged: list[list[UUID]] = [[] for _ in range(8)]

    def work(mine: list[UUID]) -> None:
        mine += [client.log_usage(USER, "api_call") for _ in range(200)]

    threads = [threading.Thread(target=work, args=(mine,)) for mine in logged]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(60)
    assert set(api.stored) == {str(known) for mine in logged for known in mine}
    assert (len(api.stored), client.sent) == (1600, 1600)


def test_a_signal_handler_may_log_in_the_middle_of_logging(api: UsageApi, new_client: Any) -> None:
    client = new_client()
    from_handler: list[UUID] = []
    before = signal.signal(
        signal.SIGALRM, lambda *_: from_handler.append(client.log_usage(USER, "alarm"))
    )
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        number = 0
        while len(from_handler) < 200:
            client.log_usage(USER, "api_call")
            number += 1
            if client.pending > 5000:
                client.flush(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert client.flush(60)
    assert {event["id"] for event in api.of_type("alarm")} == {str(i) for i in from_handler}
    assert len(api.stored) == number + len(from_handler) == client.sent


def test_a_logging_handler_may_log_usage(api: UsageApi, new_client: Any) -> None:
    client = new_client()

    class Recursive(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            client.log_usage(USER, "log_record")
            client.log_usage("nobody", "log_record")

    handler = Recursive()
    logging.getLogger("usage_pipeline.client").addHandler(handler)
    try:
        client.log_usage("nobody", "api_call")
    finally:
        logging.getLogger("usage_pipeline.client").removeHandler(handler)
    assert client.flush(60)
    assert (len(api.of_type("log_record")), client.rejected) == (1, 2)


def test_flush_waits_for_nothing_that_came_later(api: UsageApi, new_client: Any) -> None:
    client = new_client()
    client.log_usage(USER, "api_call")
    flushed = threading.Event()

    def take_and_hold(call: Call) -> Reply:
        if len(api.calls) > 1:
            assert flushed.wait(60)
        return api.take(call)

    api.always[EVENTS] = take_and_hold
    api.answers[EVENTS] = [lambda call: (client.log_usage(USER, "later"), api.take(call))[1]]
    assert client.flush(60)
    flushed.set()
    assert client.flush(60)
    assert client.sent == 2


def test_what_is_logged_after_close_is_dropped(
    api: UsageApi, new_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    assert client.log_usage(USER, "api_call")
    client.close()
    client.close()
    assert [client.log_usage(USER, "api_call") for _ in range(2)] == [None, None]
    assert (client.sent, client.dropped, len(api.stored)) == (1, 2, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Usage events are dropped: the client is closed"
    ]


def test_close_says_what_it_leaves_behind(
    api: UsageApi, new_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    api.always[EVENTS] = problem(503, "Unavailable", Retry_After="3000")
    client = new_client(exit_timeout=60)
    for _ in range(4):
        client.log_usage(USER, "api_call")
    client.close()  # which does not wait for what would come after its end
    assert client.pending == 4
    assert "4 usage events were not sent" in caplog.records[-1].getMessage()


def test_without_an_address_events_are_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = UsageClient()
    assert client.log_usage(USER, "api_call") is None
    assert (client.dropped, client.flush(60)) == (1, True)
    client.close()
    assert "USAGE_API_URL" in caplog.text


@pytest.mark.parametrize(
    "url", ["usage.example.com", "ftp://example.com", "https://", "https://me:secret@example.com"]
)
def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError) as told:
        UsageClient(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("given", "path"), [("", "/api"), ("/", "/api"), ("/v1/usage/", "/v1/usage")]
)
def test_the_path_is_api_unless_one_is_given(
    api: UsageApi, new_client: Any, given: str, path: str
) -> None:
    api.always[f"{path}/usage/events"] = api.take
    client = new_client(api.url + given)
    client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert [call.path for call in api.calls] == [f"{path}/usage/events"]


def every(nth: int, api: UsageApi, trouble: Answer) -> Answer:
    """Take each nth request, and have trouble with the others."""

    def answer(call: Call) -> Reply:
        return api.take(call) if len(api.calls) % nth == 0 else trouble(call)

    return answer


def hold(api: UsageApi) -> threading.Event:
    """Keep the next request until the event is set, then do with it what is usual."""
    released = threading.Event()

    def answer(call: Call) -> Reply:
        assert released.wait(60)
        return api.always[EVENTS](call)

    api.answers[EVENTS] = [answer]
    return released
