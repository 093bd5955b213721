"""The client of an application, and the same for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from usage_pipeline.client.answers import UsageAggregation, UsageLimit, UsageSummary
from usage_pipeline.client.api import ApiReader, ApiTransport, Connection
from usage_pipeline.client.errors import UsageError
from usage_pipeline.client.events import BadEventError, Id, Quantity, make_event
from usage_pipeline.client.postgres import PostgresReader, PostgresTransport
from usage_pipeline.client.sender import Sender
from usage_pipeline.client.transport import PeriodType, Reader, Transport, Window

_ROWS_AT_ONCE = 1000


class UsageClient:
    """Logs usage without waiting for it, and reads what was made of it.

    One a process is enough: its methods may be called from all threads. After a fork, the child's
    copy begins anew with an empty queue.

    Args:
        url: of the API, such as `https://usage.example.com` (the path is `/api` unless one is
            given), or `postgresql://…` to go without it; else `USAGE_API_URL`.
        key: service key, or a token of the application; else `USAGE_API_KEY`.
        cron_secret: for `trigger_usage_aggregation`; else `CRON_SECRET`.
        capacity: events that may be on their way at once; further ones are dropped.
        timeout: seconds without a sign of life after which a request is given up.
        exit_timeout: seconds for which the end of the process may wait for events to be sent.
        directory: on a local disk, where the number of pending events outlives a killed process;
            else `USAGE_CLIENT_DIR`, and without either no number is kept.
        events_table: for `postgresql://…`: the table of events.
        schema: for `postgresql://…`: where usage is published.

    Raises:
        ValueError: `url` is no such address, or `key` no key.
        ImportError: `postgresql://…` without psycopg2.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        cron_secret: str | None = None,
        capacity: int = 10_000,
        timeout: float = 10.0,
        exit_timeout: float = 5.0,
        directory: str | os.PathLike[str] | None = None,
        events_table: str = "usage_events",
        schema: str = "usage",
    ) -> None:
        url = os.environ.get("USAGE_API_URL") if url is None else url
        key = key or os.environ.get("USAGE_API_KEY")
        where = directory or os.environ.get("USAGE_CLIENT_DIR")
        self._cron_secret = cron_secret or os.environ.get("CRON_SECRET")
        self._reader: Reader | None = None
        transport: Transport | None = None
        if url and url.startswith(("postgresql://", "postgres://")):
            transport = PostgresTransport(url, timeout, events_table)
            self._reader = PostgresReader(url, timeout, schema)
        elif url:
            transport = ApiTransport(Connection(url, key, timeout))
            self._reader = ApiReader(url, key, timeout)
        self._sender = Sender(
            transport,
            capacity=capacity,
            exit_timeout=exit_timeout,
            directory=Path(where) if where else None,
        )

    def log_usage(
        self,
        user_id: Id,
        event_type: str,
        quantity: Quantity = 1,
        org_id: Id | None = None,
        event_data: Mapping[str, Any] | None = None,
        created_at: datetime | None = None,
        id: Id | None = None,
    ) -> UUID | None:
        """Log an event. Waits for nothing, and raises nothing: see `rejected` and `dropped`.

        Args:
            user_id: whose usage it is.
            event_type: 1 to 100 characters of `a-z`, `0-9`, `_`, `.` and `-`.
            quantity: of whatever the type counts, rounded to nine digits after the point.
            org_id: within which organisation; None for personal use.
            event_data: what else is known, at most 16 KiB as JSON.
            created_at: when it happened, with a time zone; now unless given.
            id: of the event, made here unless given. Events of one id count once.

        Returns:
            The event's id, or None when it was rejected or dropped.
        """
        try:
            event = make_event(user_id, event_type, quantity, org_id, event_data, created_at, id)
        except BadEventError as error:
            self._sender.reject(str(error))
        except Exception as error:  # an argument with a mind of its own
            self._sender.reject(type(error).__name__)
        else:
            return event.id if self._sender.put(event) else None
        return None

    def get_usage_summary(
        self, user_id: Id | None = None, org_id: Id | None = None, period: Window = "month"
    ) -> UsageSummary:
        """The trailing 7, 30 or 365 days by meter: of a user over everything, or of `org_id`.

        Raises:
            UsageError: there is none to be had.
        """
        return self._usage.summary(user_id, org_id, period)

    def get_aggregated_usage(
        self,
        user_id: Id | None = None,
        org_id: Id | None = None,
        period_type: PeriodType = "daily",
        start: date | None = None,
        end: date | None = None,
        metric_type: str | None = None,
    ) -> Iterator[UsageAggregation]:
        """Totals by day or month, oldest first, read page by page while they are iterated over.

        Args:
            start, end: periods that begin in `[start, end)`: days of the pipeline's time zone, or
                instants with a time zone.

        Raises:
            UsageError: while iterating, when there are none to be had.
        """
        return self._usage.aggregated(user_id, org_id, period_type, start, end, metric_type)

    def get_usage_limits(
        self, user_id: Id | None = None, org_id: Id | None = None
    ) -> list[UsageLimit]:
        """The running month beside the plan's limits: of a user, or of `org_id` and its member.

        Raises:
            UsageError: there are none to be had.
        """
        return self._usage.limits(user_id, org_id)

    def trigger_usage_aggregation(
        self,
        period_type: PeriodType | None = None,
        period_start: date | None = None,
        period_end: date | None = None,
    ) -> str:
        """Have days `[period_start, period_end)` rolled up, yesterday unless given.

        Returns:
            The id of Dagster's run, which has just begun.

        Raises:
            UsageError: no run was started.
        """
        return self._usage.trigger(self._cron_secret, period_type, period_start, period_end)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was logged before is sent or rejected; whether it is, in `timeout` s."""
        return self._sender.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Send what is there, within `timeout` seconds (`exit_timeout` unless given), and stop."""
        self._sender.close(timeout)

    @property
    def pending(self) -> int:
        """Events on their way."""
        return self._sender.pending

    @property
    def sent(self) -> int:
        """Events that were taken; those that the other side had already count once more."""
        return self._sender.sent

    @property
    def rejected(self) -> int:
        """Events that could not be used: bad arguments, or refused by the other side."""
        return self._sender.rejected

    @property
    def dropped(self) -> int:
        """Events that found the queue full, the client closed, or no address."""
        return self._sender.dropped

    @property
    def lost(self) -> int:
        """Events that killed processes of the same `directory` had not sent, at most."""
        return self._sender.lost

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _usage(self) -> Reader:
        if self._reader is None:
            raise UsageError("No address", "set USAGE_API_URL")
        return self._reader


class AsyncUsageClient:
    """`UsageClient` for asyncio: the same arguments and the same names, each method awaited.

    What waits for the other side does so in a thread of asyncio's pool.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        cron_secret: str | None = None,
        capacity: int = 10_000,
        timeout: float = 10.0,
        exit_timeout: float = 5.0,
        directory: str | os.PathLike[str] | None = None,
        events_table: str = "usage_events",
        schema: str = "usage",
    ) -> None:
        self._client = UsageClient(
            url,
            key=key,
            cron_secret=cron_secret,
            capacity=capacity,
            timeout=timeout,
            exit_timeout=exit_timeout,
            directory=directory,
            events_table=events_table,
            schema=schema,
        )

    async def log_usage(
        self,
        user_id: Id,
        event_type: str,
        quantity: Quantity = 1,
        org_id: Id | None = None,
        event_data: Mapping[str, Any] | None = None,
        created_at: datetime | None = None,
        id: Id | None = None,
    ) -> UUID | None:
        return self._client.log_usage(
            user_id, event_type, quantity, org_id, event_data, created_at, id
        )

    async def get_usage_summary(
        self, user_id: Id | None = None, org_id: Id | None = None, period: Window = "month"
    ) -> UsageSummary:
        return await asyncio.to_thread(self._client.get_usage_summary, user_id, org_id, period)

    async def get_aggregated_usage(
        self,
        user_id: Id | None = None,
        org_id: Id | None = None,
        period_type: PeriodType = "daily",
        start: date | None = None,
        end: date | None = None,
        metric_type: str | None = None,
    ) -> AsyncIterator[UsageAggregation]:
        """To be iterated over with `async for`."""
        rows = self._client.get_aggregated_usage(
            user_id, org_id, period_type, start, end, metric_type
        )
        while page := await asyncio.to_thread(lambda: list(islice(rows, _ROWS_AT_ONCE))):
            for row in page:
                yield row

    async def get_usage_limits(
        self, user_id: Id | None = None, org_id: Id | None = None
    ) -> list[UsageLimit]:
        return await asyncio.to_thread(self._client.get_usage_limits, user_id, org_id)

    async def trigger_usage_aggregation(
        self,
        period_type: PeriodType | None = None,
        period_start: date | None = None,
        period_end: date | None = None,
    ) -> str:
        return await asyncio.to_thread(
            self._client.trigger_usage_aggregation, period_type, period_start, period_end
        )

    async def flush(self, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self._client.flush, timeout)

    async def close(self, timeout: float | None = None) -> None:
        await asyncio.to_thread(self._client.close, timeout)

    @property
    def pending(self) -> int:
        return self._client.pending

    @property
    def sent(self) -> int:
        return self._client.sent

    @property
    def rejected(self) -> int:
        return self._client.rejected

    @property
    def dropped(self) -> int:
        return self._client.dropped

    @property
    def lost(self) -> int:
        return self._client.lost

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
