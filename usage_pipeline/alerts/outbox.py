"""Messages that wait to be sent, written in the transaction of what they tell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg2.extensions import cursor as Cursor
from psycopg2.extras import execute_values

TABLE = "outbox"


@dataclass(frozen=True)
class Message:
    """One fact to tell.

    Attributes:
        event_type: such as `usage.limit_exceeded`.
        key: of the fact; what was added under it before is not added again.
        org_id: the organisation it is about, if any.
        user_id: the person it is about, if any.
        payload: JSON; quantities as text, so that no digit is lost.
    """

    event_type: str
    key: str
    org_id: UUID | None
    user_id: UUID | None
    payload: Mapping[str, Any]


def add(cursor: Cursor, schema: str, messages: Iterable[Message]) -> None:
    """Add messages in the caller's transaction."""
    table = f'"{schema}".{TABLE}'
    cursor.execute("select to_regclass(%s)", (table,))
    if cursor.fetchone() == (None,):
        cursor.execute(
            f"create table {table} (key text primary key, event_type text not null,"
            " org_id uuid, user_id uuid, payload jsonb not null)"
        )
    execute_values(
        cursor,
        f"insert into {table} (key, event_type, org_id, user_id, payload) values %s"
        " on conflict (key) do nothing",
        [
            (
                m.key,
                m.event_type,
                m.org_id and str(m.org_id),
                m.user_id and str(m.user_id),
                json.dumps(m.payload),
            )
            for m in messages
        ],
    )


def forget(cursor: Cursor, schema: str, user_id: UUID) -> None:
    """Remove a person's messages in the caller's transaction."""
    table = f'"{schema}".{TABLE}'
    cursor.execute("select to_regclass(%s)", (table,))
    if cursor.fetchone() != (None,):
        cursor.execute(f"delete from {table} where user_id = %s", (str(user_id),))
