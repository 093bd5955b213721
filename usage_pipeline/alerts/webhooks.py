"""Webhooks: a message as a signed HTTP request, after <https://www.standardwebhooks.com>.

An endpoint is a URL that somebody else chose. It gets no further than a public address, is not
followed anywhere, and is read from for a while and no more than it takes to know its verdict.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from uuid import uuid4

from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError
from urllib3 import Retry
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NewConnectionError,
)
from urllib3.util import Url, parse_url

from usage_pipeline.alerts.events import TEST, as_json
from usage_pipeline.alerts.outbox import LONGEST_DELAY, Delivery, Outcome, known_as
from usage_pipeline.app_db.recipients import Endpoint
from usage_pipeline.infra.outbound import Network, NotAllowed, addresses, time_limit

CONNECT_SECONDS = 5.0  # for each address, and as long again for TLS
ANSWER_SECONDS = 15.0  # for the whole of an answer, however slowly it comes
BODY_BYTES = 16_384  # more of an answer is not read
# It warns of an answer's headers, and names the URL.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
_PORTS = {"http": 80, "https": 443}
_FIRST_FREE_PORT = 1024  # those below are of mail servers and the like, which are no receivers
_CLOSED = "it closed the connection"
_LATE = "it did not answer in time"
_SOON = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Unusable(Exception):
    """An endpoint that no request can be sent to; why, without its URL."""


class NoAnswer(Exception):
    """A request that was not answered; why, without the URL."""


@dataclass(frozen=True)
class Answer:
    """What an endpoint said: status, and when to come back, if it named that."""

    status: int
    retry_after: timedelta | None = None


class Receiver:
    """One endpoint, through one connection to an address that was checked. Not for threads.

    Args:
        endpoint: URL and secret.
        networks: whose addresses it may have although they are not public.

    Raises:
        Unusable: the URL or the secret is none.
    """

    def __init__(self, endpoint: Endpoint, networks: Collection[Network]) -> None:
        self._networks = networks
        self._url, self._port = _checked(endpoint.url)
        try:
            self._signer = signer(endpoint.secret)
        except EmptyWebhookSecretError:
            raise Unusable("its secret is empty") from None
        self._connection: HTTPConnection | None = None

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def post(self, message_id: str, body: str) -> Answer:
        """Send a message once.

        Raises:
            Unusable: none of its addresses may be connected to.
            NoAnswer: it could not be reached, or did not answer in time.
        """
        if self._connection is not None:
            try:
                return self._exchange(self._connection, message_id, body)
            except NoAnswer as error:
                self.close()
                if error.args[0] != _CLOSED:
                    raise
        self._connection = self._connected()
        try:
            return self._exchange(self._connection, message_id, body)
        except NoAnswer:
            self.close()
            raise

    def _connected(self) -> HTTPConnection:
        host = str(self._url.host).strip("[]")
        try:
            usable = addresses(host, self._port, self._networks)
        except NotAllowed:
            raise Unusable("its address is of a private or local network") from None
        except (OSError, UnicodeError):
            raise NoAnswer("its host has no address") from None
        for address in usable:
            connection = self._connection_to(address, host)
            try:
                connection.connect()
                return connection
            except (HTTPError, HTTPException, OSError) as error:
                connection.close()
                failure = error
        raise NoAnswer(_in_words(failure)) from None

    def _connection_to(self, address: str, host: str) -> HTTPConnection:
        if self._url.scheme == "http":
            return HTTPConnection(address, self._port, timeout=CONNECT_SECONDS)
        return HTTPSConnection(
            address,
            self._port,
            timeout=CONNECT_SECONDS,
            ssl_context=_tls(),
            server_hostname=host,  # whose certificate it has to be
        )

    def _exchange(self, connection: HTTPConnection, message_id: str, body: str) -> Answer:
        now = datetime.now(UTC)
        headers = {
            "Host": self._url.netloc or "",
            "User-Agent": "usage-pipeline",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(message_id, now, body),
        }
        connected = connection.sock
        if connected is None:
            raise NoAnswer(_CLOSED)
        connected.settimeout(ANSWER_SECONDS)
        connection.timeout = ANSWER_SECONDS
        with time_limit(connected, ANSWER_SECONDS) as was_cut:
            try:
                connection.request(
                    "POST",
                    self._url.request_uri,
                    body.encode(),
                    headers,
                    preload_content=False,
                    decode_content=False,
                )
                response = connection.getresponse()
            except (HTTPError, HTTPException, OSError, ValueError) as error:
                raise NoAnswer(_LATE if was_cut.is_set() else _in_words(error)) from None
            if was_cut.is_set():  # in the headers, which seem to end there
                raise NoAnswer(_LATE)
            answer = Answer(response.status, _retry_after(response.headers.get("Retry-After")))
            try:  # a connection is used again only when nothing is left in it
                if len(response.read(BODY_BYTES)) == BODY_BYTES:
                    connection.close()
            except (HTTPError, HTTPException, OSError, ValueError):
                connection.close()
        return answer


def signer(secret: str) -> Webhook:
    """Signs and verifies. A secret is what the library takes it for, Base64 with or without
    `whsec_`; one that the library does not take is its own UTF-8 bytes."""
    try:
        return Webhook(secret)
    except (ValueError, EmptyWebhookSecretError):
        return Webhook(secret.encode())


def deliver(
    endpoint: Endpoint | None,
    deliveries: Sequence[Delivery],
    networks: Collection[Network],
    may_go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Outcome]:
    """Send messages to an endpoint, one after the other, and say how each went.

    When it does not answer, the others are not tried, and have failed as well. Messages that it
    was not the time for, when it asked for a pause, are postponed.

    Args:
        endpoint: None where it is gone.
        deliveries: all to this endpoint; what is of an organisation that it is not of is skipped.
        networks: see `Receiver`.
        may_go_on: asked before each; when not, the rest have no outcome.
    """
    if endpoint is None or not endpoint.enabled:
        why = "the webhook is gone" if endpoint is None else "the webhook is disabled"
        yield from (Outcome(delivery, "skipped", why) for delivery in deliveries)
        return
    usable = []
    for delivery in deliveries:
        if delivery.org_id == endpoint.org_id:
            usable.append(delivery)
        else:
            yield Outcome(delivery, "skipped", "the webhook is another organisation's")
    try:
        receiver = Receiver(endpoint, networks)
    except Unusable as error:
        yield from (Outcome(delivery, "failed", str(error)) for delivery in usable)
        return
    try:
        for number, delivery in enumerate(usable):
            if not may_go_on():
                return
            try:
                answer = receiver.post(*as_request(delivery))
            except (NoAnswer, Unusable) as error:
                yield from (Outcome(other, "failed", str(error)) for other in usable[number:])
                return
            yield _outcome(delivery, answer)
            if answer.status in _SOON and answer.retry_after is not None:
                yield from (
                    Outcome(other, "postponed", after=answer.retry_after)
                    for other in usable[number + 1 :]
                )
                return
    finally:
        receiver.close()


def try_out(endpoint: Endpoint, networks: Collection[Network]) -> Answer:
    """Send a test event, enabled or not.

    Raises:
        Unusable: no request can be sent there.
        NoAnswer: it could not be reached, or did not answer in time.
    """
    payload = as_json(TEST, {"org_id": endpoint.org_id, "webhook_id": endpoint.webhook_id})
    receiver = Receiver(endpoint, networks)
    try:
        return receiver.post(known_as(uuid4()), body_of(TEST, datetime.now(UTC), payload))
    finally:
        receiver.close()


def as_request(delivery: Delivery) -> tuple[str, str]:
    """`webhook-id` and body of a message; the same at each attempt."""
    body = body_of(delivery.event_type, delivery.created_at, delivery.payload)
    return known_as(delivery.message_id), body


def body_of(event_type: str, at: datetime, payload: dict[str, Any]) -> str:
    return json.dumps(
        {"type": event_type, "timestamp": at.astimezone(UTC).isoformat(), "data": payload},
        sort_keys=True,
    )


def _outcome(delivery: Delivery, answer: Answer) -> Outcome:
    if 200 <= answer.status < 300:
        return Outcome(delivery, "delivered")
    said = f"HTTP {answer.status}"
    if answer.status == HTTPStatus.GONE:
        return Outcome(delivery, "dead", f"{said}: it wants no more messages")
    if 300 <= answer.status < 400:
        said += ": redirects are not followed"
    return Outcome(delivery, "failed", said, answer.retry_after or timedelta())


def _checked(url: str) -> tuple[Url, int]:
    """The URL in its parts, and its port.

    Raises:
        Unusable: a request cannot, or must not, be sent there.
    """
    try:
        parsed = parse_url(url.strip())
    except LocationParseError:
        raise Unusable("its URL cannot be read") from None
    if parsed.scheme not in _PORTS or not parsed.host:
        raise Unusable("its URL does not begin with https:// or http:// and a host")
    if parsed.auth:
        raise Unusable("its URL has a user or password in it")
    port = parsed.port or _PORTS[parsed.scheme]
    if port < _FIRST_FREE_PORT and port not in _PORTS.values():
        raise Unusable(f"its port {port} is not one for HTTP")
    return parsed, port


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _retry_after(value: str | None) -> timedelta | None:
    if value is None:
        return None
    try:
        longest = int(LONGEST_DELAY.total_seconds())
        return timedelta(seconds=Retry(retry_after_max=longest).parse_retry_after(value))
    except (HTTPError, ValueError, OverflowError):
        return None


_WORDS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), _CLOSED),
    ((ssl.SSLCertVerificationError,), "its certificate is not valid"),
    ((ssl.SSLError,), "TLS failed"),
    ((NewConnectionError,), "it cannot be reached"),
    ((TimeoutError, ConnectTimeoutError), _LATE),
    ((ConnectionError,), _CLOSED),
    ((HTTPException, ValueError), "its answer is no HTTP"),
)


def _in_words(error: Exception) -> str:
    """What went wrong, in words of ours, since a library's name the host or the path."""
    causes = (error, error.__cause__, error.__context__)
    found = (words for kinds, words in _WORDS if any(isinstance(it, kinds) for it in causes))
    return next(found, "it cannot be reached")
