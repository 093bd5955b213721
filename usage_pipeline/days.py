"""Local days and ranges of them. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from typing import NamedTuple


class DayRange(NamedTuple):
    """Local days `[start, end)`."""

    start: date
    end: date

    def days(self) -> list[date]:
        return [self.start + timedelta(days=i) for i in range((self.end - self.start).days)]

    def whole_months(self) -> DayRange:
        """The range widened to whole calendar months."""
        return DayRange(self.start.replace(day=1), next_month(self.end - timedelta(days=1)))

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


def next_month(day: date) -> date:
    """First day of the month after the one that holds `day`."""
    return (day.replace(day=1) + timedelta(days=31)).replace(day=1)


def merge_ranges(ranges: Iterable[DayRange]) -> list[DayRange]:
    """The same days as sorted, disjoint, non-adjacent ranges."""
    merged: list[DayRange] = []
    for current in sorted(r for r in ranges if r.start < r.end):
        if merged and current.start <= merged[-1].end:
            merged[-1] = DayRange(merged[-1].start, max(merged[-1].end, current.end))
        else:
            merged.append(current)
    return merged


def ranges_of_days(days: Iterable[date]) -> list[DayRange]:
    """Contiguous days as ranges."""
    return merge_ranges(DayRange(day, day + timedelta(days=1)) for day in days)
