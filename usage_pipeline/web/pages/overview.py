"""One subject's metrics in a period, as pages show them: a card each, and one of them by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from usage_pipeline.app_db.fingerprints import EXACT
from usage_pipeline.days import next_month
from usage_pipeline.meters.meter import Meter
from usage_pipeline.web import figures
from usage_pipeline.web.figures import Amount, Forecast, Period, State, Subject, Total
from usage_pipeline.web.pages.base import day, exact, not_there, plain
from usage_pipeline.web.pages.charts import trend_chart
from usage_pipeline.web.reader import Published, Row

_WIDTH, _HEIGHT = 120, 32  # of a small line
_COLD_DAYS = 14  # of history, from which on a forecast is made


@dataclass(frozen=True)
class Card:
    """One metric: its total, the points of a small line, and whether a number was restated."""

    meter: Meter
    total: Total
    points: str
    restated: bool


@dataclass(frozen=True)
class Trend:
    """A metric's days and what is expected after them.

    Attributes:
        chart: specification, rows, and what the vertical axis is of.
        past: days with their totals, the newest first.
        coming: rows of the forecast.
        note: why there is none; empty otherwise.
        breakdowns: values by dimension, with the share of the greatest one.
    """

    meter: Meter
    chart: Mapping[str, Any]
    past: Sequence[tuple[date, Decimal | None]]
    coming: Sequence[Row]
    note: str
    breakdowns: Mapping[str, Sequence[tuple[str | None, Amount]]]


@dataclass(frozen=True)
class Overview:
    """All of it; `trend` is None where nothing was used."""

    cards: Sequence[Card]
    trend: Trend | None
    restated: Sequence[Row]


def overview(
    published: Published, state: State, subject: Subject, period: Period, metric: str | None
) -> Overview:
    """What a subject used.

    Args:
        metric: whose days are shown; None is the first.

    Raises:
        HTTPException: there is no such metric.
    """
    totals = figures.totals(published, subject, period)
    restated = figures.restatements(published, subject, period)
    changed = {row["metric_type"] for row in restated}
    shown = metric or (totals[0].metric_type if totals else None)
    if metric and metric not in state.meters and metric not in {t.metric_type for t in totals}:
        raise not_there()
    of_year = period.window == "year"
    days = figures.series(
        published, subject, period.start, period.end, metric=shown if of_year else None
    )
    lines = days
    if of_year:  # 12 months draw the same line as 365 days
        lines = figures.series(
            published, subject, _months(period, state)[0], period.end, grain="monthly"
        )
    cards = [
        Card(
            state.meter(total.metric_type),
            total,
            _points(period, state, lines, total.metric_type),
            total.metric_type in changed,
        )
        for total in totals
    ]
    trend = None
    if totals and shown:
        trend = _trend(
            published,
            state,
            subject,
            period,
            meter=state.meter(shown),
            amounts=days.get(shown, {}),
        )
    return Overview(cards, trend, restated)


def _points(period: Period, state: State, lines: figures.Series, metric: str) -> str:
    amounts, meter = lines.get(metric, {}), state.meter(metric)
    if period.window == "year":
        nothing = Amount(Decimal() if meter.adds_up else None, 0)
        return sparkline([amounts.get(m, nothing).quantity for m in _months(period, state)])
    return sparkline([quantity for _, quantity in by_day(period, state, meter, amounts)])


def _months(period: Period, state: State) -> list[date]:
    """The months of which the period has a day, as far as they are published."""
    month, found = max(period.start, state.first_date).replace(day=1), []
    while month < period.end:
        found.append(month)
        month = next_month(month)
    return found


def sparkline(quantities: Sequence[Decimal | None]) -> str:
    """The points of a polyline in a box of 120 by 32; empty without two numbers."""
    held = [float(quantity) for quantity in quantities if quantity is not None]  # pixels
    if len(held) < 2:
        return ""
    low, high = min(*held, 0), max(held)
    step = _WIDTH / (len(quantities) - 1)
    scale = (_HEIGHT - 4) / (high - low) if high > low else 0
    return " ".join(
        f"{number * step:.1f},{_HEIGHT - 2 - (float(quantity) - low) * scale:.1f}"
        for number, quantity in enumerate(quantities)
        if quantity is not None
    )


def days_of(period: Period, state: State) -> list[date]:
    """The days of a period that are published, or should be."""
    first = max(period.start, state.first_date)
    end = min(period.end, state.as_of_date + timedelta(days=1))
    return [first + timedelta(days=n) for n in range((end - first).days)]


def by_day(
    period: Period, state: State, meter: Meter, amounts: Mapping[date, Amount]
) -> list[tuple[date, Decimal | None]]:
    """Each day's total: 0 without an event where totals add up, unknown where it is not landed."""
    nothing = Decimal() if meter.adds_up else None
    missing = set(state.missing)
    return [
        (each, amounts[each].quantity if each in amounts else None if each in missing else nothing)
        for each in days_of(period, state)
    ]


def _trend(
    published: Published,
    state: State,
    subject: Subject,
    period: Period,
    *,
    meter: Meter,
    amounts: Mapping[date, Amount],
) -> Trend:
    past = by_day(period, state, meter, amounts)
    is_past = period.end <= state.as_of_date
    expected = None
    if meter.adds_up and subject.scope != "all" and not is_past:
        expected = figures.forecast(published, subject, meter.key)
    coming = list(expected.days) if expected else []
    if period.window == "week":
        coming = coming[:7]
    rows = [
        {"date": f"{when}", "day": day(when), "quantity": plain(q), "said": _said(q, meter)}
        for when, q in past
        if q is not None
    ]
    if rows and coming:  # the expected begins where the past ends
        rows[-1].update(dict.fromkeys(("expected", "low", "high"), rows[-1]["quantity"]))
    rows += [
        {
            "date": f"{row['forecast_date']}",
            "day": day(row["forecast_date"]),
            **{name: plain(row[name]) for name in ("expected", "low", "high")},
            "said": f"{_rounded(row['expected'])} expected,"
            f" {_rounded(row['low'])} to {_rounded(row['high'])}",
        }
        for row in coming
    ]
    return Trend(
        meter=meter,
        chart={"spec": trend_chart(forecast=bool(coming)), "rows": rows},
        past=past[::-1],
        coming=coming,
        note="" if is_past or coming else _why_none(meter, expected),
        breakdowns=figures.breakdowns(published, subject, period, meter.key)
        if meter.dimensions
        else {},
    )


def _why_none(meter: Meter, expected: Forecast | None) -> str:
    if not meter.adds_up:
        return "Forecasts are made of metrics that add up over days, which this one does not."
    if expected is None:
        return "Forecasts are made of personal use and of each organisation: choose one of them."
    if expected.history_days is not None and expected.history_days >= _COLD_DAYS:
        return "No forecast can be made of these numbers."
    return f"Too little history yet: a forecast begins with {_COLD_DAYS} days of it."


def _said(quantity: Decimal, meter: Meter) -> str:
    return f"{exact(quantity)} {meter.unit}".strip()


def _rounded(quantity: Decimal) -> str:
    return exact(quantity.quantize(Decimal("0.1"), context=EXACT))
