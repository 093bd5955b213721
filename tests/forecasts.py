"""What a forecast model is, in plain Python after docs/forecast.md: loops over days, no windows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from math import sqrt
from typing import Any

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WEIGHTS = (1000, 600, 360, 216, 130, 78, 47, 28)
Amounts = Mapping[date, Decimal]


@dataclass(frozen=True)
class Fit:
    """Level, trend, factor by weekday and spread are None without 14 days."""

    history_days: int
    may_be_negative: bool
    level: float | None = None
    trend: float = 0
    factors: tuple[float, ...] = ()
    spread: float = 0

    def on(self, step: int, day: date) -> tuple[float, float]:
        """What is expected so many days ahead, and half the width of the band."""
        assert self.level is not None
        level = self.level + self.trend * damping(step)
        if not self.may_be_negative:
            level = max(level, 0)
        return level * self.factors[day.weekday()], self.spread * (1 + 0.007 * step)


def damping(step: int) -> float:
    return float(round(sum((Decimal("0.93") ** n for n in range(1, step + 1)), Decimal(0)), 6))


def turn(day: date, nights: int) -> int:
    return (day - date(2000, 1, 3)).days % nights


def turn_of_id(identity: str, nights: int) -> int:
    digits = "0123456789abcdef"
    sixteens, ones = (digits.index(digit) + 1 for digit in identity[-2:])
    return (16 * sixteens + ones) % nights


def last_turn(newest: date, identity: str, nights: int) -> date:
    """The newest day on which the models of an id are fitted."""
    return next(
        day
        for day in (newest - timedelta(n) for n in range(nights))
        if turn(day, nights) == turn_of_id(identity, nights)
    )


def fit(
    amounts: Amounts, landed: Collection[date], end: date, platform: Amounts | None
) -> Fit | None:
    """The model of a subject's daily amounts as of a day; None without an event in eight weeks.

    Args:
        amounts: by day with an event.
        platform: the same of the platform, whose weekly pattern stands beside the subject's.
    """
    seen = {day: amount for day, amount in amounts.items() if 0 <= (end - day).days < 56}
    if not seen:
        return None
    known = [day for day in landed if min(seen) <= day <= end]
    negative = min(seen.values()) < 0
    if len(known) < 14:
        return Fit(len(known), negative)
    value = {day: float(seen.get(day, 0)) for day in known}
    weight = {day: WEIGHTS[(end - day).days // 7] for day in known}
    mean = sum(weight[day] * value[day] for day in known) / sum(weight.values())
    recent = [value[day] for day in known if (end - day).days < 28]
    older = [value[day] for day in known if (end - day).days >= 28]
    trend = 0.0
    if min(len(recent), len(older)) >= 14:
        trend = (sum(recent) / len(recent) - sum(older) / len(older)) / 28
    level = mean + 5 * trend
    factors = [1.0] * 7
    if sum(seen.values()) > 0:
        usual = pattern(platform or seen, landed, end)
        for weekday in range(7):
            days = [value[day] for day in known if day.weekday() == weekday]
            own = sum(days) * len(known) / sum(value.values())
            factors[weekday] = min(max((own + 6 * usual[weekday]) / (len(days) + 6), 0.0), 7.0)
    errors = [value[day] - level * factors[day.weekday()] for day in known]
    spread = 1.15 * sqrt(sum(error * error for error in errors) / len(known))
    return Fit(len(known), negative, level, trend, tuple(factors), spread)


def pattern(amounts: Amounts, landed: Collection[date], end: date) -> list[float]:
    """How much more than on a mean day there is on each weekday."""
    seen = {day: amount for day, amount in amounts.items() if 0 <= (end - day).days < 56}
    if sum(seen.values()) <= 0:
        return [1.0] * 7
    known = [day for day in landed if min(seen) <= day <= end]
    mean = float(sum(seen.values())) / len(known)
    means = []
    for weekday in range(7):
        days = [float(seen.get(day, 0)) for day in known if day.weekday() == weekday]
        means.append(sum(days) / len(days) / mean if days else 1.0)
    return means


def tested(
    amounts: Amounts, landed: Collection[date], end: date, horizon: int, platform: Amounts | None
) -> dict[str, Any] | None:
    """How the forecast turned out that was made `horizon` days before a day; None where a subject
    is not tested."""
    origin = end - timedelta(horizon)
    model = fit(amounts, landed, origin, platform)
    if model is None or model.level is None:
        return None
    seen = [day for day in amounts if 0 <= (origin - day).days < 56]
    if 4 * len(seen) < model.history_days:
        return None
    week = timedelta(7)
    known = [day for day in landed if min(seen) <= day <= origin]
    pairs = [day for day in known if day - week in known]
    zero = Decimal(0)
    scale = [abs(amounts.get(day, zero) - amounts.get(day - week, zero)) for day in pairs]
    errors: list[float] = []
    naive_errors: list[float] = []
    within = 0
    for step in range(1, horizon + 1):
        day = origin + timedelta(step)
        before = day - week * ((step + 6) // 7)
        if day in landed and before in landed:
            expected, half_width = model.on(step, day)
            actual = float(amounts.get(day, 0))
            errors.append(abs(actual - expected))
            naive_errors.append(abs(actual - float(amounts.get(before, 0))))
            within += errors[-1] <= half_width
    if not errors:
        return None
    found: dict[str, Any] = {
        "tested_days": len(errors),
        "days_within": within,
        "mase": None,
        "naive_mase": None,
    }
    if sum(scale):
        unit = float(sum(scale)) / len(pairs)
        found["mase"] = sum(errors) / len(errors) / unit
        found["naive_mase"] = sum(naive_errors) / len(errors) / unit
    return found
