"""Real receivers on loopback: of HTTP requests, and of mails."""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


Behaviour = Callable[[BaseHTTPRequestHandler], None]


class HttpReceiver:
    """Answers 204, or as told by path; keeps all requests.

    Attributes:
        behaviours: by path, what to do with the nth request; the last one holds for all further.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.behaviours: dict[str, list[Behaviour]] = {}
        self.requests: list[Received] = []
        self._seen: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        self.released = threading.Event()

    def forget(self) -> None:
        """Be as at the beginning."""
        self.behaviours.clear()
        self.requests.clear()
        self._seen.clear()

    def at(self, path: str) -> list[Received]:
        return [request for request in self.requests if request.path == path]

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            number = self._seen[handler.path]
            self._seen[handler.path] += 1
            connection = handler.client_address[1]
            self.requests.append(Received(handler.path, headers, body, connection))
        told = self.behaviours.get(handler.path) or [status(204)]
        told[min(number, len(told) - 1)](handler)

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """Never answer, as long as the test lasts."""
        self.released.wait()
        handler.close_connection = True


def status(code: int, **headers: str) -> Behaviour:
    """Answer with a status, and without a body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if code != 204:
            handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def drip(text: bytes, seconds: float, *, at_once: bytes = b"") -> Behaviour:
    """Answer with some bytes, and then with one now and then."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(at_once)
            for byte in text:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(seconds)
        except OSError:
            pass

    return answer


@contextmanager
def receiving(wrap: Callable[[Any], Any] = lambda socket: socket) -> Iterator[HttpReceiver]:
    """A receiver; its threads are gone at the end.

    Args:
        wrap: of the listening socket, for TLS.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One write an answer: two wait for each other's acknowledgement.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            receiver.handle(self)

        def log_message(self, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *args: Any) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = wrap(server.socket)
        receiver = HttpReceiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.released.set()
            server.shutdown()
            thread.join()


class MailReceiver:
    """Takes all mails, but for what it is told to answer to a recipient."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.answers: dict[str, str] = {}  # to RCPT, by address
        self.url = ""

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append((envelope.rcpt_tos, mail))
        return "250 OK"

    def authenticate(
        self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any
    ) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"p@ss:word", handled=False)


@contextmanager
def receiving_mail(**options: Any) -> Iterator[MailReceiver]:
    """A mail server; `options` are those of aiosmtpd's controller."""
    receiver = MailReceiver()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(
        receiver,
        hostname="127.0.0.1",
        port=port,
        authenticator=receiver.authenticate,
        enable_SMTPUTF8=True,
        **options,
    )
    controller.start()
    receiver.url = f"smtp://127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        controller.stop()
