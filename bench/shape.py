"""The shape of the benchmark's data: how much, of whom, on which days. No database here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

HISTORY_DAYS = 90
HISTORY_END = date(2025, 7, 4)  # exclusive; the nights that are rolled up on top of it begin here
HISTORY_START = HISTORY_END - timedelta(days=HISTORY_DAYS)
# Days of history by multiple. The shortest begins with the month, so month to date costs the same
# after each of them, and what differs is the history.
GROWTH = {1: 3, 5: 15, 30: HISTORY_DAYS}
EXPORT_MONTH = date(2025, 6, 1)  # a whole month of the history

BIG_DAY = date(2025, 9, 1)
BIG_DAY_EVE = date(2025, 8, 31)  # has no events
SMALL_DAY = date(2025, 10, 1)
EMPTY_START = date(2025, 11, 1)
PUBLISH_START = date(2025, 12, 1)  # its rows are not events: they are put into the warehouse

EMPTY_DAY_EVENTS = 10

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
MOST_REPEATS = 20  # nights and near-empty days must stay inside their month


@dataclass(frozen=True)
class Shape:
    """How much of everything at a scale; 1 is what SPEC §9 speaks of.

    Args:
        scale: factor of events, users, organisations and published rows; days stay.
        repeats: how often each measurement is made; each night needs a day of its own.
    """

    scale: float
    repeats: int

    @property
    def big_day_events(self) -> int:
        return self._scaled(5_000_000)

    @property
    def history_events(self) -> int:
        """Of the whole history; every day has its ninetieth."""
        return self.night_events * HISTORY_DAYS

    @property
    def night_events(self) -> int:
        return self._scaled(25_000_000 / HISTORY_DAYS)

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

    def arguments(self) -> dict[str, Any]:
        return {"scale": self.scale, "repeats": self.repeats}

    def nights(self) -> list[date]:
        """The days that follow the history; all have the same events, but for their ids."""
        return [HISTORY_END + timedelta(days=i) for i in range(self.repeats)]

    def empty_days(self) -> list[date]:
        """One to warm up, which parses the dbt project, and one per measurement."""
        return [EMPTY_START + timedelta(days=i) for i in range(self.repeats + 1)]

    def days(self) -> Iterator[tuple[date, int]]:
        """All days that have events, in order, with how many."""
        for i in range(HISTORY_DAYS):
            yield HISTORY_START + timedelta(days=i), self.night_events
        for night in self.nights():
            yield night, self.night_events
        yield BIG_DAY, self.big_day_events
        yield SMALL_DAY, self.small_day_events
        for day in self.empty_days():
            yield day, EMPTY_DAY_EVENTS

    def _scaled(self, full: float) -> int:
        return max(10, round(full * self.scale))
