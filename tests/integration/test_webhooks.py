"""Webhooks against real receivers that behave, and ones that do not."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from receivers import Behaviour, HttpReceiver, drip, receiving, status
from standardwebhooks import Webhook, WebhookVerificationError

from usage_pipeline.alerts import webhooks
from usage_pipeline.alerts.outbox import Delivery, Outcome
from usage_pipeline.alerts.webhooks import deliver, signer
from usage_pipeline.app_db.recipients import Endpoint

LOOPBACK = [ip_network("127.0.0.0/8")]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw"
NAME = "hooks.example.com"
CERTIFICATE = Path(__file__).parents[1] / "tls" / "example.pem"  # of NAME, signed by itself


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(webhooks, "ANSWER_SECONDS", 0.3)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes the name resolve to one address after the other; gives the list of look-ups."""
    original = socket.getaddrinfo

    def make(*addresses: str) -> list[str]:
        looked_up: list[str] = []

        def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
            if host != NAME:
                return original(host, *args, **kwargs)
            looked_up.append(host)
            address = addresses[min(len(looked_up), len(addresses)) - 1]
            return original(address, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return looked_up

    return make


def endpoint(url: str, secret: str = SECRET, enabled: bool = True) -> Endpoint:
    return Endpoint(uuid4(), UUID(int=1), url, secret, enabled)


def waiting(count: int = 1) -> list[Delivery]:
    at = datetime(2026, 5, 4, tzinfo=UTC)
    return [
        Delivery(
            message_id=uuid4(),
            channel="webhook",
            recipient_id=UUID(int=7),
            attempts=0,
            event_type="usage.rolled_up",
            org_id=UUID(int=1),
            user_id=None,
            payload={"number": number},
            created_at=at,
        )
        for number in range(count)
    ]


def sent(to: Endpoint, count: int = 1, networks: Any = LOOPBACK) -> list[tuple[str, str | None]]:
    """How each message ended, and why."""
    deliveries = waiting(count)
    outcomes = list(deliver(to, deliveries, networks))
    assert [outcome.delivery for outcome in outcomes] == deliveries
    return [(outcome.end, outcome.reason) for outcome in outcomes]


def test_a_message_has_the_headers_of_the_standard(receiver: HttpReceiver) -> None:
    before = int(time.time())
    (delivery,) = waiting()
    (outcome,) = deliver(endpoint(f"{receiver.url}/a/b?c=d#e"), [delivery], LOOPBACK)
    assert outcome == Outcome(delivery, "delivered")
    (request,) = receiver.requests
    assert request.path == "/a/b?c=d"
    assert request.headers["host"] == receiver.url.removeprefix("http://")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == f"msg_{delivery.message_id.hex}"
    assert before <= int(request.headers["webhook-timestamp"]) <= time.time()
    assert json.loads(request.body) == {
        "type": "usage.rolled_up",
        "timestamp": "2026-05-04T00:00:00+00:00",
        "data": {"number": 0},
    }
    assert Webhook(SECRET).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body.replace(b"0", b"1"), request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(request.body, request.headers)


@pytest.mark.parametrize(
    ("secret", "verifier"),
    [
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw", Webhook("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw==")),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw==", Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw")),
        # Such a text is not Base64, whatever padding is added: it is the key itself.
        ("pässword", Webhook("pässword".encode())),
        ("abcde", Webhook(b"abcde")),
        ("!?", Webhook(b"!?")),
    ],
)
def test_any_text_is_a_secret(secret: str, verifier: Webhook) -> None:
    at = datetime.now(UTC)
    assert signer(secret).sign("msg_1", at, "{}") == verifier.sign("msg_1", at, "{}")


def test_messages_share_a_connection(receiver: HttpReceiver) -> None:
    assert sent(endpoint(receiver.url), 20) == [("delivered", None)] * 20
    assert len({request.connection for request in receiver.requests}) == 1


def test_a_connection_that_was_closed_meanwhile_is_opened_again(receiver: HttpReceiver) -> None:
    def close_quietly(handler: BaseHTTPRequestHandler) -> None:
        status(204)(handler)
        handler.close_connection = True  # without having said so

    receiver.behaviours["/"] = [close_quietly]
    assert sent(endpoint(f"{receiver.url}/"), 3) == [("delivered", None)] * 3
    assert len(receiver.requests) == 3


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


ENDLESS = b"".join(b"X-%d: y\r\n" % number for number in range(10_000))
NO_ANSWERS: dict[str, tuple[Behaviour, str]] = {
    "hangs up": (hang_up, "it closed the connection"),
    "speaks another language": (
        drip(b"", 0, at_once=b"220 mail.example.com ESMTP\r\n"),
        "its answer is no HTTP",
    ),
    "drips": (drip(b"HTTP/1.1 200 OK\r\n" + ENDLESS, 0.05), "it did not answer in time"),
    "drips its first line": (drip(b"H" * 1000, 0.05), "it did not answer in time"),
    "drips its headers": (
        drip(ENDLESS, 0.05, at_once=b"HTTP/1.1 200 OK\r\n"),
        "it did not answer in time",
    ),
    "has no end of headers": (
        drip(b"", 0, at_once=b"HTTP/1.1 200 OK\r\n" + ENDLESS),
        "its answer is no HTTP",
    ),
}


@pytest.mark.parametrize("behaviour", NO_ANSWERS)
def test_an_endpoint_that_gives_no_answer_has_not_got_the_message(
    behaviour: str, receiver: HttpReceiver, impatient: None
) -> None:
    behaves, reason = NO_ANSWERS[behaviour]
    receiver.behaviours["/"] = [behaves]
    assert sent(endpoint(f"{receiver.url}/"), 3) == [("failed", reason)] * 3
    assert len(receiver.requests) == 1  # the others would not have been answered either


def test_an_endpoint_that_hangs_is_given_up_in_time(
    receiver: HttpReceiver, impatient: None
) -> None:
    receiver.behaviours["/"] = [receiver.hang]
    assert sent(endpoint(f"{receiver.url}/"), 2) == [("failed", "it did not answer in time")] * 2


def flood(handler: BaseHTTPRequestHandler) -> None:
    """An answer of which there is always more."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    try:
        while True:
            handler.wfile.write(b"x" * 65_536)
            handler.wfile.flush()
    except OSError:
        flooded.set()


flooded = threading.Event()


def test_an_answer_without_end_is_not_read(receiver: HttpReceiver) -> None:
    receiver.behaviours["/"] = [flood]
    assert sent(endpoint(f"{receiver.url}/")) == [("delivered", None)]
    assert flooded.wait(10)  # it was hung up on


def test_an_answer_that_drips_behind_its_status_counts(
    receiver: HttpReceiver, impatient: None
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        drip(b"x" * 1000, 0.05)(handler)

    receiver.behaviours["/"] = [answer, status(204)]
    assert sent(endpoint(f"{receiver.url}/"), 2) == [("delivered", None)] * 2


@pytest.mark.parametrize(
    ("code", "end", "reason"),
    [
        (200, "delivered", None),
        (299, "delivered", None),
        (301, "failed", "HTTP 301: redirects are not followed"),
        (307, "failed", "HTTP 307: redirects are not followed"),
        (400, "failed", "HTTP 400"),
        (410, "dead", "HTTP 410: it wants no more messages"),
        (500, "failed", "HTTP 500"),
    ],
)
def test_a_status_decides(code: int, end: str, reason: str | None, receiver: HttpReceiver) -> None:
    receiver.behaviours["/"] = [status(code, Location=f"{receiver.url}/elsewhere")]
    assert sent(endpoint(f"{receiver.url}/"), 2) == [(end, reason)] * 2
    assert receiver.at("/elsewhere") == []


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("3600", 3600, 3600),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 86_400, 86_400),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
    ],
)
def test_who_asks_for_a_pause_gets_it(
    retry_after: str, least: int, most: int, receiver: HttpReceiver
) -> None:
    receiver.behaviours["/"] = [status(204), status(429, Retry_After=retry_after)]
    first, second, third = deliver(endpoint(f"{receiver.url}/"), waiting(3), LOOPBACK)
    assert [first.end, second.end, third.end] == ["delivered", "failed", "postponed"]
    assert second.reason == "HTTP 429"
    for outcome in (second, third):
        assert timedelta(seconds=least) <= outcome.after <= timedelta(seconds=most)
    assert len(receiver.requests) == 2


@pytest.mark.parametrize("retry_after", ["soon", "-1", "", "٣", "9" * 400])
def test_an_unreadable_pause_is_none(retry_after: str, receiver: HttpReceiver) -> None:
    receiver.behaviours["/"] = [status(503, Retry_After=retry_after.encode().decode("latin-1"))]
    ends = [end for end, _ in sent(endpoint(f"{receiver.url}/"), 1)]
    assert ends == ["failed"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "its URL does not begin with https:// or http:// and a host"),
        ("hooks.example.com/x", "its URL does not begin with https:// or http:// and a host"),
        ("https://", "its URL does not begin with https:// or http:// and a host"),
        ("file:///etc/passwd", "its URL does not begin with https:// or http:// and a host"),
        ("gopher://127.0.0.1/x", "its URL does not begin with https:// or http:// and a host"),
        ("https://ada:hunter2@127.0.0.1/", "its URL has a user or password in it"),
        ("http://127.0.0.1:25/", "its port 25 is not one for HTTP"),
        ("http://127.0.0.1:99999/", "its URL cannot be read"),
        ("https://hook s.example.com/", "its URL cannot be read"),
        ("https://[::1/", "its URL cannot be read"),
    ],
)
def test_a_url_that_is_none_is_said_without_it(url: str, reason: str) -> None:
    assert sent(endpoint(url), 2) == [("failed", reason)] * 2


def test_an_empty_secret_signs_nothing(receiver: HttpReceiver) -> None:
    assert sent(endpoint(receiver.url, secret="")) == [("failed", "its secret is empty")]
    assert receiver.requests == []


def test_who_is_gone_or_disabled_is_not_sent_to(receiver: HttpReceiver) -> None:
    assert sent(endpoint(receiver.url, enabled=False)) == [("skipped", "the webhook is disabled")]
    (outcome,) = deliver(None, waiting(), LOOPBACK)
    assert (outcome.end, outcome.reason) == ("skipped", "the webhook is gone")
    assert receiver.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]", NAME])
def test_a_private_address_is_refused_however_it_is_named(
    host: str, receiver: HttpReceiver, resolved: Any
) -> None:
    resolved("127.0.0.1")
    port = receiver.url.rpartition(":")[2]
    why = "its address is of a private or local network"
    assert sent(endpoint(f"http://{host}:{port}/"), networks=()) == [("failed", why)]
    assert receiver.requests == []


def test_a_name_that_resolves_differently_the_second_time_is_not_followed(
    receiver: HttpReceiver, resolved: Any
) -> None:
    """The first address is allowed, the second is not: neither a message of the same connection nor
    one of the next gets to it."""
    looked_up = resolved("127.0.0.1", "127.0.0.2")
    port = receiver.url.rpartition(":")[2]
    to, allowed = endpoint(f"http://{NAME}:{port}/"), [ip_network("127.0.0.1/32")]
    receiver.behaviours["/"] = [status(204), status(204), status(204, Connection="close")]
    assert (
        sent(to, 5, allowed)
        == [("delivered", None)] * 3
        + [("failed", "its address is of a private or local network")] * 2
    )
    assert len(looked_up) == 2


def test_proxies_of_the_environment_are_not_used(
    receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert sent(endpoint(receiver.url)) == [("delivered", None)]


@contextmanager
def receiving_tls(names: list[str | None]) -> Iterator[HttpReceiver]:
    """A receiver with TLS; adds the name that each client asks for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.sni_callback = lambda connected, name, context: names.append(name)
    with receiving(lambda sock: context.wrap_socket(sock, server_side=True)) as made:
        yield made


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The certificate is one of the machine's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    webhooks._tls.cache_clear()
    yield
    webhooks._tls.cache_clear()


def test_a_certificate_is_checked_for_the_name(resolved: Any, trusted: None) -> None:
    resolved("127.0.0.1")
    names: list[str | None] = []
    with receiving_tls(names) as receiver:
        port = receiver.url.rpartition(":")[2]
        assert sent(endpoint(f"https://{NAME}:{port}/"), 2) == [("delivered", None)] * 2
        assert names == [NAME]
        assert receiver.requests[0].headers["host"] == f"{NAME}:{port}"
        invalid = [("failed", "its certificate is not valid")]
        assert sent(endpoint(f"https://localhost:{port}/")) == invalid
        assert sent(endpoint(f"https://127.0.0.1:{port}/")) == invalid
        assert len(receiver.requests) == 2


def test_a_certificate_of_nobody_is_refused(resolved: Any) -> None:
    resolved("127.0.0.1")
    webhooks._tls.cache_clear()
    with receiving_tls([]) as receiver:
        port = receiver.url.rpartition(":")[2]
        assert sent(endpoint(f"https://{NAME}:{port}/")) == [
            ("failed", "its certificate is not valid")
        ]
        assert receiver.requests == []


def test_a_handshake_that_never_ends_is_given_up(impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert (
            sent(endpoint(f"https://127.0.0.1:{port}/"), 2)
            == [("failed", "it did not answer in time")] * 2
        )


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert sent(endpoint(f"http://127.0.0.1:{port}/")) == [("failed", "it cannot be reached")]


def test_urls_and_secrets_are_in_no_log(
    receiver: HttpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broken = b"HTTP/1.1 200 OK\r\nnot a header\r\n\r\n"
    receiver.behaviours["/a-token"] = [drip(broken, 0), hang_up, status(500)]
    to = endpoint(f"{receiver.url}/a-token", secret="a-secret")
    for _ in range(3):
        sent(to)
    assert len(receiver.requests) >= 3
    assert "a-token" not in caplog.text + repr(to)
    assert "a-secret" not in caplog.text + repr(to)
