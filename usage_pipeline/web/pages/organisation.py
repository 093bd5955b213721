"""An organisation, for those who manage it: who uses how much, limits, alerts, deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import reduce
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from usage_pipeline.alerts import limits as alerts
from usage_pipeline.alerts import outbox
from usage_pipeline.app_db.fingerprints import EXACT
from usage_pipeline.days import next_month
from usage_pipeline.meters.meter import Meter
from usage_pipeline.web import figures
from usage_pipeline.web.figures import Amount, State, Subject
from usage_pipeline.web.identity import Person
from usage_pipeline.web.pages.base import SignedIn, render
from usage_pipeline.web.pages.charts import chart_script_address
from usage_pipeline.web.pages.overview import overview
from usage_pipeline.web.pages.subjects import managed, period_of
from usage_pipeline.web.reader import Published
from usage_pipeline.web.session import MayChange
from usage_pipeline.web.state import FromWeb

router = APIRouter(include_in_schema=False)
_MOST_DELIVERIES = 50


@dataclass(frozen=True)
class Share:
    """What one member used of a metric in a month; `share` is of the organisation's total, None
    where totals of members do not add up to it."""

    person: Person | None
    quantity: Decimal | None
    event_count: int
    share: Decimal | None


@router.get("/org/{org_id}")
def organisation(
    request: Request,
    web: FromWeb,
    identity: SignedIn,
    org_id: UUID,
    *,
    period: str = "month",
    metric: str | None = None,
) -> Response:
    """Its metrics over time, its members' shares, limits, alerts and deliveries."""
    name = managed(web, identity, org_id)
    people = web.members.of(org_id)
    subject = Subject("org", org_id=org_id)
    with web.reader.open() as published:
        state = figures.state(published)
        when = period_of(state, period)
        month = when.start if when.window is None else state.months[0]
        shown = overview(published, state, subject, when, metric)
        shares = []
        if shown.trend:
            shares = _shares(
                published, state, subject, meter=shown.trend.meter, people=people, month=month
            )
        limits = figures.limits(published, orgs=[org_id])
        anomalies = figures.anomalies(published, subject, when)
    return render(
        request,
        "organisation.html",
        chart_script=chart_script_address(),
        alerts=alerts.of_org(web.settings, org_id, state.months[:12]),
        deliveries=outbox.listed_webhooks(web.settings, org_id, _MOST_DELIVERIES),
        may_change=identity.may_change,
        month=month,
        name=name,
        names={org_id: name},
        org_id=org_id,
        people=people,
        metric=metric,
        period=when,
        shares=shares,
        shown=shown,
        state=state,
        limits=limits,
        anomalies=anomalies,
    )


def _shares(
    published: Published,
    state: State,
    subject: Subject,
    *,
    meter: Meter,
    people: Sequence[Person],
    month: date,
) -> list[Share]:
    """Of each member, the one with the most first; what is left is of those who left."""
    assert subject.org_id
    by_user = {
        row["user_id"]: row
        for row in figures.members_months(
            published, subject.org_id, [person.user_id for person in people], month
        )
        if row["metric_type"] == meter.key
    }
    totals = figures.series(
        published, subject, month, next_month(month), grain="monthly", metric=meter.key
    )
    whole = totals.get(meter.key, {}).get(month, Amount(Decimal(), 0))
    divisor = whole.quantity if meter.adds_up else None

    def share(quantity: Decimal | None) -> Decimal | None:
        return quantity / divisor if divisor and quantity is not None else None

    found = []
    for person in people:
        row = by_user.get(person.user_id)
        quantity = row["total_quantity"] if row else Decimal() if meter.adds_up else None
        found.append(Share(person, quantity, row["event_count"] if row else 0, share(quantity)))
    found.sort(key=lambda s: (-(s.quantity or 0), -s.event_count, str(s.person)))
    events = whole.event_count - sum(each.event_count for each in found)
    if events:
        held = [each.quantity for each in found if each.quantity is not None]
        rest = None
        if meter.adds_up and whole.quantity is not None and len(held) == len(found):
            rest = EXACT.subtract(whole.quantity, reduce(EXACT.add, held, Decimal()))
        found.append(Share(None, rest, events, share(rest)))
    return found


@router.post("/org/{org_id}/replay")
def replay(
    web: FromWeb,
    identity: MayChange,
    org_id: UUID,
    message_id: Annotated[UUID, Form()],
    recipient_id: Annotated[UUID, Form()],
) -> Response:
    """Let a webhook's delivery leave again."""
    managed(web, identity, org_id)
    outbox.replay(web.settings, message_id, recipient_id, org_id)
    return RedirectResponse(f"/org/{org_id}#deliveries", status_code=303)
