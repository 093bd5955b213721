"""Every published table, computed from the source's rows in plain Python, after the contract.

It shares nothing with the models: no SQL, no partials, no windows; each table is a loop over all
events of the landed days. Slow, and easy to check by reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from forecasts import WEEKDAYS, fit, last_turn

EXACT = Context(prec=80, rounding=ROUND_HALF_UP)
NINE = Decimal("1e-9")
TOO_GREAT = Decimal("1e29")
KNOWN_TYPES = {
    "record_created",
    "api_call",
    "automation_run",
    "storage_used",
    "schedule_executed",
    "ai_tokens_used",
    "user_active",
}
Row = dict[str, Any]
Group = tuple[Any, ...]


@dataclass(frozen=True)
class Event:
    """A row of `usage_events`; `quantity` as Postgres writes it, or None."""

    id: str
    user_id: str
    org_id: str | None
    event_type: str
    event_data: dict[str, Any] | None
    quantity: str | None
    created_at: datetime


@dataclass(frozen=True)
class Account:
    """A user, an organisation or a subscription, from when to when."""

    id: str
    created_at: datetime
    ended_at: datetime | None
    plan: str | None = None
    status: str | None = None


@dataclass(frozen=True)
class Meter:
    """As in meters.yml; `value` and the paths are names of top-level keys of event_data."""

    key: str
    event_type: str
    aggregation: str
    value: str | None = None
    filter: tuple[str, tuple[str, ...]] | None = None
    dimension: str | None = None


@dataclass(frozen=True)
class Counted:
    """An event as one meter counts it."""

    event: Event
    day: date
    text: str | None
    number: Decimal | None


def rounded(number: Decimal) -> Decimal:
    return number.quantize(NINE, context=EXACT)


def number_of(text: str | None) -> Decimal | None:
    """A quantity, or None where it is no DECIMAL(38,9)."""
    try:
        number = Decimal(text) if text is not None else Decimal("NaN")
    except ArithmeticError:
        return None
    if not number.is_finite() or abs(rounded(number)) >= TOO_GREAT:
        return None
    return rounded(number)


def spelled(value: Any) -> str | None:
    """A value of event_data as text: numbers plainly, without zeros at their end."""
    if value is None or isinstance(value, str):
        return value
    return format(Decimal(str(value)).normalize(EXACT), "f")


def ratio(numerator: Decimal, denominator: Decimal) -> Decimal | None:
    if denominator == 0:
        return None
    found = EXACT.divide(numerator, denominator)
    return rounded(found) if abs(found) < TOO_GREAT else None


@dataclass
class Oracle:
    """The tables of one state of the source.

    Attributes:
        subscriber: the user whose all subscriptions are.
        limits: of plan and metric; None is unlimited.
    """

    zone: ZoneInfo
    start: date
    landed: list[date]
    meters: list[Meter]
    events: list[Event]
    users: list[Account]
    orgs: list[Account]
    subscriptions: list[Account]
    subscriber: str
    limits: dict[tuple[str, str], Decimal | None]

    def day(self, moment: datetime) -> date:
        return moment.astimezone(self.zone).date()

    def starts_at(self, day: date) -> datetime:
        return datetime(day.year, day.month, day.day, tzinfo=self.zone).astimezone(UTC)

    def tables(self) -> dict[str, list[Row]]:
        self.last = max(self.landed)
        in_days = [event for event in self.events if self.day(event.created_at) in self.landed]
        known = KNOWN_TYPES | {meter.event_type for meter in self.meters}
        self.valid = [
            event
            for event in in_days
            if number_of(event.quantity) is not None and event.event_type in known
        ]
        self.rejected: list[tuple[Event, str | None]] = [
            (event, None) for event in in_days if event not in self.valid
        ]
        self.counted = {meter.key: list(self._counted(meter)) for meter in self.meters}
        self.of = {meter.key: meter for meter in self.meters}
        daily = self._usage(lambda c: (c.day, c.event.user_id, c.event.org_id), "usage_date")
        monthly = self._usage(
            lambda c: (month(c.day), c.event.user_id, c.event.org_id), "month", active_days=True
        )
        limits = list(self._limits_monthly())
        return {
            "usage_daily": daily,
            "usage_monthly": monthly,
            "usage_aggregations": self._aggregations(daily, monthly),
            "org_usage_daily": self._merged(lambda c: (c.day, c.event.org_id), "org_id"),
            "org_usage_monthly": self._merged(lambda c: (month(c.day), c.event.org_id), "org_id"),
            "platform_usage_daily": self._merged(lambda c: (c.day,)),
            "platform_usage_monthly": self._merged(lambda c: (month(c.day),)),
            "platform_metrics_daily": list(self._metrics_daily()),
            "platform_metrics_monthly": list(self._metrics_monthly()),
            "subscriptions_by_plan_daily": list(self._plans()),
            "user_retention_monthly": list(self._retention()),
            "usage_summary": list(self._summary()),
            "usage_limits_monthly": limits,
            "usage_limit_status": list(self._limit_status(limits)),
            "usage_forecast_models": list(self._forecast_models(daily)),
            "usage_forecast_accuracy": [],  # of forecasts, for which these histories are too short
            "usage_forecast": [],
            "usage_anomalies": [],  # of days with a base, for which they are too short as well
            "usage_daily_by_dimension": list(self._dimensions()),
            "invalid_usage_events": [
                {
                    "event_id": event.id,
                    "metric_type": metric,
                    "usage_date": self.day(event.created_at),
                }
                for event, metric in self.rejected
            ],
        }

    def _counted(self, meter: Meter) -> Iterator[Counted]:
        for event in self.valid:
            data = event.event_data or {}
            if event.event_type != meter.event_type:
                continue
            if meter.filter and spelled(data.get(meter.filter[0])) not in meter.filter[1]:
                continue
            number = number_of(event.quantity)
            text = spelled(data.get(meter.value)) if meter.value else str(number)
            if meter.value:
                number = number_of(text)
            usable = {"count": True, "unique_count": text is not None}.get(
                meter.aggregation, number is not None
            )
            if usable:
                yield Counted(event, self.day(event.created_at), text, number)
            else:
                self.rejected.append((event, meter.key))

    def _groups(self, of: Callable[[Counted], Group]) -> Iterator[tuple[Group, str, list[Counted]]]:
        for metric, counted in self.counted.items():
            groups: dict[Group, list[Counted]] = defaultdict(list)
            for each in counted:
                groups[of(each)].append(each)
            for key, members in groups.items():
                yield key, metric, members

    def total(self, metric: str, counted: list[Counted]) -> Decimal:
        aggregation = self.of[metric].aggregation
        numbers = [each.number for each in counted if each.number is not None]
        if aggregation == "count":
            return Decimal(len(counted))
        if aggregation == "unique_count":
            return Decimal(len({each.text for each in counted}))
        if aggregation == "latest":
            newest = max(counted, key=lambda each: (each.event.created_at, each.event.id))
            return newest.number or Decimal(0)
        if aggregation in ("max", "min"):
            return {"max": max, "min": min}[aggregation](numbers)
        total = Decimal(0)
        for number in numbers:
            total = EXACT.add(total, number)
        return total if aggregation == "sum" else rounded(EXACT.divide(total, len(numbers)))

    def _usage(
        self, of: Callable[[Counted], Group], period: str, active_days: bool = False
    ) -> list[Row]:
        return [
            {
                period: when,
                "user_id": user,
                "org_id": org,
                "metric_type": metric,
                "total_quantity": self.total(metric, members),
                "event_count": len(members),
                "first_event_at": min(each.event.created_at for each in members),
                "last_event_at": max(each.event.created_at for each in members),
                **({"active_days": len({each.day for each in members})} if active_days else {}),
            }
            for (when, user, org), metric, members in self._groups(of)
        ]

    def _merged(self, of: Callable[[Counted], Group], *names: str) -> list[Row]:
        rows = []
        for (when, *rest), metric, members in self._groups(of):
            orgs = {each.event.org_id for each in members} - {None}
            rows.append(
                {
                    "when": when,
                    **dict(zip(names, rest, strict=True)),
                    "metric_type": metric,
                    "total_quantity": self.total(metric, members),
                    "event_count": len(members),
                    "active_users": len({each.event.user_id for each in members}),
                    **({} if names else {"active_orgs": len(orgs)}),
                }
            )
        return rows

    def _aggregations(self, daily: list[Row], monthly: list[Row]) -> list[Row]:
        return [
            {
                "user_id": row["user_id"],
                "org_id": row["org_id"],
                "period_type": kind,
                "period_start": self.starts_at(first),
                "period_end": self.starts_at(end),
                "metric_type": row["metric_type"],
                "total_quantity": row["total_quantity"],
                "event_count": row["event_count"],
                "active_days": row.get("active_days", 1),
            }
            for kind, rows, column in (
                ("daily", daily, "usage_date"),
                ("monthly", monthly, "month"),
            )
            for row in rows
            for first in [row[column]]
            for end in [first + timedelta(1) if kind == "daily" else next_month(first)]
        ]

    def _active(self, days: Iterable[date]) -> tuple[set[str], set[str], int]:
        wanted = set(days)
        events = [event for event in self.valid if self.day(event.created_at) in wanted]
        orgs = {event.org_id for event in events if event.org_id is not None}
        return {event.user_id for event in events}, orgs, len(events)

    def _arrived(self, accounts: list[Account], first: date, last: date) -> int:
        return sum(first <= self.day(account.created_at) <= last for account in accounts)

    def _left(self, account: Account) -> date | None:
        if account.ended_at is None:
            return None
        return max(self.day(account.created_at), self.day(account.ended_at))

    def _alive(self, accounts: list[Account], on: date) -> int:
        return sum(
            self.day(account.created_at) <= on
            and ((left := self._left(account)) is None or left > on)
            and (account.ended_at is not None or account.status != "canceled")
            for account in accounts
        )

    def _departed(self, accounts: list[Account], first: date, last: date) -> int:
        return sum(
            (left := self._left(account)) is not None and first <= left <= last
            for account in accounts
        )

    def _metrics_daily(self) -> Iterator[Row]:
        for day in every_day(self.start, self.last):
            landed = day in self.landed
            users, orgs, events = self._active([day])
            weekly = len(self._active(every_day(day - timedelta(6), day))[0])
            monthly = len(self._active(every_day(day - timedelta(29), day))[0])
            yield {
                "metric_date": day,
                "total_users": self._alive(self.users, day),
                "new_users": self._arrived(self.users, day, day),
                "active_users": len(users) if landed else None,
                "weekly_active_users": weekly if landed else None,
                "monthly_active_users": monthly if landed else None,
                "stickiness": ratio(Decimal(len(users)), Decimal(monthly)) if landed else None,
                "total_orgs": self._alive(self.orgs, day),
                "new_orgs": self._arrived(self.orgs, day, day),
                "active_orgs": len(orgs) if landed else None,
                "active_subscriptions": self._alive(self.subscriptions, day),
                "event_count": events if landed else None,
            }

    def _metrics_monthly(self) -> Iterator[Row]:
        for first in sorted({month(day) for day in every_day(self.start, self.last)}):
            end = min(next_month(first) - timedelta(1), self.last)
            landed = any(first <= day <= end for day in self.landed)
            users, orgs, events = self._active(every_day(first, end))
            yield {
                "month": first,
                "total_users": self._alive(self.users, end),
                "new_users": self._arrived(self.users, first, end),
                "active_users": len(users) if landed else None,
                "total_orgs": self._alive(self.orgs, end),
                "new_orgs": self._arrived(self.orgs, first, end),
                "active_orgs": len(orgs) if landed else None,
                "active_subscriptions": self._alive(self.subscriptions, end),
                "new_subscriptions": self._arrived(self.subscriptions, first, end),
                "canceled_subscriptions": self._departed(self.subscriptions, first, end),
                "event_count": events if landed else None,
            }

    def _plans(self) -> Iterator[Row]:
        for plan in {account.plan for account in self.subscriptions}:
            accounts = [account for account in self.subscriptions if account.plan == plan]
            first = min(self.day(account.created_at) for account in accounts)
            for day in every_day(max(self.start, first), self.last):
                yield {
                    "metric_date": day,
                    "plan": plan,
                    "active_subscriptions": self._alive(accounts, day),
                    "new_subscriptions": self._arrived(accounts, day, day),
                    "canceled_subscriptions": self._departed(accounts, day, day),
                }

    def _retention(self) -> Iterator[Row]:
        months = sorted({month(day) for day in self.landed})
        cohorts: dict[date, set[str]] = defaultdict(set)
        for user in self.users:
            if self.day(user.created_at) <= self.last:
                cohorts[month(self.day(user.created_at))].add(user.id)
        for cohort, members in cohorts.items():
            for active_month in months:
                if active_month < cohort:
                    continue
                end = next_month(active_month) - timedelta(1)
                retained = members & self._active(every_day(active_month, end))[0]
                yield {
                    "cohort_month": cohort,
                    "months_since": (active_month.year - cohort.year) * 12
                    + active_month.month
                    - cohort.month,
                    "cohort_users": len(members),
                    "retained_users": len(retained),
                    "retention_rate": ratio(Decimal(len(retained)), Decimal(len(members))),
                }

    def _summary(self) -> Iterator[Row]:
        scopes: dict[str, Callable[[Event], Group]] = {
            "user": lambda event: (event.user_id, None),
            "org": lambda event: (None, event.org_id),
            "platform": lambda event: (None, None),
        }
        for scope, subject in scopes.items():
            for window, length in (("week", 7), ("month", 30), ("year", 365)):
                first = self.last - timedelta(length - 1)
                before = first - timedelta(length)
                for metric, counted in self.counted.items():
                    groups: dict[Group, list[Counted]] = defaultdict(list)
                    for each in counted:
                        if each.day >= before and (scope != "org" or each.event.org_id):
                            groups[subject(each.event)].append(each)
                    for (user, org), members in groups.items():
                        now = [each for each in members if each.day >= first]
                        then = [each for each in members if each.day < first]
                        total = self.total(metric, now) if now else Decimal(0)
                        previous = self.total(metric, then) if then else Decimal(0)
                        yield {
                            "scope": scope,
                            "user_id": user,
                            "org_id": org,
                            "time_window": window,
                            "metric_type": metric,
                            "as_of_date": self.last,
                            "window_start": first,
                            "window_end": self.last + timedelta(1),
                            "total_quantity": total,
                            "previous_quantity": previous,
                            "change_ratio": ratio(EXACT.subtract(total, previous), previous),
                            "event_count": len(now),
                        }

    def _limits_monthly(self) -> Iterator[Row]:
        running = month(self.last)
        for as_of in (self.last, running - timedelta(1)):
            held = {account.plan for account in self.subscriptions if self._alive([account], as_of)}
            for scope in ("user", "org"):
                for metric, counted in self.counted.items():
                    for subject, members in self._of_subjects(scope, counted, month(as_of)).items():
                        plans = held if held and subject == self.subscriber else {"free"}
                        speaking = [
                            plan for plan in plans if plan and (plan, metric) in self.limits
                        ]
                        if speaking:
                            plan = max(sorted(speaking), key=lambda p: self._generosity(p, metric))
                            limit = self.limits[plan, metric]
                            used = self.total(metric, members)
                            unknown = limit is not None and limit < 0
                            yield {
                                "when": month(as_of),
                                "scope": scope,
                                "user_id": subject if scope == "user" else None,
                                "org_id": subject if scope == "org" else None,
                                "metric_type": metric,
                                "plan": plan,
                                "used_quantity": used,
                                "limit_quantity": None if unknown else limit,
                                "used_ratio": ratio(used, limit) if limit and not unknown else None,
                                "status": None if unknown else status(used, limit),
                            }

    def _of_subjects(
        self, scope: str, counted: list[Counted], of: date
    ) -> dict[str, list[Counted]]:
        groups: dict[str, list[Counted]] = defaultdict(list)
        for each in counted:
            subject = each.event.org_id if scope == "org" else each.event.user_id
            wanted = scope == "org" or each.event.org_id is None
            if subject and wanted and month(each.day) == of:
                groups[subject].append(each)
        return groups

    def _limit_status(self, limits: list[Row]) -> Iterator[Row]:
        """Histories are too short for a forecast, so that only limits that are reached have a day:
        the first on which all days until then do, of what adds up."""
        for row in limits:
            if row["when"] != month(self.last):
                continue
            metric, limit = row["metric_type"], row["limit_quantity"]
            reached = None
            if row["status"] == "exceeded" and self.of[metric].aggregation in ("sum", "count"):
                groups = self._of_subjects(row["scope"], self.counted[metric], row["when"])
                members = groups[row["user_id"] or row["org_id"]]
                reached = min(
                    day
                    for day in {each.day for each in members}
                    if status(
                        self.total(metric, [each for each in members if each.day <= day]), limit
                    )
                    == "exceeded"
                )
            yield {
                **row,
                "projected_quantity": None,
                "projected_low": None,
                "projected_high": None,
                "projected_limit_date": reached,
            }

    def _generosity(self, plan: str, metric: str) -> Decimal:
        limit = self.limits[plan, metric]
        return Decimal("Infinity") if limit is None else max(limit, Decimal(-1))

    def _forecast_models(self, daily: list[Row]) -> Iterator[Row]:
        amounts: dict[Group, dict[date, Decimal | None]] = defaultdict(dict)
        for row in daily:
            user, org, metric = row["user_id"], row["org_id"], row["metric_type"]
            scopes: list[Group] = [("member" if org else "user", user, org)]
            scopes.append(("platform", None, None))
            if org:
                scopes.append(("org", None, org))
            if self.of[metric].aggregation in ("sum", "count"):
                for scope in scopes:
                    of_day = amounts[(*scope, metric)]
                    known = of_day.get(row["usage_date"], Decimal(0))
                    of_day[row["usage_date"]] = EXACT.add(known or 0, row["total_quantity"])
        for (scope, user, org, metric), of_subject in amounts.items():
            end = self.last
            if scope != "platform":
                end = last_turn(self.last, user or org, 14 if user else 7)
            model = fit(
                {d: q for d, q in of_subject.items() if q is not None}, self.landed, end, None
            )
            if model:
                assert model.level is None
                yield {
                    "scope": scope,
                    "user_id": user,
                    "org_id": org,
                    "metric_type": metric,
                    "as_of_date": end,
                    "history_days": model.history_days,
                    **dict.fromkeys(("level", "trend", "spread", *WEEKDAYS)),
                    "may_be_negative": model.may_be_negative,
                }

    def _dimensions(self) -> Iterator[Row]:
        for meter in self.meters:
            if not meter.dimension:
                continue
            groups: dict[Group, list[Counted]] = defaultdict(list)
            for each in self.counted[meter.key]:
                value = spelled((each.event.event_data or {}).get(meter.dimension))
                groups[each.day, each.event.user_id, each.event.org_id, value].append(each)
            for (day, user, org, value), members in groups.items():
                yield {
                    "usage_date": day,
                    "user_id": user,
                    "org_id": org,
                    "metric_type": meter.key,
                    "dimension": meter.dimension,
                    "dimension_value": value,
                    "total_quantity": self.total(meter.key, members),
                    "event_count": len(members),
                }


def status(used: Decimal, limit: Decimal | None) -> str:
    if limit is None or (limit == 0 and used <= 0):
        return "ok"
    if used >= limit:
        return "exceeded"
    return "warning" if used >= EXACT.multiply(limit, Decimal("0.8")) else "ok"


def every_day(first: date, last: date) -> list[date]:
    return [first + timedelta(n) for n in range((last - first).days + 1)]


def month(day: date) -> date:
    return day.replace(day=1)


def next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(31)).replace(day=1)
