"""What runs in processes that are killed: facts come up and are told, and messages leave."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg2.extras import execute_values
from support import roll_up

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.days import DayRange
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

ORGS = [UUID(int=number) for number in range(1, 4)]
A_TRANSACTION = 7


def tell_and_deliver(variables: dict[str, Any], facts: int) -> None:
    """Note all facts that are not noted yet, each with its message, and send what is due."""
    settings = Settings(_env_file=None, **variables)  # type: ignore[call-arg]
    for first in range(0, facts, A_TRANSACTION):
        with outbox.opened(settings) as cursor:
            numbers = range(first, min(first + A_TRANSACTION, facts))
            new = execute_values(
                cursor,
                "insert into facts values %s on conflict do nothing returning number",
                [(number,) for number in numbers],
                fetch=True,
            )
            messages = [message(number) for (number,) in new]
            outbox.add(cursor, settings.publish_schema, messages)
    deliver(settings)


def roll_up_and_deliver(variables: dict[str, Any], days: DayRange) -> None:
    """A whole night: totals, alerts, changed days, and what is due."""
    settings = Settings(_env_file=None, **variables)  # type: ignore[call-arg]
    roll_up(settings, days)
    Rollup(settings).announce_days()
    deliver(settings)


def message(number: int) -> Message:
    org = ORGS[number % len(ORGS)]
    return Message("usage.test", f"fact {number}", org, None, {"org_id": org, "webhook_id": org})
