"""Functions on one client that the whole process shares."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any
from uuid import UUID

from usage_pipeline.client.answers import UsageAggregation, UsageLimit, UsageSummary
from usage_pipeline.client.client import UsageClient
from usage_pipeline.client.events import Id, Quantity
from usage_pipeline.client.transport import PeriodType, Window

_log = logging.getLogger("usage_pipeline.client")


class _Shared:
    """The client, made from the environment when it is first needed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.client: UsageClient | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def get(self) -> UsageClient:
        problem = None
        with self.lock:
            if self.client is None:
                try:
                    self.client = UsageClient()
                except (ValueError, ImportError) as error:  # nothing may raise in `log_usage`
                    self.client, problem = UsageClient(url=""), error
            client = self.client
        if problem:
            _log.warning("Usage events are dropped: USAGE_API_URL is of no use. %s", problem)
        return client

    def set(self, client: UsageClient) -> None:
        with self.lock:
            before, self.client = self.client, client
        if before:
            before.close()

    def _after_fork(self) -> None:
        self.lock = threading.RLock()


_shared = _Shared()


def shared_client() -> UsageClient:
    """The client of these functions, for its counters, `flush` and `close`."""
    return _shared.get()


def configure(
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
) -> UsageClient:
    """Make the shared client, with the arguments of `UsageClient`; one before it is closed."""
    client = UsageClient(
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
    _shared.set(client)
    return client


def log_usage(
    user_id: Id,
    event_type: str,
    quantity: Quantity = 1,
    org_id: Id | None = None,
    event_data: Mapping[str, Any] | None = None,
    created_at: datetime | None = None,
    id: Id | None = None,
) -> UUID | None:
    """`UsageClient.log_usage` of the shared client."""
    return _shared.get().log_usage(
        user_id, event_type, quantity, org_id, event_data, created_at, id
    )


def get_usage_summary(
    user_id: Id | None = None, org_id: Id | None = None, period: Window = "month"
) -> UsageSummary:
    """`UsageClient.get_usage_summary` of the shared client."""
    return _shared.get().get_usage_summary(user_id, org_id, period)


def get_aggregated_usage(
    user_id: Id | None = None,
    org_id: Id | None = None,
    period_type: PeriodType = "daily",
    start: date | None = None,
    end: date | None = None,
    metric_type: str | None = None,
) -> Iterator[UsageAggregation]:
    """`UsageClient.get_aggregated_usage` of the shared client."""
    return _shared.get().get_aggregated_usage(user_id, org_id, period_type, start, end, metric_type)


def get_usage_limits(user_id: Id | None = None, org_id: Id | None = None) -> list[UsageLimit]:
    """`UsageClient.get_usage_limits` of the shared client."""
    return _shared.get().get_usage_limits(user_id, org_id)


def trigger_usage_aggregation(
    period_type: PeriodType | None = None,
    period_start: date | None = None,
    period_end: date | None = None,
) -> str:
    """`UsageClient.trigger_usage_aggregation` of the shared client."""
    return _shared.get().trigger_usage_aggregation(period_type, period_start, period_end)
