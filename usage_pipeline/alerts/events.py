"""What receivers are told: each event's payload, of which docs/webhooks.md has the JSON schema.

A name or a meaning here is a contract with other people's systems: fields may be added, and none
may be renamed, removed or counted otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema


def spelled(number: Decimal) -> str:
    """An exact number without exponent, and without zeros that say nothing."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# As text, since a receiver's JSON parser may make a binary fraction of a number.
Exact = Annotated[
    Decimal,
    PlainSerializer(spelled, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}),
]


LIMIT_WARNING, LIMIT_EXCEEDED, LIMIT_RESOLVED = (
    f"usage.limit_{it}" for it in ("warning", "exceeded", "resolved")
)
ANOMALY_DETECTED = "usage.anomaly_detected"
ROLLED_UP = "usage.rolled_up"
TEST = "usage.test"


class Payload(BaseModel):
    """The `data` of an event."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limit(Payload):
    """The usage of a month beside what the plan includes. Each threshold is told once a month, and
    of several at once the highest."""

    scope: Literal["user", "member", "org"] = Field(
        description=(
            "Whose usage: a user's personal one, a user's within an organisation, or an "
            "organisation's."
        )
    )
    user_id: UUID | None
    org_id: UUID | None
    metric_type: str
    month: date = Field(description="The first day of the local month.")
    threshold: Exact = Field(description="A share of the limit; 1 is all of it.")
    used_quantity: Exact | None = Field(description="In the meter's unit; null when unknown.")
    limit_quantity: Exact | None = Field(description="Null when there is none any more.")
    plan: str | None
    usage_date: date = Field(description="The newest day of what showed it.")
    snapshot_id: str = Field(description="What was published when it showed.")


class Anomaly(Payload):
    """A day's usage that is far from what was to be expected, after one rule."""

    scope: Literal["user", "member", "org", "platform"]
    user_id: UUID | None
    org_id: UUID | None
    metric_type: str
    usage_date: date = Field(description="The local day.")
    rule: Literal["mean_29", "weekday_median"] = Field(
        description=(
            "Compared with the mean of the 29 days before, or with the median of the same weekdays."
        )
    )
    kind: Literal["spike", "drop"]
    quantity: Exact
    expected: Exact
    score: Exact = Field(description="How far from it, after the rule; negative below it.")
    snapshot_id: str = Field(description="What was published when it showed.")


class DayTotal(Payload):
    """One metric of an organisation's day."""

    total_quantity: Exact | None = Field(description="Null where it cannot be held.")
    event_count: int
    active_users: int


class RolledUp(Payload):
    """An organisation's day. Of two, the one with the later `published_at` is right; drop the
    other, in whichever order they come."""

    org_id: UUID
    usage_date: date = Field(description="The local day, in `timezone`.")
    timezone: str
    snapshot_id: str = Field(description="What was published when the totals became these.")
    published_at: datetime
    totals: dict[str, DayTotal] = Field(description="By metric; a metric without usage is absent.")


class Test(Payload):
    """Whose endpoint it is."""

    org_id: UUID
    webhook_id: UUID


class Event(NamedTuple):
    """What an event says, in a sentence, and its payload."""

    says: str
    payload: type[Payload]


EVENTS = {
    LIMIT_WARNING: Event(
        "The usage of the month has come to a share of the limit, 0.8 unless set otherwise.", Limit
    ),
    LIMIT_EXCEEDED: Event("It has come to the limit, or to a threshold beyond it.", Limit),
    LIMIT_RESOLVED: Event("It is below a threshold again, after a correction.", Limit),
    ANOMALY_DETECTED: Event("A day's usage is far from what was to be expected.", Anomaly),
    ROLLED_UP: Event("The totals of an organisation's day are new, or have changed.", RolledUp),
    TEST: Event("Nothing: an operator looks whether the endpoint answers.", Test),
}


def as_json(event_type: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload as JSON can hold it: numbers that have to be exact, ids and dates as text.

    Raises:
        ValueError: it is not what the event promises.
    """
    return EVENTS[event_type].payload.model_validate(payload).model_dump(mode="json")
