"""The outbox: what is to be told, to whom, and how far that is. Tables in the publish schema.

A message is added in the transaction that decides on it. Its recipients are found when it is about
to leave, since they are the application's to change; then each has a delivery of its own, which is
leased to one deliverer at a time. Neither URL, secret nor address is ever written here.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal
from uuid import UUID, uuid5

from psycopg2.extensions import cursor as Cursor
from psycopg2.extras import execute_values

from usage_pipeline.alerts.events import ROLLED_UP, as_json
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.publishing.postgres_tables import READER_ROLE
from usage_pipeline.settings import Settings

WEBHOOK, MAIL = "webhook", "mail"  # channels
VARIABLE = "USAGE_PUBLISH_DATABASE_URL"

# A refusal is tried again after half a minute, three times that, and so on up to a day: two days.
FIRST_DELAY, FACTOR, LONGEST_DELAY = timedelta(seconds=30), 3, timedelta(days=1)
MAX_ATTEMPTS = 10
LEASE = timedelta(minutes=5)
ADDED_TOGETHER = 1_000
SHOWN_FOR = timedelta(days=7)  # a dead message, by the check and `status`

# Ids are derived from keys, so that a message that is added again after it was pruned has its own.
_IDS = UUID("5f0c9a0e-0a52-5d1c-9a41-0c1d3f5b7e12")

# In order; a release that needs another column adds it as the last one.
_TABLES: dict[str, tuple[str, ...]] = {
    "outbox_messages": (
        "message_id uuid primary key",
        "key text not null unique",
        "event_type text not null",
        "org_id uuid",
        "user_id uuid",
        "payload jsonb not null",
        "created_at timestamptz not null default now()",
        "addressed_at timestamptz",
    ),
    "outbox_deliveries": (
        "message_id uuid not null references {schema}.outbox_messages on delete cascade",
        "channel text not null",
        "recipient_id uuid not null",
        "state text not null default 'waiting'",
        "attempts integer not null default 0",
        "due_at timestamptz not null default now()",
        "lease uuid",
        "leased_until timestamptz",
        "finished_at timestamptz",
        "reason text",
    ),
    "outbox_progress": ("announced_until timestamptz not null",),
}
TABLES = tuple(_TABLES)
_INDEXES = (
    "create unique index outbox_deliveries_grain on {schema}.outbox_deliveries"
    " (message_id, channel, recipient_id)",
    "create index outbox_deliveries_due_idx on {schema}.outbox_deliveries"
    " (channel, recipient_id, due_at) where state = 'waiting'",
    "create index outbox_deliveries_dead_idx on {schema}.outbox_deliveries (finished_at)"
    " where state = 'dead'",
    "create index outbox_messages_new_idx on {schema}.outbox_messages (created_at)"
    " where addressed_at is null",
    "create index outbox_messages_day_idx on {schema}.outbox_messages"
    " (org_id, (payload ->> 'usage_date')) where event_type = '" + ROLLED_UP + "'",
)
_DUE = "state = 'waiting' and due_at <= now() and (leased_until is null or leased_until < now())"

State = Literal["waiting", "delivered", "dead", "skipped"]


@dataclass(frozen=True)
class Message:
    """A fact that somebody has to know.

    Attributes:
        key: what makes it this fact and no other; a second message with the key is none.
        org_id: whose webhooks are told, and, without a user, whose owners and admins.
        user_id: who is told by e-mail.
        payload: as `events` describes it.
    """

    event_type: str
    key: str
    org_id: UUID | None
    user_id: UUID | None
    payload: Mapping[str, Any]

    @property
    def message_id(self) -> UUID:
        """The same for the same key, for ever: what receivers know a repeated message by."""
        return uuid5(_IDS, self.key)


@dataclass(frozen=True)
class Delivery:
    """A message on its way to one recipient: a webhook or a user."""

    message_id: UUID
    channel: str
    recipient_id: UUID
    attempts: int
    event_type: str
    org_id: UUID | None
    user_id: UUID | None
    payload: dict[str, Any]
    created_at: datetime


def known_as(message_id: UUID) -> str:
    """How receivers, and operators who hear of them, know a message: its `webhook-id`."""
    return f"msg_{message_id.hex}"


@dataclass(frozen=True)
class Outcome:
    """How an attempt went, or why there was none.

    Attributes:
        end: `failed` is tried again, `dead` and `skipped` are not; `postponed` was no attempt.
        reason: in words of ours: what a server says may hold an address or worse.
        after: the earliest moment for the next attempt, from now on.
    """

    delivery: Delivery
    end: Literal["delivered", "failed", "dead", "skipped", "postponed"]
    reason: str | None = None
    after: timedelta = timedelta()

    @property
    def state(self) -> State:
        """What the delivery is now."""
        if self.end == "failed":
            return "waiting" if self.delivery.attempts + 1 < MAX_ATTEMPTS else "dead"
        return "waiting" if self.end == "postponed" else self.end


@dataclass(frozen=True)
class Waiting:
    """What is in the outbox.

    Attributes:
        due: messages without recipients yet, and deliveries whose time has come.
        later: deliveries that are tried again, or are being tried.
        dead: deliveries given up within `SHOWN_FOR`.
    """

    due: int = 0
    later: int = 0
    dead: int = 0


@contextmanager
def opened(settings: Settings) -> Iterator[Cursor]:
    """The publish database, in one transaction, with the tables of the outbox in it."""
    with (
        connect(publish_database_url(settings), VARIABLE) as connection,
        connection.cursor() as cursor,
    ):
        ensure(cursor, settings.publish_schema)
        yield cursor


@contextmanager
def existing(settings: Settings) -> Iterator[Cursor | None]:
    """The publish database, in one transaction; None where it has no outbox yet, nor gets one."""
    with (
        connect(publish_database_url(settings), VARIABLE) as connection,
        connection.cursor() as cursor,
    ):
        yield cursor if _exists(cursor, settings.publish_schema) else None


def ensure(cursor: Cursor, schema: str) -> None:
    """Create the tables that are absent, and add columns that older ones lack.

    Raises:
        UsagePipelineError: a table of that name is somebody else's.
    """
    if _complete(cursor, schema):
        return
    cursor.execute(
        "select pg_advisory_xact_lock(hashtext('usage-pipeline outbox'), hashtext(%s))", (schema,)
    )
    cursor.execute("select 1 from pg_namespace where nspname = %s", (schema,))
    if cursor.fetchone() is None:
        cursor.execute(f'create schema "{schema}"')
    there = _columns(cursor, schema)
    for table, columns in _TABLES.items():
        known, wanted = there.get(table, []), [_name(column) for column in columns]
        if known != wanted[: len(known)] and wanted != known[: len(wanted)]:
            raise UsagePipelineError(
                f"Schema {schema} in Postgres has a table {table} that this pipeline did not make",
                "Set USAGE_PUBLISH_SCHEMA to a schema for the pipeline alone; it is created",
            )
        if not known:
            definition = ", ".join(columns).format(schema=f'"{schema}"')
            cursor.execute(f'create table "{schema}".{table} ({definition})')
        for column in columns[len(known) :] if known else ():
            cursor.execute(f'alter table "{schema}".{table} add column {column}')
    for index in _INDEXES:
        cursor.execute(
            index.replace(" index ", " index if not exists ", 1).format(schema=f'"{schema}"')
        )
    cursor.execute("select 1 from pg_roles where rolname = %s", (READER_ROLE,))
    if cursor.fetchone():  # whatever an administrator's default privileges grant
        tables = ", ".join(f'"{schema}".{table}' for table in TABLES)
        cursor.execute(f"revoke all on {tables} from {READER_ROLE}")


def _complete(cursor: Cursor, schema: str) -> bool:
    there = _columns(cursor, schema)
    return all(
        there.get(table, [])[: len(columns)] == [_name(column) for column in columns]
        for table, columns in _TABLES.items()
    )


def _exists(cursor: Cursor, schema: str) -> bool:
    return _columns(cursor, schema).keys() == _TABLES.keys()


def _columns(cursor: Cursor, schema: str) -> dict[str, list[str]]:
    cursor.execute(
        "select relname, array_agg(attname::text order by attnum) from pg_class"
        " inner join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped"
        " where relnamespace = (select oid from pg_namespace where nspname = %s)"
        " and relname = any(%s) group by relname",
        (schema, list(_TABLES)),
    )
    return dict(cursor.fetchall())


def _name(column: str) -> str:
    return column.partition(" ")[0]


def add(cursor: Cursor, schema: str, messages: Iterable[Message]) -> int:
    """Add messages in the caller's transaction, some at once; gives how many are new.

    Raises:
        ValueError: a payload is not what its event promises.
    """
    waiting = iter(messages)
    added = 0
    while some := list(islice(waiting, ADDED_TOGETHER)):
        if not added:
            ensure(cursor, schema)
        rows = [
            (
                str(message.message_id),
                message.key,
                message.event_type,
                _text(message.org_id),
                _text(message.user_id),
                json.dumps(as_json(message.event_type, message.payload)),
            )
            for message in some
        ]
        new = execute_values(
            cursor,
            f'insert into "{schema}".outbox_messages'
            " (message_id, key, event_type, org_id, user_id, payload) values %s"
            " on conflict do nothing returning 1",
            rows,
            page_size=ADDED_TOGETHER,
            fetch=True,
        )
        added += len(new)
    return added


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True)
class Unaddressed:
    """A message whose recipients nobody looked for yet."""

    message_id: UUID
    event_type: str
    org_id: UUID | None
    user_id: UUID | None


def unaddressed(cursor: Cursor, schema: str, limit: int) -> list[Unaddressed]:
    """The oldest of them, locked until the transaction ends."""
    cursor.execute(
        f'select message_id, event_type, org_id, user_id from "{schema}".outbox_messages'
        " where addressed_at is null order by created_at limit %s for update skip locked",
        (limit,),
    )
    return [
        Unaddressed(UUID(message), event, org and UUID(org), user and UUID(user))
        for message, event, org, user in cursor.fetchall()
    ]


def address(
    cursor: Cursor,
    schema: str,
    messages: Collection[UUID],
    recipients: Collection[tuple[UUID, str, UUID]],
) -> None:
    """Give messages their recipients: message, channel, webhook or user."""
    rows = [(str(message), channel, str(recipient)) for message, channel, recipient in recipients]
    execute_values(
        cursor,
        f'insert into "{schema}".outbox_deliveries (message_id, channel, recipient_id)'
        " values %s on conflict do nothing",
        rows,
        page_size=1_000,
    )
    cursor.execute(
        f'update "{schema}".outbox_messages set addressed_at = now()'
        " where message_id = any(%s::uuid[])",
        ([*map(str, messages)],),
    )


def due_webhooks(cursor: Cursor, schema: str, but: Collection[UUID], limit: int) -> list[UUID]:
    """Webhooks with deliveries whose time has come: first those that did not fail before."""
    cursor.execute(
        f'select recipient_id from "{schema}".outbox_deliveries'
        f" where channel = '{WEBHOOK}' and {_DUE} and recipient_id <> all(%s::uuid[])"
        " group by recipient_id order by min(attempts), min(due_at) limit %s",
        ([*map(str, but)], limit),
    )
    return [UUID(webhook) for (webhook,) in cursor.fetchall()]


def claim(
    cursor: Cursor,
    schema: str,
    lease: UUID,
    *,
    channel: str,
    limit: int,
    recipient: UUID | None = None,
) -> list[Delivery]:
    """Lease deliveries whose time has come, of one recipient where it is named: the oldest first,
    then those that failed before, in any order, so that none of them stands in front each time."""
    only = "" if recipient is None else " and recipient_id = %(recipient)s"
    cursor.execute(
        f"""
        with taken as (
            select message_id, channel, recipient_id
            from "{schema}".outbox_deliveries
            where channel = %(channel)s and {_DUE}{only}
            order by due_at
            limit %(limit)s
            for update skip locked
        )
        update "{schema}".outbox_deliveries as deliveries
        set lease = %(lease)s, leased_until = now() + %(period)s
        from taken
        inner join "{schema}".outbox_messages as messages using (message_id)
        where deliveries.message_id = taken.message_id
            and deliveries.channel = taken.channel
            and deliveries.recipient_id = taken.recipient_id
        returning messages.message_id, deliveries.channel, deliveries.recipient_id,
            deliveries.attempts, messages.event_type, messages.org_id, messages.user_id,
            messages.payload, messages.created_at
        """,
        {
            "channel": channel,
            "recipient": _text(recipient),
            "limit": limit,
            "lease": str(lease),
            "period": LEASE,
        },
    )
    claimed = [
        Delivery(
            UUID(message),
            way,
            UUID(to),
            tries,
            event,
            org and UUID(org),
            user and UUID(user),
            payload,
            created_at,
        )
        for message, way, to, tries, event, org, user, payload, created_at in cursor.fetchall()
    ]
    random.shuffle(claimed)
    return sorted(claimed, key=lambda it: (it.attempts > 0, it.attempts or it.created_at))


def record(cursor: Cursor, schema: str, lease: UUID, outcomes: Sequence[Outcome]) -> None:
    """Write down how attempts went, and give their leases back.

    What was delivered is so, whoever holds the lease by now; all else is for its holder to say.
    """
    rows = [
        (
            str(outcome.delivery.message_id),
            outcome.delivery.channel,
            str(outcome.delivery.recipient_id),
            outcome.state,
            int(outcome.end not in ("skipped", "postponed")),
            _time_until_next(outcome, lease),
            outcome.reason,
        )
        for outcome in outcomes
    ]
    execute_values(
        cursor,
        f"""
        update "{schema}".outbox_deliveries as deliveries
        set state = new.state,
            attempts = attempts + new.tried,
            due_at = now() + new.delay,
            reason = case
                when new.state <> 'delivered' then coalesce(new.reason, deliveries.reason)
            end,
            lease = null,
            leased_until = null,
            finished_at = case when new.state <> 'waiting' then now() end
        from (values %s) as new (message_id, channel, recipient_id, state, tried, delay, reason)
        where deliveries.message_id = new.message_id::uuid
            and deliveries.channel = new.channel
            and deliveries.recipient_id = new.recipient_id::uuid
            and case
                when new.state = 'delivered' then deliveries.state <> 'delivered'
                else deliveries.state = 'waiting' and deliveries.lease = '{lease}'
            end
        """,
        rows,
        template="(%s, %s, %s, %s, %s, %s::interval, %s)",
        page_size=1_000,
    )


def refuse(cursor: Cursor, schema: str, lease: UUID, outcome: Outcome) -> Counter[State]:
    """Let all else that is due for the recipient of a failed attempt go the same way, untried;
    gives how many are in which state by that."""
    cursor.execute(
        f"""
        with refused as (
            update "{schema}".outbox_deliveries
            set state = case when attempts + %(tried)s < {MAX_ATTEMPTS} then state else 'dead' end,
                attempts = attempts + %(tried)s,
                due_at = now() + greatest(%(after)s, %(tried)s * %(share)s * least(
                    %(first)s * power({FACTOR}, attempts), %(longest)s
                )),
                reason = coalesce(%(reason)s, reason),
                finished_at = case when attempts + %(tried)s >= {MAX_ATTEMPTS} then now() end
            where channel = %(channel)s and recipient_id = %(recipient)s and {_DUE}
            returning state
        )
        select state, count(*) from refused group by state
        """,
        {
            "tried": int(outcome.end == "failed"),
            "after": min(outcome.after, LONGEST_DELAY),
            "share": _share(lease, outcome.delivery.recipient_id),
            "first": FIRST_DELAY,
            "longest": LONGEST_DELAY,
            "reason": outcome.reason,
            "channel": outcome.delivery.channel,
            "recipient": str(outcome.delivery.recipient_id),
        },
    )
    return Counter(dict(cursor.fetchall()))


def _time_until_next(outcome: Outcome, lease: UUID) -> timedelta:
    after = min(outcome.after, LONGEST_DELAY)
    if outcome.end == "postponed":
        return after
    share = _share(lease, outcome.delivery.recipient_id)
    return max(after, delay(outcome.delivery.attempts + 1) * share)


def _share(lease: UUID, recipient: UUID) -> float:
    """Of the longest pause: what failed for one recipient comes back together, so that one attempt
    tells for all; what failed for several does not."""
    return random.Random(f"{lease} {recipient}").uniform(0.5, 1)


def delay(attempts: int) -> timedelta:
    """How long to wait at most after so many attempts; at least half of it."""
    seconds = FIRST_DELAY.total_seconds() * FACTOR ** (attempts - 1)
    return timedelta(seconds=min(seconds, LONGEST_DELAY.total_seconds()))


def waiting(settings: Settings) -> Waiting:
    """What is in the outbox; nothing where there is none yet."""
    schema = settings.publish_schema
    with existing(settings) as cursor:
        if cursor is None:
            return Waiting()
        cursor.execute(
            f"""
            select
                (select count(*) from "{schema}".outbox_messages where addressed_at is null)
                    + count(*) filter (where {_DUE}),
                count(*) filter (where not ({_DUE})),
                (
                    select count(*) from "{schema}".outbox_deliveries
                    where state = 'dead' and finished_at > now() - %s
                )
            from "{schema}".outbox_deliveries where state = 'waiting'
            """,
            (SHOWN_FOR,),
        )
        return Waiting(*(cursor.fetchone() or ()))


@dataclass(frozen=True)
class Listed:
    """A delivery as operators see it."""

    message_id: UUID
    event_type: str
    channel: str
    recipient_id: UUID
    state: State
    attempts: int
    due_at: datetime
    reason: str | None


def listed(settings: Settings, state: State | None, org: UUID | None, limit: int) -> list[Listed]:
    """The newest deliveries: of a state, else those that wait or are dead."""
    with existing(settings) as cursor:
        if cursor is None:
            return []
        cursor.execute(
            f"""
            select message_id, event_type, channel, recipient_id, state, attempts, due_at, reason
            from "{settings.publish_schema}".outbox_deliveries
            inner join "{settings.publish_schema}".outbox_messages using (message_id)
            where (state = %(state)s or %(state)s is null and state in ('waiting', 'dead'))
                and (org_id = %(org)s::uuid or %(org)s is null)
            order by created_at desc, message_id limit %(limit)s
            """,
            {"state": state, "org": _text(org), "limit": limit},
        )
        return _as_listed(cursor)


def _as_listed(cursor: Cursor) -> list[Listed]:
    return [
        Listed(UUID(message), event, channel, UUID(recipient), *further)
        for message, event, channel, recipient, *further in cursor.fetchall()
    ]


def listed_webhooks(settings: Settings, org: UUID, limit: int) -> list[Listed]:
    """The newest deliveries to an organisation's webhooks, of any state."""
    with existing(settings) as cursor:
        if cursor is None:
            return []
        cursor.execute(
            f"""
            select message_id, event_type, channel, recipient_id, state, attempts, due_at, reason
            from "{settings.publish_schema}".outbox_deliveries
            inner join "{settings.publish_schema}".outbox_messages using (message_id)
            where org_id = %s and channel = '{WEBHOOK}'
            order by created_at desc, message_id, recipient_id limit %s
            """,
            (str(org), limit),
        )
        return _as_listed(cursor)


def replay(
    settings: Settings, message: UUID | None, recipient: UUID | None, org: UUID | None = None
) -> int:
    """Let a message leave again, to those who get it by now; or, without one, all dead ones.

    Args:
        recipient: to this one only.
        org: only what is told to this organisation's webhooks.

    Returns:
        Deliveries that wait anew; 1 for a message without any.
    """
    schema = settings.publish_schema
    with opened(settings) as cursor:
        cursor.execute(
            f"""
            update "{schema}".outbox_deliveries
            set state = 'waiting', attempts = 0, due_at = now(), finished_at = null
            where (message_id = %(message)s::uuid or %(message)s is null and state = 'dead')
                and (recipient_id = %(recipient)s::uuid or %(recipient)s is null)
                and (leased_until is null or leased_until < now())
                and (
                    %(org)s is null or channel = '{WEBHOOK}' and message_id in (
                        select message_id from "{schema}".outbox_messages
                        where org_id = %(org)s::uuid
                    )
                )
            """,
            {"message": _text(message), "recipient": _text(recipient), "org": _text(org)},
        )
        again = int(cursor.rowcount)
        if message and not recipient:
            cursor.execute(
                f'update "{schema}".outbox_messages set addressed_at = null where message_id = %s',
                (str(message),),
            )
            again = max(again, int(cursor.rowcount))
        return again


def prune(settings: Settings, before: datetime) -> int:
    """Delete messages from before then that nobody waits for; gives how many."""
    with existing(settings) as cursor:
        if cursor is None:
            return 0
        cursor.execute(
            f"""
            delete from "{settings.publish_schema}".outbox_messages as messages
            where created_at < %s and addressed_at is not null and not exists (
                select from "{settings.publish_schema}".outbox_deliveries as deliveries
                where deliveries.message_id = messages.message_id and state = 'waiting'
            )
            """,
            (before,),
        )
        return int(cursor.rowcount)


def forget(cursor: Cursor, schema: str, user_id: UUID) -> None:
    """Delete what tells of a person, and what was or is to be told to them, in the caller's
    transaction."""
    if not _exists(cursor, schema):
        return
    person = f"%{user_id}%"
    cursor.execute(
        f'delete from "{schema}".outbox_messages where user_id = %s'
        " or key ilike %s or payload::text ilike %s",
        (str(user_id), person, person),
    )
    cursor.execute(
        f'delete from "{schema}".outbox_deliveries where recipient_id = %s', (str(user_id),)
    )
