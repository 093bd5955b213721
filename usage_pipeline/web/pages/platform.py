"""The platform, for its admins: who is there, what is used, and whether the numbers are good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Request
from starlette.responses import Response

from usage_pipeline.web import figures
from usage_pipeline.web.figures import State, Subject
from usage_pipeline.web.pages.base import SignedIn, day, exact, month, not_there, percent, render
from usage_pipeline.web.pages.charts import (
    areas_chart,
    chart_script_address,
    heat_chart,
    lines_chart,
)
from usage_pipeline.web.pages.overview import overview
from usage_pipeline.web.pages.subjects import month_of
from usage_pipeline.web.state import FromWeb

router = APIRouter(include_in_schema=False)
_DUE = time(6)  # as the check `yesterday_is_published` has it
_ACTIVE = (
    ("active_users", "Daily"),
    ("weekly_active_users", "Weekly"),
    ("monthly_active_users", "Monthly"),
)


@router.get("/platform")
def platform(
    request: Request,
    web: FromWeb,
    identity: SignedIn,
    month: str | None = None,
    metric: str | None = None,
) -> Response:
    """A month of the platform."""
    if not identity.is_admin:
        raise not_there()
    with web.reader.open() as published:
        state = figures.state(published)
        period = state.month(month_of(state, month))
        shown = figures.platform(published, period.start)
        subject = Subject("platform")
        usage = figures.kept(
            published,
            ("usage", period.start, metric),
            lambda it: overview(it, state, subject, period, metric),
        )
        anomalies = figures.kept(
            published,
            ("anomalies", period.start),
            lambda it: figures.anomalies(it, subject, period),
        )
    last = max((row["metric_date"] for row in shown.plans), default=None)
    named = {row["org_id"] for row in (*shown.top_orgs, *anomalies) if row["org_id"]}
    return render(
        request,
        "platform.html",
        chart_script=chart_script_address(),
        charts={
            "active": _active(shown.days),
            "plans": _plans(shown.plans),
            "retention": _retention(shown.retention),
        },
        before=shown.before,
        by_metric={row["metric_type"]: row for row in shown.metrics},
        cohorts=_cohorts(shown.retention),
        last_day=shown.days[-1] if shown.days else None,
        late=_late(state, web.settings.zone),
        names=web.members.names_of(named),
        metric=metric,
        period=period,
        plans=[row for row in shown.plans if row["metric_date"] == last],
        shown=shown,
        since=sorted({row["months_since"] for row in shown.retention}),
        state=state,
        usage=usage,
        anomalies=anomalies,
    )


def _late(state: State, zone: ZoneInfo) -> list[date]:
    """Days that should be published by now and are not."""
    now = datetime.now(zone)
    due = now.date() - timedelta(days=0 if now.time() >= _DUE else 1)  # days before this one
    first = state.as_of_date + timedelta(days=1)
    return [*state.missing, *(first + timedelta(days=n) for n in range((due - first).days))]


def _row(when: date, name: str, value: int) -> dict[str, str]:
    return {
        "date": f"{when}",
        "day": day(when),
        "series": name,
        "value": f"{value}",
        "said": exact(value),
    }


def _active(days: Iterable[figures.Row]) -> dict[str, Any]:
    rows = [
        _row(each["metric_date"], name, each[column])
        for each in days
        for column, name in _ACTIVE
        if each[column] is not None
    ]
    return {"spec": lines_chart(), "rows": rows}


def _plans(plans: Iterable[figures.Row]) -> dict[str, Any]:
    rows = [_row(row["metric_date"], row["plan"], row["active_subscriptions"]) for row in plans]
    return {"spec": areas_chart(), "rows": rows}


def _retention(cohorts: Iterable[figures.Row]) -> dict[str, Any]:
    rows = [
        {
            "cohort": month(row["cohort_month"]),
            "months_since": row["months_since"],
            "rate": f"{row['retention_rate']}",
            "said": f"{percent(row['retention_rate'])}:"
            f" {exact(row['retained_users'])} of {exact(row['cohort_users'])}",
        }
        for row in cohorts
        if row["retention_rate"] is not None
    ]
    return {"spec": heat_chart(), "rows": rows}


def _cohorts(cohorts: Iterable[figures.Row]) -> dict[date, dict[int, figures.Row]]:
    """By month of registration, and by months since."""
    found: dict[date, dict[int, figures.Row]] = defaultdict(dict)
    for row in cohorts:
        found[row["cohort_month"]][row["months_since"]] = row
    return found
