"""Fills the source: the same shape gives the same rows, ids included. Runs in a worker.

Users are chosen by a power law, so that a few are a hundred times as busy as the median; each has
a home organisation or none, some work for themselves beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.shape import SMALL_DAY, TYPE_SHARES, TYPES, Shape
from bench.worker import Stopwatch
from usage_pipeline.app_db.sample.columns import (
    DAY,
    Columns,
    Numbers,
    copy_columns,
    instants,
    join,
    uuids,
)
from usage_pipeline.app_db.schema import create_schema
from usage_pipeline.infra.postgres import connect

SEED = 7
CHUNK_EVENTS = 250_000

# Chosen so that 5,000,000 events of 50,000 users have about 425,000 user-org-metric cells.
SKEW, FLATTENED_USERS = 0.9, 0.001
PERSONAL_USERS, TWO_PLACES, PERSONAL_SHARE = 0.1, 0.475, 0.25
GREATEST_QUANTITY = np.array([3, 2, 60, 5_000_000, 2, 8_000, 2])  # exclusive, by type
LIMIT_FACTORS = np.array([100, 50_000])  # of these, by plan: of a person, of an organisation
SOURCES = ["web", "mobile", "public-api", "scheduler", "webhook", "import of a spreadsheet file"]
PATHS = ["records", "files", "chat/completions", "automations/run", "me", "reports/monthly/pdf"]

ODDITY_EVERY = 100_000  # of so many events one is NaN, one too large, one of an unknown type


@dataclass(frozen=True)
class _People:
    users: pa.Array
    orgs: pa.Array
    cumulated_share: Numbers
    home: Numbers  # position in orgs, -1 for none
    two_places: Numbers


def generate(url: str, scale: float, history_days: int) -> dict[str, Any]:
    """Create and fill the application's tables in an empty database.

    Args:
        url: the database.
        scale: as in `Shape`.
        history_days: as in `Shape`.
    """
    shape = Shape(scale, history_days)
    create_schema(url)
    people = _people(shape)
    clock = Stopwatch()
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("set local time zone 'UTC'")
        _copy_accounts(cursor, people)
        # Loading first and indexing afterwards takes half the time.
        cursor.execute("alter table usage_events drop constraint usage_events_pkey")
        cursor.execute("drop index usage_events_created_at_idx")
        with ThreadPoolExecutor(1) as maker:
            chunks = _chunks(shape, people)
            coming = maker.submit(next, chunks, None)
            while (chunk := coming.result()) is not None:
                coming = maker.submit(next, chunks, None)
                copy_columns(cursor, "usage_events", chunk)
        cursor.execute("alter table usage_events add primary key (id)")
        cursor.execute("create index usage_events_created_at_idx on usage_events (created_at)")
    return clock.spent()


def generate_cells(url: str, scale: float, day: str) -> None:
    """Add a day on which every event is the only one of its user, organisation and metric.

    Args:
        url: the database; its tables are created when absent.
        scale: as in `Shape`.
        day: that has no events yet.
    """
    shape = Shape(scale)
    create_schema(url)
    first = date.fromisoformat(day)
    rng = np.random.default_rng([SEED, first.toordinal()])
    events = shape.published_rows
    users, orgs = uuids(rng, -(-events // len(TYPES))), uuids(rng, shape.orgs)
    rows = rng.permutation(events)
    at = (np.arange(events) * DAY // events).astype(np.int64)
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("set local time zone 'UTC'")
        columns = {
            "id": uuids(rng, events),
            "user_id": users.take(pa.array(rows // len(TYPES))),
            "org_id": orgs.take(pa.array(rows // len(TYPES) % shape.orgs)),
            "event_type": pa.array(TYPES).take(pa.array(rows % len(TYPES))),
            "quantity": join(pa.array(1 + rows % 1000), ".125"),
            "created_at": instants(_midnight(first) + at),
        }
        copy_columns(cursor, "usage_events", columns)


def raise_quantities(url: str, day: str) -> None:
    """Every event of a day counts for one more."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update usage_events set quantity = quantity + 1 "
            f"where created_at >= '{day} 00:00+00' and created_at < '{day} 24:00+00'"
        )


def _people(shape: Shape) -> _People:
    rng = np.random.default_rng(SEED)
    users, orgs = shape.users, shape.orgs
    weights = (np.arange(users) + max(1.0, users * FLATTENED_USERS)) ** -SKEW
    home = rng.integers(0, orgs, users)
    home[rng.random(users) < PERSONAL_USERS] = -1
    return _People(
        uuids(rng, users),
        uuids(rng, orgs),
        np.cumsum(weights) / weights.sum(),
        home,
        rng.random(users) < TWO_PLACES,
    )


def _copy_accounts(cursor: Any, people: _People) -> None:
    """Accounts that existed before the first event; every organisation pays for a plan, and some
    of them and of the people who work for themselves come to its limits."""
    users, orgs = len(people.users), len(people.orgs)
    since = instants(np.full(max(users, orgs), _midnight(date(2024, 1, 1))))
    member = np.flatnonzero(people.home >= 0)
    copy_columns(cursor, "users", {"id": people.users, "created_at": since.slice(0, users)})
    copy_columns(
        cursor,
        "orgs",
        {
            "id": people.orgs,
            "name": join("Org ", pa.array(np.arange(orgs))),
            "created_at": since.slice(0, orgs),
        },
    )
    copy_columns(
        cursor,
        "org_members",
        {
            "org_id": people.orgs.take(pa.array(people.home[member])),
            "user_id": people.users.take(pa.array(member)),
            "role": pa.array(["member"] * len(member)),
            "created_at": since.slice(0, len(member)),
        },
    )
    copy_columns(
        cursor,
        "subscriptions",
        {
            "id": people.orgs,
            "org_id": people.orgs,
            "plan": pa.array(["team"] * orgs),
            "status": pa.array(["active"] * orgs),
            "created_at": since.slice(0, orgs),
        },
    )
    plans, types = ("free", "team"), len(TYPES)
    copy_columns(
        cursor,
        "plan_limits",
        {
            "plan": pa.array(np.repeat(plans, types)),
            "metric_type": pa.array(TYPES * len(plans)),
            "limit_quantity": pa.array(np.outer(LIMIT_FACTORS, GREATEST_QUANTITY).ravel()),
        },
    )


def _chunks(shape: Shape, people: _People) -> Iterator[Columns]:
    """All events in order of time, as in a table that an application appends to."""
    for day, events in shape.days():
        rng = np.random.default_rng([SEED, day.toordinal()])
        ids = np.random.default_rng([SEED, day.toordinal(), 1])
        for first in range(0, events, CHUNK_EVENTS):
            rows = np.arange(first, min(first + CHUNK_EVENTS, events))
            at = np.sort((rows + rng.random(len(rows))) * DAY / events).astype(np.int64)
            yield _events(rng, ids, people, rows, _midnight(day) + at, odd=day != SMALL_DAY)


def _events(
    rng: np.random.Generator,
    ids: np.random.Generator,
    people: _People,
    rows: Numbers,
    at: Numbers,
    *,
    odd: bool,
) -> Columns:
    count = len(rows)
    user = np.searchsorted(people.cumulated_share, rng.random(count), "right")
    user = np.minimum(user, len(people.users) - 1)
    org = people.home[user]
    personal = (org < 0) | (people.two_places[user] & (rng.random(count) < PERSONAL_SHARE))
    shares = np.cumsum(list(TYPE_SHARES.values()))
    kind = np.minimum(np.searchsorted(shares, rng.random(count), "right"), len(TYPES) - 1)
    event_type = pa.array(TYPES).take(pa.array(kind))
    quantity = _quantities(rng, kind)
    if odd:
        oddity = pa.array(np.minimum((rows - 10) % ODDITY_EVERY, 3).astype(np.int8))
        quantity = pc.choose(oddity, "NaN", "9" * 30, quantity, quantity)
        event_type = pc.choose(oddity, event_type, event_type, "legacy_sync", event_type)
    data = join(
        '{"ms": ',
        pa.array(rng.integers(1, 5_000, count)),
        ', "path": "/v1/',
        pa.array(PATHS).take(pa.array(rng.integers(0, len(PATHS), count))),
        '", "source": "',
        pa.array(SOURCES).take(pa.array(rng.integers(0, len(SOURCES), count))),
        '", "request": "',
        pc.utf8_slice_codeunits(uuids(rng, count), 0, 16),
        '"}',
    )
    return {
        "id": uuids(ids, count),
        "user_id": people.users.take(pa.array(user)),
        "org_id": people.orgs.take(pa.array(org, mask=personal)),
        "event_type": event_type,
        "event_data": data,
        "quantity": quantity,
        "created_at": instants(at),
    }


def _quantities(rng: np.random.Generator, kind: Numbers) -> pa.Array:
    """Whole numbers, but tokens with nine digits after the point; one in a thousand is -1."""
    whole = 1 + (rng.random(len(kind)) * (GREATEST_QUANTITY[kind] - 1)).astype(np.int64)
    digits = pa.array(1_000_000_000 + rng.integers(0, 1_000_000_000, len(kind)))
    fraction = pc.utf8_slice_codeunits(digits.cast(pa.string()), 1)
    text = pa.array(whole).cast(pa.string())
    text = pc.if_else(
        pa.array(kind == TYPES.index("ai_tokens_used")), join(text, ".", fraction), text
    )
    return pc.if_else(pa.array(rng.random(len(kind)) < 0.001), "-1", text)


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000
