"""The shape of the benchmark's data: how much, of whom, on which days. No database here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

SHORT_HISTORY = 3  # days; begins with the month, so month to date is as long after longer ones
HISTORY_END = date(2025, 7, 4)  # exclusive
BIG_DAY = HISTORY_END  # a night's day, which follows the history
EXPORT_MONTH = date(2025, 6, 1)  # a whole month of the history

NO_EVENTS = date(2024, 2, 1)  # a day before all others; homes without history begin here
SMALL_DAY = date(2025, 10, 1)
EMPTY_START = date(2025, 11, 1)
CELLS_START = date(2025, 12, 1)  # of the database whose every event is a cell of its own

EMPTY_DAY_EVENTS = 10
MOST_ROUNDS = 10  # the near-empty days, two of them a round, must stay inside their month

READERS = 200  # who look at their usage while a night runs

TYPE_SHARES = {
    "record_created": 0.22,
    "api_call": 0.30,
    "automation_run": 0.08,
    "storage_used": 0.06,
    "schedule_executed": 0.05,
    "ai_tokens_used": 0.09,
    "user_active": 0.20,
}
TYPES = list(TYPE_SHARES)


@dataclass(frozen=True)
class Shape:
    """How much of everything at a scale; 1 is a day of 5,000,000 events.

    Args:
        scale: factor of events, users, organisations and published rows; days stay.
        history_days: how long the history is.
        year: how long it is in the database of a team ten times smaller.
        nights: how many days of that history are rolled up one by one.
    """

    scale: float
    history_days: int = 90
    year: int = 365
    nights: int = 30

    @property
    def big_day_events(self) -> int:
        return self._scaled(5_000_000)

    @property
    def history_events(self) -> int:
        """Of the whole history; all its days have as many."""
        return self.night_events * self.history_days

    @property
    def night_events(self) -> int:
        return self._scaled(25_000_000 / 90)

    @property
    def small_day_events(self) -> int:
        return self._scaled(225_000)

    @property
    def published_rows(self) -> int:
        return self._scaled(1_000_000)

    @property
    def users(self) -> int:
        return self._scaled(50_000)

    @property
    def orgs(self) -> int:
        return self._scaled(3_000)

    @property
    def history_start(self) -> date:
        return HISTORY_END - timedelta(days=self.history_days)

    def tenth(self) -> Shape:
        """A team ten times smaller, which looks back for longer."""
        return replace(self, scale=self.scale / 10, history_days=self.year)

    def arguments(self) -> dict[str, Any]:
        return {"scale": self.scale, "history_days": self.history_days}

    def days(self) -> Iterator[tuple[date, int]]:
        """All days that have events, in order, with how many."""
        for i in range(self.history_days):
            yield self.history_start + timedelta(days=i), self.night_events
        yield BIG_DAY, self.big_day_events
        yield SMALL_DAY, self.small_day_events
        for i in range(2 * (MOST_ROUNDS + 1)):
            yield empty_day(i), EMPTY_DAY_EVENTS

    def _scaled(self, full: float) -> int:
        return max(10, round(full * self.scale))


def empty_day(number: int) -> date:
    """The first two warm up, which parses the dbt project; the others are measured."""
    return EMPTY_START + timedelta(days=number)


def cells_day(number: int) -> date:
    """The first one is published before anything is measured."""
    return CELLS_START + timedelta(days=number)
