"""Synthetic history of a SaaS application, for demos, tests and benchmarks.

Here belongs everything that `usage-pipeline app-db load-sample` invents: who signs up, what they
do and when. The pipeline proper never imports this module.

The period is cut into slots of ten minutes. A multinomial draw spreads the events over slots and
time zones, so their number is exact; each event then picks a user who lives through its slot.
Everything is drawn in vectors and streamed to Postgres in chunks, so memory does not grow with
the number of events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.app_db.connection import connect
from usage_pipeline.errors import UsagePipelineError

Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]
JsonFields: TypeAlias = Mapping[str, "pa.Array | JsonFields"]

CHUNK_EVENTS = 100_000
SECOND = 1_000_000  # instants are microseconds since 1970, as in Postgres and Arrow
DAY = 86_400 * SECOND
SLOT = 600 * SECOND

EVENT_TYPES = (
    "record_created",
    "api_call",
    "automation_run",
    "storage_used",
    "schedule_executed",
    "ai_tokens_used",
    "user_active",
)
# What kinds of users do, in the order of EVENT_TYPES: office workers, integrators, AI users.
TYPE_SHARES = np.array(
    [
        [0.30, 0.10, 0.08, 0.08, 0.04, 0.10, 0.30],
        [0.08, 0.55, 0.15, 0.04, 0.12, 0.02, 0.04],
        [0.12, 0.12, 0.08, 0.05, 0.03, 0.40, 0.20],
    ]
)
KIND_SHARES = (0.60, 0.25, 0.15)
MEAN_QUANTITY = np.array([1.6, 1, 13, 700_000, 1, 1_500, 1])

ZONE_SHARES = {
    "America/New_York": 0.30,
    "America/Los_Angeles": 0.15,
    "Europe/London": 0.15,
    "Europe/Berlin": 0.20,
    "Asia/Kolkata": 0.10,
    "Asia/Tokyo": 0.05,
    "Australia/Sydney": 0.05,
}
HOUR_WEIGHTS = np.array(
    [1, 1, 1, 1, 1, 2, 4, 10, 22, 30, 32, 30, 22, 26, 31, 30, 26, 18, 10, 7, 6, 5, 3, 2]
)
WEEKDAY_WEIGHTS = np.array([1.0, 1.05, 1.05, 1.0, 0.9, 0.3, 0.25])  # Monday first

PLANS = ("free", "pro", "team", "enterprise")
# Limits in mean monthly use of one user: heavy users of each plan cross them. None: unlimited.
LIMIT_FACTORS = {"free": 1, "pro": 4, "team": 20, "enterprise": None}

BROKEN_KINDS = ("NaN", "too many digits", "unknown type")
CORRECTION = len(BROKEN_KINDS) + 1  # defect codes: 0 none, 1 to 3 broken, 4 correction


@dataclass(frozen=True)
class SampleReport:
    """What was loaded. `last_day` is inclusive; the counts of oddities are of events."""

    events: int
    users: int
    orgs: int
    first_day: date
    last_day: date
    seconds: float
    broken: int
    late: int
    corrected: int


@dataclass(frozen=True)
class _Users:
    """Ordered by time zone, then sign-up. `ended` is `end` for those who stay."""

    ids: pa.Array
    zone: Numbers
    created: Numbers
    ended: Numbers
    deleted: Numbers
    activity: Numbers
    kind: Numbers


@dataclass(frozen=True)
class _Orgs:
    """`places[user]` is personal use (-1), the main org and a second one (-1 if none)."""

    ids: pa.Array
    created: Numbers
    ended: Numbers
    deleted: Numbers
    owner: Numbers
    places: Numbers
    joined: Numbers


def load_sample(
    url: str,
    *,
    events: int,
    days: int,
    users: int,
    seed: int,
    end: date | None,
    zone: ZoneInfo,
    progress: Callable[[int], None] | None = None,
) -> SampleReport:
    """Fill the application's empty tables; the same arguments give the same rows, ids included.

    Args:
        url: the application database; its tables exist (`usage-pipeline app-db init`).
        events: exactly this many rows of `usage_events`.
        days: how many local days the events cover.
        users: rows of `users`; there is one org for about eight.
        seed: of all random draws.
        end: the first day without events; None is today in `zone`.
        zone: defines the days.
        progress: called with the number of events loaded so far.

    Raises:
        UsagePipelineError: an argument is out of range, `users` or `usage_events` hold rows,
            or the database fails. Nothing is written then.
    """
    started = time.monotonic()
    today = datetime.now(zone).date()
    end = end or today
    _check_arguments(events, days, users, seed, end, today)
    first_day = end - timedelta(days=days)
    begin, stop = _instant(first_day, zone), _instant(end, zone)

    rng = np.random.default_rng(seed)
    people = _invent_users(rng, users, begin, stop)
    orgs = _invent_orgs(rng, people, stop)
    defects, late = _choose_oddities(rng, events)
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("set local time zone 'UTC'")  # of the instants below
        _refuse_when_filled(cursor)
        _load_accounts(cursor, rng, people, orgs, stop, events / users / days * 30)
        # Building the index once is cheaper than keeping it up; the primary key stays.
        cursor.execute("drop index if exists usage_events_created_at_idx")
        loaded = 0
        for chunk in _invent_events(rng, people, orgs, begin, stop, defects, late):
            _copy(cursor, "usage_events", chunk)
            loaded += len(chunk["id"])
            if progress:
                progress(loaded)
        cursor.execute("create index usage_events_created_at_idx on usage_events (created_at)")
        cursor.execute("analyze users, orgs, org_members, subscriptions, usage_events")
    return SampleReport(
        events=events,
        users=users,
        orgs=len(orgs.ids),
        first_day=first_day,
        last_day=end - timedelta(days=1),
        seconds=time.monotonic() - started,
        broken=int(np.count_nonzero((defects > 0) & (defects < CORRECTION))),
        late=int(np.count_nonzero(late)),
        corrected=int(np.count_nonzero(defects == CORRECTION)),
    )


def _check_arguments(events: int, days: int, users: int, seed: int, end: date, today: date) -> None:
    for name, value, least in (
        ("events", events, 1),
        ("days", days, 1),
        ("users", users, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UsagePipelineError(
                f"The sample's {name} is {value}", f"Give a whole number from {least} up"
            )
    if end > today:
        raise UsagePipelineError(
            f"The sample's end {end} lies in the future", f"Give {today} or an earlier day"
        )


def _instant(day: date, zone: ZoneInfo) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return int(midnight.timestamp()) * SECOND


def _refuse_when_filled(cursor: Cursor) -> None:
    # The lock makes a second load wait, and then see the rows of the first.
    cursor.execute("lock table users, usage_events in share row exclusive mode")
    for table in ("users", "usage_events"):
        cursor.execute(f"select exists (select from {table})")
        if cursor.fetchone() == (True,):
            raise UsagePipelineError(
                f"Table {table} already holds rows, and a sample never adds to them",
                "Load the sample into an empty database, or delete the rows first",
            )


# --- users, orgs and what they pay --------------------------------------------------------------


def _invent_users(rng: np.random.Generator, count: int, begin: int, stop: int) -> _Users:
    """Two in five sign up before the period, the others within it, more and more of them."""
    zone = rng.choice(len(ZONE_SHARES), count, p=list(ZONE_SHARES.values()))
    before = rng.random(count) < 0.4
    before[0] = True
    created = np.where(
        before,
        begin - rng.random(count) * 180 * DAY,
        begin + np.sqrt(rng.random(count)) * (stop - begin),
    ).astype(np.int64)
    created = np.minimum(created, stop - 1)
    # A quarter only tries the product. Nobody leaves within a day: see _Crowd.
    life = DAY + rng.exponential(np.where(rng.random(count) < 0.25, 12 * DAY, 900 * DAY))
    life[0] = np.inf  # every slot has a user
    ended = np.minimum(created + life, stop).astype(np.int64)
    deleted = (ended < stop) & (rng.random(count) < 0.5)  # the others just fall silent
    activity = np.ceil(100 * rng.lognormal(0, 1.3, count)).astype(np.int64)
    kind = rng.choice(len(KIND_SHARES), count, p=KIND_SHARES)
    order = np.lexsort((created, zone))
    return _Users(
        _uuids(rng, count),
        *(column[order] for column in (zone, created, ended, deleted, activity, kind)),
    )


def _invent_orgs(rng: np.random.Generator, people: _Users, stop: int) -> _Orgs:
    """Orgs of skewed size, founded by their owner; three in four users work in one."""
    users = len(people.ids)
    count = max(1, users // 8)
    owner = rng.permutation(users)[:count]
    created = people.created[owner] + rng.integers(0, DAY, count)
    created = np.minimum(created, stop - 1)
    deleted = people.deleted[owner] & (rng.random(count) < 0.5)
    ended = np.where(deleted, people.ended[owner], stop)

    popularity = 1 / np.arange(1, count + 1) ** 0.8
    popularity /= popularity.sum()
    places = np.full((users, 3), -1)
    for place, share in ((1, 0.75), (2, 0.12)):
        places[:, place] = rng.choice(count, users, p=popularity)
        places[rng.random(users) >= share, place] = -1
    places[owner, 1] = np.arange(count)
    places[places[:, 2] == places[:, 1], 2] = -1
    joined = np.maximum(people.created[:, None], created[places])
    joined = joined + rng.integers(0, 3 * DAY, joined.shape)
    joined[owner, 1] = created
    # Who would join after the org's, the user's or the sample's end never joins.
    gone = joined >= np.minimum(ended[places], people.ended[:, None])
    gone[owner, 1] = False
    places[gone] = -1
    places[:, 0] = -1
    return _Orgs(_uuids(rng, count), created, ended, deleted, owner, places, joined)


def _load_accounts(
    cursor: Cursor,
    rng: np.random.Generator,
    people: _Users,
    orgs: _Orgs,
    stop: int,
    monthly_events: float,
) -> None:
    """Load every table but the events. `monthly_events` is the mean of one user."""
    _copy(
        cursor,
        "users",
        {
            "id": people.ids,
            "email": _join("user", pa.array(np.arange(len(people.ids))), "@example.com"),
            "created_at": _instants(people.created),
            "deleted_at": _instants(people.ended, people.deleted),
        },
    )
    _copy(
        cursor,
        "orgs",
        {
            "id": orgs.ids,
            "name": _join("Example org ", pa.array(np.arange(len(orgs.ids)))),
            "created_at": _instants(orgs.created),
            "deleted_at": _instants(orgs.ended, orgs.deleted),
        },
    )
    member, place = np.nonzero(orgs.places >= 0)
    org = orgs.places[member, place]
    role = np.where(rng.random(len(member)) < 0.1, "admin", "member")
    role[(place == 1) & (orgs.owner[org] == member)] = "owner"
    _copy(
        cursor,
        "org_members",
        {
            "org_id": orgs.ids.take(pa.array(org)),
            "user_id": people.ids.take(pa.array(member)),
            "role": pa.array(role),
            "created_at": _instants(orgs.joined[member, place]),
        },
    )
    _copy(cursor, "subscriptions", _invent_subscriptions(rng, people, orgs, stop))
    _copy(cursor, "plan_limits", _plan_limits(monthly_events))
    hooked = pa.array(np.flatnonzero(rng.random(len(orgs.ids)) < 0.15))
    ids = orgs.ids.take(hooked)
    _copy(
        cursor,
        "org_webhooks",
        {
            "id": _uuids(rng, len(ids)),
            "org_id": ids,
            "url": _join("https://hooks.example.com/", ids),
            "secret": _uuids(rng, len(ids)),
            "enabled": pa.array(rng.random(len(ids)) < 0.9),
            "created_at": _instants(orgs.created[hooked]),
        },
    )


def _invent_subscriptions(
    rng: np.random.Generator, people: _Users, orgs: _Orgs, stop: int
) -> dict[str, pa.Array]:
    """One per org and per user without org; a quarter is replaced by the next plan up."""
    loners = np.flatnonzero((orgs.places < 0).all(axis=1))
    user = np.concatenate([loners, np.full(len(orgs.ids), -1)])
    org = np.concatenate([np.full(len(loners), -1), np.arange(len(orgs.ids))])
    created = np.concatenate([people.created[loners], orgs.created])
    ended = np.concatenate([people.ended[loners], orgs.ended])
    level = np.concatenate(
        [
            rng.choice(2, len(loners), p=(0.8, 0.2)),
            rng.choice(4, len(orgs.ids), p=(0.35, 0.3, 0.3, 0.05)),
        ]
    )
    switch = created + DAY + rng.exponential(90 * DAY, len(created)).astype(np.int64)
    upgraded = (rng.random(len(created)) < 0.25) & (switch < ended) & (level < len(PLANS) - 1)
    canceled = np.where(upgraded, switch, ended)

    user, org = np.append(user, user[upgraded]), np.append(org, org[upgraded])
    level = np.append(level, level[upgraded] + 1)
    created = np.append(created, switch[upgraded])
    canceled = np.append(canceled, ended[upgraded])
    status = np.select(
        [
            canceled < stop,
            level == 0,
            created > stop - 14 * DAY,
            rng.random(len(level)) < 0.04,
        ],
        ["canceled", "active", "trialing", "past_due"],
        "active",
    )
    return {
        "id": _uuids(rng, len(user)),
        "user_id": people.ids.take(pa.array(user, mask=user < 0)),
        "org_id": orgs.ids.take(pa.array(org, mask=org < 0)),
        "plan": pa.array(np.array(PLANS)[level]),
        "status": pa.array(status),
        "created_at": _instants(created),
        "canceled_at": _instants(canceled, canceled < stop),
    }


def _plan_limits(monthly_events: float) -> dict[str, pa.Array]:
    use = monthly_events * np.array(KIND_SHARES) @ TYPE_SHARES * MEAN_QUANTITY
    limits = [
        None if factor is None else max(1, int(float(f"{factor * mean:.1g}")))
        for factor in LIMIT_FACTORS.values()
        for mean in use
    ]
    return {
        "plan": pa.array(np.repeat(PLANS, len(EVENT_TYPES))),
        "metric_type": pa.array(EVENT_TYPES * len(PLANS)),
        "limit_quantity": pa.array(limits, pa.int64()),
    }


# --- events ---------------------------------------------------------------------------------------


def _choose_oddities(rng: np.random.Generator, events: int) -> tuple[Numbers, Numbers]:
    """Per event its defect code, and whether it was recorded late."""
    broken = max(len(BROKEN_KINDS), events // 20_000) if events >= 1_000 else 0
    corrected = events // 5_000
    defects = np.zeros(events, np.int8)
    odd = rng.choice(events, broken + corrected, replace=False)
    defects[odd] = CORRECTION
    defects[odd[:broken]] = 1 + np.arange(broken) % len(BROKEN_KINDS)
    return defects, rng.random(events, np.float32) < 0.005


class _Crowd:
    """Who can act in a slot: users signed up at its start who have not ended at its end.

    Activities are whole numbers and their sums exact, so a slot without users weighs nothing.
    Nobody leaves within a slot of signing up, so whoever has ended has also signed up.
    """

    def __init__(self, people: _Users, starts: Numbers, stops: Numbers) -> None:
        self._people = people
        self._stops = stops
        self._sums = np.append(0, np.cumsum(people.activity))
        shape = (len(starts), len(ZONE_SHARES))
        self._low, self._high = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.alive = np.zeros(shape, np.int64)
        for zone in range(len(ZONE_SHARES)):
            first, last = np.searchsorted(people.zone, [zone, zone + 1])
            signed_up = first + np.searchsorted(people.created[first:last], starts, "right")
            by_end = first + np.argsort(people.ended[first:last])
            gone_sums = np.append(0, np.cumsum(people.activity[by_end]))
            gone = gone_sums[np.searchsorted(people.ended[by_end], stops)]
            self._low[:, zone], self._high[:, zone] = self._sums[first], self._sums[signed_up]
            self.alive[:, zone] = self._high[:, zone] - self._low[:, zone] - gone

    def draw(self, rng: np.random.Generator, slot: Numbers, zone: Numbers) -> Numbers:
        """A user for each event, in proportion to activity; redrawn while it has ended."""
        user = np.empty(len(slot), np.int64)
        open_ = np.arange(len(slot))
        while len(open_):
            low, high = self._low[slot[open_], zone[open_]], self._high[slot[open_], zone[open_]]
            ticket = low + (rng.random(len(open_)) * (high - low)).astype(np.int64)
            user[open_] = np.searchsorted(self._sums, ticket, "right") - 1
            open_ = open_[self._people.ended[user[open_]] < self._stops[slot[open_]]]
        return user


def _invent_events(
    rng: np.random.Generator,
    people: _Users,
    orgs: _Orgs,
    begin: int,
    stop: int,
    defects: Numbers,
    late: Numbers,
) -> Iterator[dict[str, pa.Array]]:
    """Chunks of `usage_events`, in order of time but for events of one slot."""
    starts = np.arange(begin, stop, SLOT)
    stops = np.append(starts[1:], stop)
    crowd = _Crowd(people, starts, stops)
    weights = (crowd.alive * _rhythm(starts)).ravel()
    per_cell = np.cumsum(rng.multinomial(len(defects), weights / weights.sum()))
    shares = np.cumsum(TYPE_SHARES, axis=1)
    for first in range(0, len(defects), CHUNK_EVENTS):
        rows = np.arange(first, min(first + CHUNK_EVENTS, len(defects)))
        slot, zone = np.divmod(np.searchsorted(per_cell, rows, "right"), len(ZONE_SHARES))
        user = crowd.draw(rng, slot, zone)
        at = starts[slot] + (rng.random(len(rows)) * (stops - starts)[slot]).astype(np.int64)
        order = np.argsort(at)
        user, at = user[order], at[order]

        place = np.searchsorted([0.35, 0.92], rng.random(len(rows)))
        org = orgs.places[user, place]
        personal = (org < 0) | (at < orgs.joined[user, place]) | (at >= orgs.ended[org])
        chance = rng.random(len(rows))
        event_type = (chance[:, None] > shares[people.kind[user], :-1]).sum(axis=1)
        quantity, data = _details(rng, event_type, late[rows])
        defect = pa.array(defects[rows])
        negative = _join("-", quantity)
        names = pa.array(EVENT_TYPES).take(pa.array(event_type))
        yield {
            "id": _uuids(rng, len(rows)),
            "user_id": people.ids.take(pa.array(user)),
            "org_id": orgs.ids.take(pa.array(org, mask=personal)),
            "event_type": pc.choose(defect, names, names, names, "legacy_sync", names),
            "event_data": data,
            "quantity": pc.choose(defect, quantity, "NaN", "9" * 32, quantity, negative),
            "created_at": _instants(at),
        }


def _rhythm(starts: Numbers) -> Numbers:
    """Weight of each slot (rows) in each zone (columns): local working hours and weekdays."""
    utc = pd.DatetimeIndex(starts.astype("M8[us]"), tz="UTC")
    local = [utc.tz_convert(zone) for zone in ZONE_SHARES]
    return np.stack([HOUR_WEIGHTS[t.hour] * WEEKDAY_WEIGHTS[t.dayofweek] for t in local], axis=1)


def _details(
    rng: np.random.Generator, event_type: Numbers, late: Numbers
) -> tuple[pa.Array, pa.Array]:
    """Quantity and event_data of each event, as text."""
    quantities, data = [], []
    for index, name in enumerate(EVENT_TYPES):
        is_late = pa.array(late[event_type == index])
        quantity, fields = _details_of(name, _Draw(rng, len(is_late)))
        lag = _join(
            ', "recorded_lag_s": ', pa.array(rng.integers(3_600, 300_000, len(is_late))), "}"
        )
        quantities.append(quantity)
        data.append(_join(*_json_parts(fields), pc.if_else(is_late, lag, "}")))
    # The columns are grouped by type now; this puts them back in the order of the events.
    back = pa.array(np.argsort(np.argsort(event_type, kind="stable"), kind="stable"))
    return pa.concat_arrays(quantities).take(back), pa.concat_arrays(data).take(back)


class _Draw:
    """Columns of random values, `count` long."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self._rng = rng
        self._count = count

    def pick(self, *values: str | int) -> pa.Array:
        """One of the values, the earlier ones more often."""
        index = (self._rng.random(self._count) ** 2 * len(values)).astype(np.int64)
        return pa.array(values).take(pa.array(index))

    def whole(self, low: int, high: int) -> pa.Array:
        return pa.array(self._rng.integers(low, high, self._count))

    def skewed(self, median: float) -> Numbers:
        return self._rng.lognormal(np.log(median), 1, self._count)


def _details_of(event_type: str, draw: _Draw) -> tuple[pa.Array, JsonFields]:
    """Quantity as text, and the fields of event_data, of events of one type."""
    quantity: pa.Array = draw.pick(1)
    fields: JsonFields
    match event_type:
        case "record_created":
            quantity = draw.pick(1, 1, 1, 2, 5)
            fields = {
                "object": draw.pick("contact", "invoice", "task", "document"),
                "source": draw.pick("web", "api", "import"),
                "fields": draw.whole(3, 40),
            }
        case "api_call":
            fields = {
                "path": draw.pick("/v1/records", "/v1/search", "/v1/files", "/v1/reports/run"),
                "method": draw.pick("GET", "POST", "PATCH"),
                "status": draw.pick(200, 200, 200, 201, 404, 429, 500),
                "ms": draw.whole(4, 900),
            }
        case "automation_run":
            # Compute seconds, to the nanosecond.
            quantity = pa.array(draw.skewed(8)).cast(pa.decimal128(38, 9), safe=False)
            fields = {
                "automation": _join("auto-", draw.whole(1_000, 9_999)),
                "trigger": draw.pick("webhook", "record", "manual"),
                "status": draw.pick("ok", "ok", "ok", "failed"),
                "steps": draw.whole(1, 20),
            }
        case "storage_used":
            quantity = pa.array(draw.skewed(400_000).astype(np.int64))
            fields = {
                "bucket": draw.pick("attachments", "exports", "backups"),
                "region": draw.pick("eu-west-1", "us-east-1", "ap-south-1"),
                "objects": draw.whole(1, 50),
            }
        case "schedule_executed":
            fields = {
                "schedule": _join("sched-", draw.whole(100, 999)),
                "cron": draw.pick("0 6 * * *", "*/15 * * * *", "0 9 * * 1"),
                "status": draw.pick("ok", "ok", "ok", "skipped"),
                "delay_ms": draw.whole(1, 3_000),
            }
        case "ai_tokens_used":
            # A refused request uses nothing: zero quantities are valid.
            refused = draw.skewed(1) > 10
            quantity = pa.array(np.where(refused, 0, draw.skewed(900)).astype(np.int64))
            fields = {
                "model": draw.pick("gpt-4o", "gpt-4o-mini", "gpt-4", "claude-sonnet", "mistral"),
                "feature": draw.pick("chat", "summary", "autofill"),
                "usage": {"total": quantity},
            }
        case _:
            fields = {
                "client": draw.pick("web", "ios", "android", "desktop"),
                "version": _join("4.", draw.whole(0, 30), ".", draw.whole(0, 10)),
                "session_s": draw.whole(5, 7_200),
            }
    return quantity.cast(pa.string()), fields


def _json_parts(fields: JsonFields) -> Iterator[pa.Array | str]:
    """What `_join` makes JSON objects of, but for the closing brace."""
    before = "{"
    for key, value in fields.items():
        yield f'{before}"{key}": '
        if isinstance(value, Mapping):
            yield from _json_parts(value)
            yield "}"
        elif value.type == pa.string():
            yield from ('"', value, '"')
        else:
            yield value
        before = ", "


# --- columns and COPY -----------------------------------------------------------------------------


def _join(*parts: pa.Array | str) -> pa.Array:
    """The parts of each row, one after the other."""
    texts = [part if isinstance(part, str) else part.cast(pa.string()) for part in parts]
    return pc.binary_join_element_wise(*texts, "")


def _uuids(rng: np.random.Generator, count: int) -> pa.Array:
    """Version 4 UUIDs as 32 hexadecimal digits, which Postgres reads without hyphens."""
    octets = rng.integers(0, 256, (count, 16), np.uint8)
    octets[:, 6] = octets[:, 6] & 0x0F | 0x40
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(octets.tobytes().hex().encode(), "S32")
    return pa.array(digits).cast(pa.string())


def _instants(microseconds: Numbers, valid: Numbers | None = None) -> pa.Array:
    mask = None if valid is None else ~valid
    return pa.array(microseconds, mask=mask).cast(pa.timestamp("us"))


def _copy(cursor: Cursor, table: str, columns: Mapping[str, pa.Array]) -> None:
    """COPY the columns into a table.

    The lines are joined by Arrow, so that the buffer below the column of lines is the very text
    that Postgres expects; measured three times faster than writing CSV. No value that is made
    here holds a tab, line end or backslash.
    """
    texts = [column.cast(pa.string()) for column in columns.values()]
    lines = pc.binary_join_element_wise(
        *texts, "\t", null_handling="replace", null_replacement="\\N"
    )
    text = _join(lines, "\n").buffers()[2]
    cursor.copy_expert(
        f"copy {table} ({', '.join(columns)}) from stdin", pa.BufferReader(text), 1 << 20
    )
