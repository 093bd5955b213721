"""A small usage API on loopback, as the client meets it: real HTTP, events kept by id."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = Callable[["Call"], "Reply"]


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(json.loads(self.body))


@dataclass(frozen=True)
class Reply:
    """One answer; a document that is bytes goes out as it is. Status 0 hangs up.

    Attributes:
        halfway: what happens before the second half of the document goes out.
    """

    status: int
    document: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    halfway: Callable[[], object] | None = None


class UsageApi:
    """Takes events, each id once; or answers as told.

    Attributes:
        stored: events by id.
        calls: all requests, in their order.
        answers: what to do with the next requests, by path; then what is usual.
        always: what to do with all requests of a path, after those.
        doubled: how many events came that were there.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.stored: dict[str, dict[str, Any]] = {}
        self.calls: list[Call] = []
        self.answers: dict[str, list[Answer]] = {}
        self.always: dict[str, Answer] = {"/api/usage/events": self.take}
        self.doubled = 0
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)

    def answer(self, call: Call) -> Reply:
        with self._lock:
            self.calls.append(call)
            self._arrived.notify_all()
            told = self.answers.get(call.path)
            answer = told.pop(0) if told else self.always.get(call.path)
        return answer(call) if answer else problem(404, "Not Found")(call)

    def take(self, call: Call) -> Reply:
        """Store what is new; refuse events of the type `poison`, each by itself."""
        results = []
        with self._lock:
            for index, event in enumerate(call.events):
                result = {"index": index, "id": event["id"], "status": "accepted"}
                if event["event_type"] == "poison":
                    error = {"loc": ["event_data", "a"], "msg": "is private"}
                    bad = {"title": "Bad", "detail": "Not valid.", "errors": [error]}
                    result |= {"status": "rejected", "error": bad}
                elif event["id"] in self.stored:
                    self.doubled += 1
                    result["status"] = "duplicate"
                else:
                    self.stored[event["id"]] = event
                results.append(result)
        return Reply(200, {"results": results})

    def wait_for_calls(self, number: int) -> None:
        """Until so many requests came."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.calls) >= number, 60)

    def of_type(self, event_type: str) -> list[dict[str, Any]]:
        return [event for event in self.stored.values() if event["event_type"] == event_type]


def problem(status: int, title: str, detail: str = "", **headers: str) -> Answer:
    """Answer with problem details."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    given = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return lambda call: Reply(status, document, given)


def document(content: Any, status: int = 200) -> Answer:
    """Answer with a JSON document, or with bytes."""
    return lambda call: Reply(status, content)


def hang_up(call: Call) -> Reply:
    """Close the connection without an answer."""
    return Reply(0)


@contextmanager
def usage_api(port: int = 0) -> Iterator[UsageApi]:
    """The API on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = dict(parse_qsl(parts.query))
            reply = api.answer(Call(self.command, parts.path, query, headers, body))
            if not reply.status:
                self.close_connection = True
                return
            text = reply.document
            if not isinstance(text, bytes):
                text = json.dumps(text).encode()
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if reply.halfway:
                self.wfile.write(text[: len(text) // 2])
                reply.halfway()
                text = text[len(text) // 2 :]
            self.wfile.write(text)

        do_POST = do_GET

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", port), Handler)
    api = UsageApi(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
