"""What pages and API ask of the published tables. Quantities are exact decimals.

Each question finds its rows by an index: those of one user, one organisation, or one month.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import reduce
from typing import Literal, NamedTuple, TypeVar
from uuid import UUID

from usage_pipeline.app_db.fingerprints import EXACT
from usage_pipeline.days import next_month
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.meters.meter import Meter
from usage_pipeline.meters.version import read_meters
from usage_pipeline.web.reader import Published, Row

Window = Literal["week", "month", "year"]
WINDOW_DAYS: dict[Window, int] = {"week": 7, "month": 30, "year": 365}
Scope = Literal["all", "personal", "member", "org", "platform"]

# Whose rows, of tables by user, by organisation, or of the platform.
_WHOSE: dict[Scope, str] = {
    "all": "user_id = :user_id",
    "personal": "user_id = :user_id and org_id is null",
    "member": "user_id = :user_id and org_id = :org_id",
    "org": "org_id = :org_id",
    "platform": "true",
}
# The same of tables that have rows of every scope, each in the terms of their key.
_ROWS_OF: dict[Scope, str] = {
    "personal": "scope = 'user' and user_id = :user_id and org_id is null",
    "member": "scope = 'member' and user_id = :user_id and org_id = :org_id",
    "org": "scope = 'org' and user_id is null and org_id = :org_id",
    "platform": "scope = 'platform' and user_id is null and org_id is null",
}


@dataclass(frozen=True)
class Subject:
    """Whose usage: a user's in all, personally or as a member, an organisation's, everybody's."""

    scope: Scope
    user_id: UUID | None = None
    org_id: UUID | None = None

    def table(self, grain: Literal["daily", "monthly"]) -> str:
        """The table with its totals."""
        prefix = f"{self.scope}_" if self.scope in ("org", "platform") else ""
        return f"{prefix}usage_{grain}"

    @property
    def whose(self) -> str:
        """SQL for its rows of that table."""
        return _WHOSE[self.scope]

    @property
    def ids(self) -> dict[str, UUID | None]:
        return {"user_id": self.user_id, "org_id": self.org_id}


@dataclass(frozen=True)
class Period:
    """Days `[start, end)`, and as many before them, or the month before.

    Attributes:
        window: the trailing window; None for a calendar month.
        running: whether it is a month whose days are not all published.
    """

    start: date
    end: date
    previous_start: date
    window: Window | None = None
    running: bool = False

    @property
    def key(self) -> str:
        """How it is named in an address."""
        return self.window or f"{self.start:%Y-%m}"


@dataclass(frozen=True)
class Total:
    """A metric's total of a period. `previous_quantity` is None where it is not comparable."""

    metric_type: str
    quantity: Decimal | None
    event_count: int
    previous_quantity: Decimal | None
    change_ratio: Decimal | None


@dataclass(frozen=True)
class Proof:
    """What was found by comparing with the source.

    Attributes:
        usage_date: the newest day that was compared.
        matches: whether all its figures are the source's; None where the source was not asked.
        checked_at: when that was found.
        differing: days of the look-back window of which some figure differs.
    """

    usage_date: date
    matches: bool | None
    checked_at: datetime
    differing: tuple[date, ...]


@dataclass(frozen=True)
class State:
    """What is the same for all who look at one published state.

    Attributes:
        first_date, as_of_date: the oldest and the newest published day.
        months: from the newest to the oldest.
        meters: by key, as they were when the numbers were made.
        missing: days between the two that are not landed.
        proof: None while nothing was compared.
    """

    snapshot_id: str
    published_at: datetime
    first_date: date
    as_of_date: date
    months: tuple[date, ...]
    meters: Mapping[str, Meter]
    missing: tuple[date, ...]
    proof: Proof | None

    def meter(self, metric: str) -> Meter:
        """A meter, or the name of one that is measured no more."""
        return self.meters.get(metric) or Meter(metric, metric, "sum")

    def missing_in(self, period: Period) -> list[date]:
        """Days of a period whose use is in none of its numbers, since they are not landed."""
        return [day for day in self.missing if period.start <= day < period.end]

    def window(self, window: Window) -> Period:
        """The trailing window that ends with the newest day."""
        end, length = self.as_of_date + timedelta(days=1), timedelta(days=WINDOW_DAYS[window])
        return Period(end - length, end, end - 2 * length, window)

    def month(self, month: date) -> Period:
        """A calendar month."""
        end = next_month(month)
        before = (month - timedelta(days=1)).replace(day=1)
        return Period(month, end, before, running=self.as_of_date < end - timedelta(days=1))


_Kept = TypeVar("_Kept")
_kept: dict[str, dict[object, object]] = {}
_keeping = threading.Lock()
_MOST_KEPT = 1_000


def kept(published: Published, name: object, ask: Callable[[Published], _Kept]) -> _Kept:
    """An answer that many pages need, asked once of each published state.

    Args:
        name: of the answer, with all that it depends on: whose it is, if it is somebody's.
    """
    with _keeping:
        answers = _kept.setdefault(published.snapshot.snapshot_id, {})
        while len(_kept) > 2:  # the one before the newest is still read
            _kept.pop(next(iter(_kept)))
    found = answers.get(name)
    if found is None:
        found = ask(published)
        if len(answers) >= _MOST_KEPT:
            answers.clear()
        answers[name] = found
    return found  # type: ignore[return-value]


def state(published: Published) -> State:
    """What the published state is of."""
    return kept(published, "state", _state)


def _state(published: Published) -> State:
    days = published.rows(
        "select metric_date, event_count is null as is_missing from platform_metrics_daily"
        " order by metric_date"
    )
    meters = published.rows(
        "select meters from usage_snapshots where meters is not null"
        " order by published_at desc limit 1"
    )
    landed = [row["metric_date"] for row in days if not row["is_missing"]]
    if not landed:
        raise UsagePipelineError("No day is published", "Publish one with `usage-pipeline rollup`")
    first, last = landed[0], landed[-1]
    return State(
        published.snapshot.snapshot_id,
        published.snapshot.published_at,
        first,
        last,
        tuple(sorted({day.replace(day=1) for day in landed}, reverse=True)),
        {meter.key: meter for row in meters for meter in read_meters(row["meters"])},
        tuple(r["metric_date"] for r in days if r["is_missing"] and first < r["metric_date"]),
        _proof(published, last),
    )


def _proof(published: Published, last: date) -> Proof | None:
    rows = published.rows(
        """
        select usage_date, max(checked_at) as checked_at,
            count(case when matches = false then 1 end) as differing,
            count(case when matches is null then 1 end) as unasked
        from usage_reconciliation
        where usage_date > :before
        group by usage_date
        order by usage_date desc
        """,
        before=last - timedelta(days=35),
    )
    if not rows:
        return None
    newest = rows[0]
    return Proof(
        newest["usage_date"],
        False if newest["differing"] else None if newest["unasked"] else True,
        newest["checked_at"],
        tuple(sorted(row["usage_date"] for row in rows if row["differing"])),
    )


def together(meter: Meter, quantities: Sequence[Decimal | None]) -> Decimal | None:
    """One total of totals; None where it does not follow from them, or one of them is unknown."""
    held = [quantity for quantity in quantities if quantity is not None]
    if len(held) < len(quantities):
        return None
    if meter.adds_up:
        return reduce(EXACT.add, held, Decimal())
    if meter.aggregation in ("max", "min") and held:
        return (max if meter.aggregation == "max" else min)(held)
    return held[0] if len(held) == 1 else None


def totals(published: Published, subject: Subject, period: Period) -> list[Total]:
    """Totals of a period by metric, in the order of the meters."""
    now = state(published)
    if period.window and subject.scope in ("all", "org", "platform"):
        found = _summary_totals(published, subject, period)
    else:
        found = _added_totals(published, subject, period)
    if period.running or period.previous_start < now.first_date:
        found = [replace(t, previous_quantity=None, change_ratio=None) for t in found]
    order = {key: number for number, key in enumerate(now.meters)}
    return sorted(found, key=lambda t: (order.get(t.metric_type, len(order)), t.metric_type))


def _summary_totals(published: Published, subject: Subject, period: Period) -> list[Total]:
    assert period.window
    rows = summary(
        published,
        period.window,
        user_id=subject.user_id if subject.scope == "all" else None,
        org_id=subject.org_id,
    )
    return [
        Total(
            row["metric_type"],
            row["total_quantity"],
            row["event_count"],
            row["previous_quantity"],
            row["change_ratio"],
        )
        for row in rows
    ]


def _added_totals(published: Published, subject: Subject, period: Period) -> list[Total]:
    """Of the months, which are exact for every meter; of a window, of what its days say of it."""
    now = state(published)
    table = subject.table("daily" if period.window else "monthly")
    dated = "usage_date" if period.window else "month"
    rows = published.rows(
        f"""
        select metric_type, {dated} >= :start as is_now, {_added("total_quantity")},
            max(total_quantity) as greatest, min(total_quantity) as smallest,
            count(*) as numbers, count(total_quantity) as held, sum(event_count) as event_count
        from {table}
        where {subject.whose} and {dated} >= :previous_start and {dated} < :end
        group by 1, 2
        """,
        start=period.start,
        previous_start=period.previous_start,
        end=period.end,
        **subject.ids,
    )
    sides: dict[str, dict[bool, Row]] = defaultdict(dict)
    for row in rows:
        sides[row["metric_type"]][row["is_now"]] = row
    found = []
    for metric, by_side in sides.items():
        meter = now.meter(metric)
        quantity, previous = (_one(meter, by_side.get(side)) for side in (True, False))
        change = None
        if quantity is not None and previous:
            change = EXACT.subtract(quantity, previous) / previous
        events = int(by_side[True]["event_count"]) if True in by_side else 0
        found.append(Total(metric, quantity, events, previous, change))
    return found


def _added(quantity: str) -> str:
    """SQL for two sums that DuckDB holds whatever their number; `_sum` makes one of them."""
    whole = f"trunc({quantity})"
    return f"sum({whole}) as {quantity}_whole, sum({quantity} - {whole}) as {quantity}_fraction"


def _sum(row: Row, quantity: str) -> Decimal | None:
    whole, fraction = (row[f"{quantity}_{part}"] for part in ("whole", "fraction"))
    return None if whole is None else EXACT.add(whole, fraction)


def _one(meter: Meter, row: Row | None) -> Decimal | None:
    if row is None:
        return Decimal()
    if row["held"] < row["numbers"]:
        return None
    if meter.adds_up or row["numbers"] == 1:
        return _sum(row, "total_quantity")
    extreme = {"max": "greatest", "min": "smallest"}.get(meter.aggregation)
    return row[extreme] if extreme else None


class Amount(NamedTuple):
    """A total of a day, a month or a value of a dimension."""

    quantity: Decimal | None
    event_count: int

    def plus(self, other: Amount, meter: Meter) -> Amount:
        """Both together."""
        quantity = together(meter, [self.quantity, other.quantity])
        return Amount(quantity, self.event_count + other.event_count)


Series = Mapping[str, Mapping[date, Amount]]


def series(
    published: Published,
    subject: Subject,
    start: date,
    end: date,
    *,
    grain: Literal["daily", "monthly"] = "daily",
    metric: str | None = None,
) -> Series:
    """Totals by metric, and by day or month of `[start, end)` with an event."""
    dated = "usage_date" if grain == "daily" else "month"
    rows = published.rows(
        f"""
        select {dated} as dated, metric_type, total_quantity, event_count
        from {subject.table(grain)}
        where {subject.whose} and {dated} >= :start and {dated} < :end
            {"and metric_type = :metric" if metric else ""}
        order by 1
        """,
        start=start,
        end=end,
        metric=metric,
        **subject.ids,
    )
    now = state(published)
    found: dict[str, dict[date, Amount]] = {}
    for row in rows:
        metric_type, amount = row["metric_type"], Amount(row["total_quantity"], row["event_count"])
        days = found.setdefault(metric_type, {})
        had = days.get(row["dated"])  # of another organisation
        days[row["dated"]] = amount if had is None else had.plus(amount, now.meter(metric_type))
    return found


def rows_by_day(published: Published, subject: Subject, period: Period) -> list[Row]:
    """The published rows of a period's days."""
    org = "cast(null as uuid)" if subject.scope == "platform" else "org_id"
    return published.rows(
        f"""
        select usage_date, {org} as org_id, metric_type, total_quantity, event_count
        from {subject.table("daily")}
        where {subject.whose} and usage_date >= :start and usage_date < :end
        order by usage_date, org_id nulls first, metric_type
        """,
        start=period.start,
        end=period.end,
        **subject.ids,
    )


def limits(
    published: Published,
    *,
    personal: UUID | None = None,
    orgs: Sequence[UUID] = (),
    member: UUID | None = None,
) -> list[Row]:
    """Rows of `usage_limit_status`, the fullest first, all by one question.

    Args:
        personal: whose personal use.
        orgs: organisations as wholes.
        member: whose use within these organisations, where their plan limits members.
    """
    scopes = {
        "scope = 'user' and user_id = :personal and org_id is null": personal,
        "scope = 'org' and user_id is null and org_id = any(:orgs)": orgs,
        "scope = 'member' and user_id = :member and org_id = any(:orgs)": orgs and member,
    }
    wanted = [whose for whose, asked_for in scopes.items() if asked_for]
    if not wanted:
        return []
    # Kept, since its outlook takes longer than all else on a page, which is turned for a metric.
    found = kept(
        published,
        ("limits", personal, tuple(orgs), member),
        lambda it: it.rows(
            f"select * from usage_limit_status where {' or '.join(f'({each})' for each in wanted)}",
            personal=personal,
            orgs=list(orgs),
            member=member,
        ),
    )
    worst = {"exceeded": 0, "warning": 1, "ok": 2}
    return sorted(
        found,
        key=lambda row: (
            worst.get(row["status"], 3),
            -(row["used_ratio"] or 0),
            row["scope"],
            row["metric_type"],
            str(row["org_id"]),
        ),
    )


@dataclass(frozen=True)
class Forecast:
    """What is expected of a metric.

    Attributes:
        days: `forecast_date`, `expected`, `low`, `high`; none for a cold start.
        history_days: how many days the subject has been there; None where nothing is known of it.
    """

    days: Sequence[Row]
    history_days: int | None


def forecast(published: Published, subject: Subject, metric: str) -> Forecast:
    """The 30 days after the newest one."""
    whose = _ROWS_OF[subject.scope]
    days = published.rows(
        f"""
        select forecast_date, expected, low, high from usage_forecast
        where {whose} and metric_type = :metric
        order by forecast_date
        """,
        metric=metric,
        **subject.ids,
    )
    if days:
        return Forecast(days, None)
    models = published.rows(
        f"select history_days from usage_forecast_models where {whose} and metric_type = :metric",
        metric=metric,
        **subject.ids,
    )
    return Forecast((), max((row["history_days"] for row in models), default=None))


def restatements(published: Published, subject: Subject, period: Period) -> list[Row]:
    """Numbers of the period that changed after they were published, added up by day, metric and
    publish: the newest first. Of the platform, by metric and publish."""
    day = "min(usage_date)" if subject.scope == "platform" else "usage_date"
    rows = published.rows(
        f"""
        select {day} as usage_date, max(usage_date) as last_date, metric_type, restated_at, cause,
            run_id, count(*) as numbers, {_added("old_quantity")}, {_added("new_quantity")},
            sum(old_event_count) as old_event_count,
            sum(new_event_count) as new_event_count
        from usage_restatements
        where {subject.whose} and usage_date >= :start and usage_date < :end
        group by {"" if subject.scope == "platform" else "usage_date, "}
            metric_type, restated_at, cause, run_id
        order by restated_at desc, usage_date desc, metric_type
        limit 200
        """,
        start=period.start,
        end=period.end,
        **subject.ids,
    )
    quantities = ("old_quantity", "new_quantity")
    return [{**row, **{name: _sum(row, name) for name in quantities}} for row in rows]


def breakdowns(
    published: Published, subject: Subject, period: Period, metric: str
) -> dict[str, list[tuple[str | None, Amount]]]:
    """By dimension of a metric, its values with what the period has of them; the most first."""
    rows = published.rows(
        f"""
        select dimension, dimension_value, total_quantity, event_count
        from usage_daily_by_dimension
        where {subject.whose} and usage_date >= :start and usage_date < :end
            and metric_type = :metric
        """,
        start=period.start,
        end=period.end,
        metric=metric,
        **subject.ids,
    )
    meter = state(published).meter(metric)
    found: dict[str, dict[str | None, Amount]] = {}
    for row in rows:
        amount = Amount(row["total_quantity"], row["event_count"])
        values = found.setdefault(row["dimension"], {})
        had = values.get(row["dimension_value"])
        values[row["dimension_value"]] = had.plus(amount, meter) if had else amount
    return {
        dimension: sorted(
            found[dimension].items(),
            key=lambda pair: (-(pair[1].quantity or 0), -pair[1].event_count, pair[0] or ""),
        )
        for dimension in sorted(found)
    }


def members_months(
    published: Published, org_id: UUID, users: Sequence[UUID], month: date
) -> list[Row]:
    """What each of these users used in an organisation in a month, by metric."""
    if not users:
        return []
    return published.rows(
        """
        select user_id, metric_type, total_quantity, event_count, active_days
        from usage_monthly
        where month = :month and user_id = any(:users) and org_id = :org_id
        """,
        month=month,
        users=list(users),
        org_id=org_id,
    )


def anomalies(published: Published, subject: Subject, period: Period) -> list[Row]:
    """Odd days of a subject; of the platform also those of all organisations."""
    whose = "scope in ('platform', 'org')" if subject.scope == "platform" else _ROWS_OF["org"]
    return published.rows(
        f"""
        select usage_date, scope, org_id, metric_type, rule, kind, quantity, expected, score
        from usage_anomalies
        where {whose} and usage_date >= :start and usage_date < :end
        order by case scope when 'platform' then 0 else 1 end, usage_date desc, score desc
        limit 50
        """,
        start=period.start,
        end=period.end,
        org_id=subject.org_id,
    )


@dataclass(frozen=True)
class Platform:
    """The platform in a month: rows of the tables of the same names."""

    month: Row
    before: Row
    days: Sequence[Row]
    metrics: Sequence[Row]
    plans: Sequence[Row]
    retention: Sequence[Row]
    top_orgs: Sequence[Row]
    top_users: Sequence[Row]
    accuracy: Sequence[Row]
    publishes: Sequence[Row]


def platform(published: Published, month: date) -> Platform:
    """All that the platform's page shows of a month; asked once of each published state."""
    return kept(published, ("platform", month), lambda it: _platform(it, month))


def _platform(published: Published, month: date) -> Platform:
    period = state(published).month(month)
    asked = {"start": period.start, "end": period.end, "before": period.previous_start}
    months = {
        row["month"]: row
        for row in published.rows(
            "select * from platform_metrics_monthly where month in (:start, :before)", **asked
        )
    }
    in_month = "metric_date >= :start and metric_date < :end"
    most = "order by event_count desc, 1 limit 10"
    return Platform(
        month=months.get(period.start, {}),
        before=months.get(period.previous_start, {}),
        days=published.rows(
            f"select * from platform_metrics_daily where {in_month} order by metric_date", **asked
        ),
        metrics=published.rows(
            """
            select metric_type, total_quantity, event_count, active_users, active_orgs
            from platform_usage_monthly where month = :start
            """,
            **asked,
        ),
        plans=published.rows(
            f"""
            select metric_date, plan, active_subscriptions, new_subscriptions,
                canceled_subscriptions
            from subscriptions_by_plan_daily where {in_month} order by metric_date, plan
            """,
            **asked,
        ),
        retention=published.rows(
            """
            select cohort_month, months_since, cohort_users, retained_users, retention_rate
            from user_retention_monthly
            where cohort_month <= :start and cohort_month > :earliest
            order by cohort_month, months_since
            """,
            start=period.start,
            earliest=(period.start - timedelta(days=365)).replace(day=1),
        ),
        top_orgs=published.rows(
            f"""
            select org_id, sum(event_count) as event_count, max(active_users) as active_users
            from org_usage_monthly where month = :start and org_id is not null
            group by org_id {most}
            """,
            **asked,
        ),
        top_users=published.rows(
            f"""
            select user_id, sum(event_count) as event_count, max(active_days) as active_days
            from usage_monthly where month = :start and user_id is not null
            group by user_id {most}
            """,
            **asked,
        ),
        accuracy=published.rows(
            """
            select scope, metric_type, horizon, mase, naive_mase, coverage, series
            from usage_forecast_accuracy order by scope, metric_type, horizon
            """
        ),
        publishes=published.rows(
            "select snapshot_id, published_at, run_id from usage_snapshots"
            " order by published_at desc limit 7"
        ),
    )


def summary(
    published: Published,
    window: Window,
    *,
    user_id: UUID | None = None,
    org_id: UUID | None = None,
) -> list[Row]:
    """Rows of `usage_summary` of a user over all organisations, of an organisation, or of the
    platform where neither is given, by metric."""
    scope = "user" if user_id else "org" if org_id else "platform"
    whose = " and ".join(
        f"{column} = :{column}" if value else f"{column} is null"
        for column, value in (("user_id", user_id), ("org_id", org_id if not user_id else None))
    )
    return published.rows(
        f"""
        select metric_type, as_of_date, window_start, window_end, total_quantity,
            previous_quantity, change_ratio, event_count
        from usage_summary
        where scope = :scope and time_window = :window and {whose}
        order by metric_type
        """,
        scope=scope,
        window=window,
        user_id=user_id,
        org_id=org_id,
    )


def busiest_users(published: Published, most: int) -> list[Row]:
    """Users with the most events in the trailing month."""
    return published.rows(
        """
        select user_id, sum(event_count) as event_count
        from usage_summary
        where scope = 'user' and time_window = 'month'
        group by user_id
        order by event_count desc, user_id
        limit :most
        """,
        most=most,
    )
