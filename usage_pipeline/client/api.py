"""The API over HTTP, with nothing but the standard library."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from usage_pipeline.client.answers import (
    UsageAggregation,
    UsageLimit,
    UsageSummary,
    read,
    read_page,
    read_summary,
)
from usage_pipeline.client.errors import UsageError
from usage_pipeline.client.events import Event, Id
from usage_pipeline.client.transport import PeriodType, SendError, Window

_CONTENT_IS_BAD = {400, 413, 422}
_BUSY = {408, 425, 429, 502, 503, 504}
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_PAGE_ROWS = 1000


class Connection:
    """To the API, opened when it is needed and kept.

    Args:
        url: `http://` or `https://` and a host; the path is `/api` unless one is given.
        key: of the caller.
        timeout: seconds without a sign of life from the other side.

    Raises:
        ValueError: the address or the key is none.
    """

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("The address is not http:// or https:// with a host, or postgresql://")
        self._key = (key or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError("The key has characters that no header can hold")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._new = partial(kind, parts.hostname, parts.port, timeout=timeout)
        self._connection: HTTPConnection = self._new()
        self._path = parts.path.rstrip("/") or "/api"

    def request(
        self, method: str, target: str, body: bytes | None = None
    ) -> tuple[HTTPResponse, bytes]:
        """The answer, and its body.

        Raises:
            OSError, HTTPException: there is none.
        """
        reused = self._connection.sock is not None
        try:
            return self._exchange(method, target, body)
        except (ConnectionError, HTTPException):
            if not reused:
                raise
            # It was closed while nothing was to be sent. Events may come twice: they have ids.
            return self._exchange(method, target, body)

    def close(self) -> None:
        """Close it; the next request opens another one."""
        self._connection.close()

    def forget(self) -> None:
        """Leave it to the parent. To close the copy could wait for a lock of the parent's thread,
        which reads from it."""
        self._connection = self._new()

    def _exchange(self, method: str, target: str, body: bytes | None) -> tuple[HTTPResponse, bytes]:
        headers = {"Accept": "application/json", "User-Agent": "usage-pipeline-client"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, self._path + target, body, headers)
            response = self._connection.getresponse()
            text = response.read(_MAX_ANSWER_BYTES + 1)
            if len(text) > _MAX_ANSWER_BYTES or response.length:
                raise HTTPException("the answer was cut off")
            return response, text
        except BaseException:
            self._connection.close()  # what is left of this answer is not the next one's
            raise


class ApiTransport:
    """Events by `POST /usage/events`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, events: Sequence[Event]) -> list[str | None]:
        body = b"[" + b",".join(event.body for event in events) + b"]"
        try:
            response, text = self._connection.request("POST", "/usage/events", body)
        except (OSError, HTTPException) as error:
            raise SendError(f"no answer, {type(error).__name__} {error}") from error
        if response.status != 200:
            raise SendError(
                str(_problem(response, text)),
                refused=response.status in _CONTENT_IS_BAD,
                answered=response.status not in _BUSY,
                wait=_retry_after(response),
            )
        try:
            verdicts = [_verdict(result) for result in json.loads(text)["results"]]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SendError("the answer is not that of the API", answered=True) from None
        if len(verdicts) != len(events):
            raise SendError("the answer is not about all events", answered=True)
        return verdicts

    def close(self) -> None:
        self._connection.close()

    def forget(self) -> None:
        self._connection.forget()


class ApiReader:
    """Usage by the API's `GET`, each call on a connection of its own."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self._url, self._key, self._timeout = url, key, timeout

    def summary(self, user_id: Id | None, org_id: Id | None, period: Window) -> UsageSummary:
        query = {"user_id": user_id, "org_id": org_id, "period": period}
        return read_summary(self._get("/usage/summary", query))

    def aggregated(
        self,
        user_id: Id | None,
        org_id: Id | None,
        period_type: PeriodType,
        start: date | None,
        end: date | None,
        metric_type: str | None,
    ) -> Iterator[UsageAggregation]:
        query: dict[str, object] = {
            "user_id": user_id,
            "org_id": org_id,
            "period_type": period_type,
            "start": start,
            "end": end,
            "metric_type": metric_type,
            "limit": _PAGE_ROWS,
        }
        with closing(Connection(self._url, self._key, self._timeout)) as connection:
            while True:
                page = _ask(connection, "GET", f"/usage/aggregated?{_query(query)}")
                rows, query["cursor"] = read_page(page)
                yield from (read(UsageAggregation, row) for row in rows)
                if query["cursor"] is None:
                    return

    def limits(self, user_id: Id | None, org_id: Id | None) -> list[UsageLimit]:
        rows, _ = read_page(self._get("/usage/limits", {"user_id": user_id, "org_id": org_id}))
        return [read(UsageLimit, row) for row in rows]

    def trigger(
        self,
        secret: str | None,
        period_type: PeriodType | None,
        start: date | None,
        end: date | None,
    ) -> str:
        asked = {"period_type": period_type, "period_start": start, "period_end": end}
        body = json.dumps({k: _spelled(v) for k, v in asked.items() if v is not None}).encode()
        with closing(Connection(self._url, secret, self._timeout)) as connection:
            answer = _ask(connection, "POST", "/cron/aggregate-usage", body)
        if not isinstance(answer, dict) or "run_id" not in answer:
            raise UsageError("The answer is not understood", "it has no run_id")
        return str(answer["run_id"])

    def _get(self, path: str, query: Mapping[str, object]) -> Any:
        with closing(Connection(self._url, self._key, self._timeout)) as connection:
            return _ask(connection, "GET", f"{path}?{_query(query)}")


def _ask(connection: Connection, method: str, target: str, body: bytes | None = None) -> Any:
    try:
        response, text = connection.request(method, target, body)
    except (OSError, HTTPException) as error:
        raise UsageError("No answer", f"{type(error).__name__} {error}") from error
    if response.status not in (200, 202):
        raise _problem(response, text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("The answer is not JSON", status=response.status) from None


def _problem(response: HTTPResponse, text: bytes) -> UsageError:
    try:
        problem = json.loads(text)
        title, detail = str(problem["title"]), str(problem.get("detail") or "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return UsageError(response.reason or "No usage", status=response.status)
    return UsageError(title, detail, response.status, problem)


def _verdict(result: Mapping[str, Any]) -> str | None:
    status = result["status"]
    if status in ("accepted", "duplicate"):
        return None
    if status != "rejected":
        raise ValueError(status)
    problem = result.get("error") or {}
    said = str(problem.get("detail") or problem.get("title") or "no reason was given").rstrip(".")
    # Where, but not the message, which may hold the value.
    places = [".".join(map(str, error["loc"])) for error in problem.get("errors", ())]
    return f"{said} ({', '.join(places)})" if places else said


def _retry_after(response: HTTPResponse) -> float | None:
    """Seconds; the header has those, or a time of day."""
    given = response.headers.get("Retry-After", "").strip()
    if given.isascii() and given.isdigit():
        return float(given)
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _query(parameters: Mapping[str, object]) -> str:
    return urlencode({k: _spelled(v) for k, v in parameters.items() if v is not None})


def _spelled(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
