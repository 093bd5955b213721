"""Events that the API takes, written to the source by one reviewed statement a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from uuid import UUID

import sqlalchemy
from sqlalchemy.exc import DataError, IntegrityError

# As arrays, since one statement of whatever many events is parsed and planned once.
_INCOMING = """
with incoming_events as (
    select *
    from unnest(
        cast(:ids as uuid[]), cast(:users as uuid[]), cast(:orgs as uuid[]), cast(:types as text[]),
        cast(:data as jsonb[]), cast(:quantities as numeric[]), cast(:moments as timestamptz[])
    ) as events (id, user_id, org_id, event_type, event_data, quantity, created_at)
)
"""


@dataclass(frozen=True)
class Event:
    """One event as it is written; `event_data` is JSON."""

    id: UUID
    user_id: UUID
    org_id: UUID | None
    event_type: str
    event_data: str | None
    quantity: Decimal
    created_at: datetime


@cache
def _statement() -> sqlalchemy.TextClause:
    own = files("usage_pipeline.app_db").joinpath("statements", "insert_usage_events.sql")
    return sqlalchemy.text(_INCOMING + own.read_text("utf-8").strip().rstrip(";"))


def insert_events(
    connection: sqlalchemy.Connection, events: Sequence[Event]
) -> tuple[set[UUID], set[UUID]]:
    """Write events of different ids, in the caller's transaction; gives the ids that are new, and
    those that the source refuses: by a type of its own, a check or a foreign key.

    Where it refuses one, the others are found by halves.
    """
    try:
        with connection.begin_nested():
            rows = connection.execute(_statement(), _arrays(events))
            return {UUID(str(row[0])) for row in rows}, set()
    except (DataError, IntegrityError):
        if len(events) == 1:
            return set(), {events[0].id}
    middle = len(events) // 2
    first, refused = insert_events(connection, events[:middle])
    second, refused_too = insert_events(connection, events[middle:])
    return first | second, refused | refused_too


def _arrays(events: Sequence[Event]) -> dict[str, list[object]]:
    return {
        "ids": [str(event.id) for event in events],
        "users": [str(event.user_id) for event in events],
        "orgs": [event.org_id and str(event.org_id) for event in events],
        "types": [event.event_type for event in events],
        "data": [event.event_data for event in events],
        "quantities": [event.quantity for event in events],
        "moments": [event.created_at for event in events],
    }
