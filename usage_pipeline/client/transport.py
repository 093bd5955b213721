"""What the API and Postgres have in common: one side takes events, the other gives usage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Literal, Protocol

from usage_pipeline.client.answers import UsageAggregation, UsageLimit, UsageSummary
from usage_pipeline.client.events import Event, Id

Window = Literal["week", "month", "year"]
PeriodType = Literal["daily", "monthly"]


class SendError(Exception):
    """A batch was not taken, or nobody knows whether it was.

    Attributes:
        refused: its content is the cause: one of its events, or their number.
        answered: somebody looked at it, so that fewer events may pass at once.
        wait: seconds for which the other side wants to be left alone.
    """

    def __init__(
        self,
        message: str,
        *,
        refused: bool = False,
        answered: bool = False,
        wait: float | None = None,
    ) -> None:
        self.refused = refused
        self.answered = answered
        self.wait = wait
        super().__init__(message)


class Transport(Protocol):
    """One connection to whoever takes events. Used by one thread."""

    def send(self, events: Sequence[Event]) -> list[str | None]:
        """Hand over a batch; what was handed over before is taken once.

        Returns:
            For each event why it was rejected, or None where it was not.

        Raises:
            SendError: for the batch as a whole.
        """

    def close(self) -> None:
        """Close the connection; `send` opens another one."""

    def forget(self) -> None:
        """Leave the connection to the process that this one was forked from."""


class Reader(Protocol):
    """Gives what is published, on a connection a call. All methods raise UsageError."""

    def summary(self, user_id: Id | None, org_id: Id | None, period: Window) -> UsageSummary: ...

    def aggregated(
        self,
        user_id: Id | None,
        org_id: Id | None,
        period_type: PeriodType,
        start: date | None,
        end: date | None,
        metric_type: str | None,
    ) -> Iterator[UsageAggregation]: ...

    def limits(self, user_id: Id | None, org_id: Id | None) -> list[UsageLimit]: ...

    def trigger(
        self,
        secret: str | None,
        period_type: PeriodType | None,
        start: date | None,
        end: date | None,
    ) -> str: ...
