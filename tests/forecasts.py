"""What a forecast is, in plain Python after docs/forecast.md, and tables to build models from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from math import floor, sqrt
from typing import Any

from support import warehouse_in_memory

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WEIGHTS = (1000, 600, 360, 216, 130, 78, 47, 28)
Amounts = Mapping[date, Decimal]
FIRST, LAST = date(2024, 1, 1), date(2025, 12, 31)
BEGIN = date(2024, 9, 1)
# Of user and organisation; the last digits decide on which night a model is fitted, and the two
# before them whether a user is tested.
USERS = [f"00000000-0000-4000-8000-00000000{tail}" for tail in ("0001", "2002", "0a8f", "30c3")]
ORGS = [None, "00000000-0000-4000-8000-0000000000a1", "00000000-0000-4000-8000-0000000000b7"]
Key = tuple[str, str | None, str | None, str]


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
        platform: the same of the platform, whose weekly pattern in twentieths stands beside
            the subject's.
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
    if not negative:
        level = max(level, 0)
        trend = max(trend, -0.075 * level)
    factors = [1.0] * 7
    if sum(seen.values()) > 0:
        usual = pattern(seen, landed, end)
        if platform:  # in twentieths, and what is a half but for 0.00005 % goes up
            usual = [floor(20 * n + 0.500001) / 20 for n in pattern(platform, landed, end)]
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


class World:
    """The tables that the model reads and writes, and what is known of them."""

    TABLE: str

    def __init__(self, models: dict[str, str]) -> None:
        self.models = models
        self.db = warehouse_in_memory(FIRST, LAST)
        self.db.execute("""
            create table usage_daily (usage_date date, user_id uuid, org_id uuid,
                metric_type varchar, total_quantity decimal(38, 9));
            create view active_users_daily as select distinct usage_date, user_id from usage_daily;
            create view org_usage_daily as
            select usage_date, org_id, metric_type, sum(total_quantity) as total_quantity
            from usage_daily group by all;
            create view platform_usage_daily as
            select usage_date, metric_type, sum(total_quantity) as total_quantity,
                count(distinct user_id) as active_users
            from usage_daily group by all;
            create table usage_replaced_partials (usage_date date);
            create table usage_trailing_partials (as_of_date date);
        """)

    def begin(self) -> None:
        self.held: dict[date, dict[Any, Decimal]] = {}
        self.last = BEGIN
        for table in ("stg_landed_days", "usage_daily", "usage_replaced_partials"):
            self.db.execute(f"delete from {table}")
        self.db.execute("delete from usage_trailing_partials")
        self.db.execute(f"drop table if exists {self.TABLE}")
        self.db.execute(f"create table {self.TABLE} as {self.models['first']}")

    def finish(self, summed: bool) -> None:
        self._land()
        if summed:
            self._make("again")
            self.db.execute("delete from usage_replaced_partials")
            self.db.execute("delete from usage_trailing_partials")
            self.db.execute(
                "insert into usage_trailing_partials select max(usage_date) from stg_landed_days"
            )

    def build(self, each: date, cells: dict[Any, Decimal]) -> None:
        self.held[each] = cells
        self.db.execute("insert into usage_replaced_partials values (?)", [each])
        self.db.execute("delete from usage_daily where usage_date = ?", [each])
        for (user, org, metric), quantity in cells.items():
            self.db.execute(
                "insert into usage_daily values (?, ?, ?, ?, ?)",
                [each, user, org, metric, quantity],
            )

    def _land(self) -> None:
        """Days after the last one are gone, as when their files are lost."""
        self.db.execute("delete from stg_landed_days")
        self.held = {each: cells for each, cells in self.held.items() if each <= self.last}
        self.db.execute("delete from usage_daily where usage_date > ?", [self.last])
        self.db.executemany("insert into stg_landed_days values (?)", [[d] for d in self.held])

    def _make(self, model: str) -> None:
        self.db.execute(f"create or replace table made as {self.models[model]}")
        self.db.execute(f"drop table {self.TABLE}")
        self.db.execute(f"alter table made rename to {self.TABLE}")

    def rows(self) -> list[dict[str, Any]]:
        cursor = self.db.execute(f"from {self.TABLE}")
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]

    def found(self) -> dict[tuple[Key, int], dict[str, Any]]:
        rows = {}
        for row in self.rows():
            user, org = (None if row[c] is None else str(row[c]) for c in ("user_id", "org_id"))
            key = (row["scope"], user, org, row["metric_type"])
            assert (key, row["horizon"]) not in rows
            rows[key, row["horizon"]] = row
        return rows

    def from_nothing(self) -> list[Any]:
        return sorted(map(str, self.db.execute(self.models["first"]).fetchall()))

    def as_left(self) -> list[Any]:
        return sorted(map(str, self.db.execute(f"from {self.TABLE}").fetchall()))

    def amounts(self) -> dict[Key, dict[date, Decimal]]:
        found: dict[Key, dict[date, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        for each, cells in self.held.items():
            for (user, org, metric), quantity in cells.items():
                found["member" if org else "user", user, org, metric][each] += quantity
                found["platform", None, None, metric][each] += quantity
                if org:
                    found["org", None, org, metric][each] += quantity
        return found
