"""What the sample's users do and when. No tables but `usage_events`, and no database.

The period is cut into slots of ten minutes. One multinomial draw spreads the events over slots
and time zones, so their number is exact; each event then picks a user who lives through its
slot. All of it is vectors, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from usage_pipeline.app_db.sample.accounts import (
    KIND_SHARES,
    ZONE_SHARES,
    Demand,
    Orgs,
    Users,
)
from usage_pipeline.app_db.sample.columns import (
    DAY,
    SECOND,
    Columns,
    Numbers,
    instants,
    join,
    uuids,
)

JsonFields: TypeAlias = Mapping[str, "pa.Array | JsonFields"]

CHUNK_EVENTS = 100_000
SLOT = 600 * SECOND

# Per event type its share in what each kind of user does (KIND_SHARES), and its mean quantity.
TYPE_SHARES = {
    "record_created": (0.30, 0.08, 0.12),
    "api_call": (0.10, 0.55, 0.12),
    "automation_run": (0.08, 0.15, 0.08),
    "storage_used": (0.08, 0.04, 0.05),
    "schedule_executed": (0.04, 0.12, 0.03),
    "ai_tokens_used": (0.10, 0.02, 0.40),
    "user_active": (0.30, 0.04, 0.20),
}
PLACE_BOUNDS = (0.35, 0.92)  # where the shares of the places in Orgs end
MEAN_QUANTITIES = (1.5, 1, 13, 660_000, 1, 1_500, 1)
EVENT_TYPES = tuple(TYPE_SHARES)

HOUR_WEIGHTS = np.array(
    [1, 1, 1, 1, 1, 2, 4, 10, 22, 30, 32, 30, 22, 26, 31, 30, 26, 18, 10, 7, 6, 5, 3, 2]
)
WEEKDAY_WEIGHTS = np.array([1.0, 1.05, 1.05, 1.0, 0.9, 0.3, 0.25])  # Monday first

BROKEN_KINDS = ("NaN", "more than 29 integer digits", "unknown type")
CORRECTION = len(BROKEN_KINDS) + 1


@dataclass(frozen=True)
class Oddities:
    """Per event what is wrong with it, and whether it was recorded long after it happened.

    A defect is 0 (none), the position in BROKEN_KINDS from 1, or CORRECTION.
    """

    defects: Numbers
    late: Numbers


def choose_oddities(rng: np.random.Generator, events: int) -> Oddities:
    """One broken event in 20,000 (but each kind once in 1,000), one correction in 5,000."""
    broken = max(len(BROKEN_KINDS), events // 20_000) if events >= 1_000 else 0
    odd = rng.choice(events, broken + events // 5_000, replace=False)
    defects = np.zeros(events, np.int8)
    defects[odd] = CORRECTION
    defects[odd[:broken]] = 1 + np.arange(broken) % len(BROKEN_KINDS)
    return Oddities(defects, rng.random(events, np.float32) < 0.005)


def expected_use(users: Users, orgs: Orgs, period: tuple[int, int], events: int) -> Demand:
    """What they are to use in a month, by activity, kind and places.

    Args:
        users: who act.
        orgs: where they act.
        period: `[begin, end)` as instants.
        events: how many there are to be.
    """
    begin, end = period
    by_kind = np.array(list(TYPE_SHARES.values())).T
    shares = KIND_SHARES @ by_kind
    a_month = events / len(users.ids) * 30 * DAY / (end - begin)
    monthly_use = dict(zip(EVENT_TYPES, a_month * shares * MEAN_QUANTITIES, strict=True))

    lived = np.clip(users.ended, begin, end) - np.clip(users.created, begin, end)
    usual = (users.activity * (lived / (end - begin))).mean()
    times = (users.activity / usual)[:, None] * (by_kind / shares)[users.kind]
    at_place = np.where(orgs.places < 0, 0, np.diff((0, *PLACE_BOUNDS, 1)))
    of_orgs = np.zeros((len(orgs.ids), len(EVENT_TYPES)))
    for place in (1, 2):
        member = np.flatnonzero(orgs.places[:, place] >= 0)
        share = at_place[member, place][:, None]
        np.add.at(of_orgs, orgs.places[member, place], times[member] * share)
    personal = 1 - at_place.sum(axis=1, keepdims=True)
    return Demand(monthly_use, (times * personal).max(axis=1), of_orgs.max(axis=1))


def invent_events(
    rng: np.random.Generator,
    users: Users,
    orgs: Orgs,
    period: tuple[int, int],
    oddities: Oddities,
) -> Iterator[Columns]:
    """Chunks of `usage_events`, in order of time but within a slot that two chunks share.

    Args:
        rng: source of all draws.
        users: who act, each between sign-up and end.
        orgs: where they act.
        period: `[begin, end)` as instants.
        oddities: one entry per event; their length is the number of events.
    """
    begin, end = period
    starts = np.arange(begin, end, SLOT)
    stops = np.append(starts[1:], end)
    crowd = _Crowd(users, starts, stops)
    weights = (crowd.alive * _rhythm(starts)).ravel()
    total = len(oddities.defects)
    filled = np.cumsum(rng.multinomial(total, weights / weights.sum()))
    type_bounds = np.cumsum(np.array(list(TYPE_SHARES.values())), axis=0).T[:, :-1]
    for first in range(0, total, CHUNK_EVENTS):
        rows = np.arange(first, min(first + CHUNK_EVENTS, total))
        slot, zone = np.divmod(np.searchsorted(filled, rows, "right"), len(ZONE_SHARES))
        user = crowd.draw(rng, slot, zone)
        at = starts[slot] + (rng.random(len(rows)) * (stops - starts)[slot]).astype(np.int64)
        order = np.argsort(at)
        user, at = user[order], at[order]

        place = np.searchsorted(PLACE_BOUNDS, rng.random(len(rows)))
        org = orgs.places[user, place]
        personal = (org < 0) | (at < orgs.joined[user, place]) | (at >= orgs.ended[org])
        chance = rng.random((len(rows), 1))
        event_type = (chance > type_bounds[users.kind[user]]).sum(axis=1)
        types = pa.array(EVENT_TYPES).take(pa.array(event_type))
        quantity, data = _details(rng, event_type, oddities.late[rows])
        defect = pa.array(oddities.defects[rows])
        yield {
            "id": uuids(rng, len(rows)),
            "user_id": users.ids.take(pa.array(user)),
            "org_id": orgs.ids.take(pa.array(org, mask=personal)),
            "event_type": pc.choose(defect, types, types, types, "legacy_sync", types),
            "event_data": data,
            "quantity": pc.choose(defect, quantity, "NaN", "9" * 32, quantity, join("-", quantity)),
            "created_at": instants(at),
        }


class _Crowd:
    """Who can act in a slot: users signed up at its start who have not ended at its end.

    `alive[slot, zone]` sums their activities. Those are whole numbers, so a slot without users
    weighs exactly nothing. Nobody leaves within a slot of signing up, so whoever has ended has
    also been counted as signed up.
    """

    def __init__(self, users: Users, starts: Numbers, stops: Numbers) -> None:
        self._ended = users.ended
        self._stops = stops
        self._sums = np.append(0, np.cumsum(users.activity))
        self._low = np.zeros((len(starts), len(ZONE_SHARES)), np.int64)
        self._high = np.zeros_like(self._low)
        self.alive = np.zeros_like(self._low)
        for zone in range(len(ZONE_SHARES)):
            first, last = np.searchsorted(users.zone, [zone, zone + 1])
            signed_up = first + np.searchsorted(users.created[first:last], starts, "right")
            by_end = first + np.argsort(users.ended[first:last])
            gone = np.append(0, np.cumsum(users.activity[by_end]))
            self._low[:, zone] = self._sums[first]
            self._high[:, zone] = self._sums[signed_up]
            self.alive[:, zone] = self._high[:, zone] - self._low[:, zone]
            self.alive[:, zone] -= gone[np.searchsorted(users.ended[by_end], stops)]

    def draw(self, rng: np.random.Generator, slot: Numbers, zone: Numbers) -> Numbers:
        """A user for each event, in proportion to activity; redrawn while it has ended."""
        low, span = self._low[slot, zone], self._high[slot, zone] - self._low[slot, zone]
        user = np.empty(len(slot), np.int64)
        missing = np.arange(len(slot))
        while len(missing):
            ticket = low[missing] + (rng.random(len(missing)) * span[missing]).astype(np.int64)
            user[missing] = np.searchsorted(self._sums, ticket, "right") - 1
            missing = missing[self._ended[user[missing]] < self._stops[slot[missing]]]
        return user


def _rhythm(starts: Numbers) -> Numbers:
    """Weight of each slot (rows) in each zone (columns), from the local hour and weekday."""
    utc = pd.DatetimeIndex(starts.astype("M8[us]"), tz="UTC")
    local = [utc.tz_convert(zone) for zone in ZONE_SHARES]
    return np.stack([HOUR_WEIGHTS[t.hour] * WEEKDAY_WEIGHTS[t.day_of_week] for t in local], axis=1)


def _details(
    rng: np.random.Generator, event_type: Numbers, late: Numbers
) -> tuple[pa.Array, pa.Array]:
    """Quantity and event_data of each event, as text."""
    quantities, data = [], []
    for index, name in enumerate(EVENT_TYPES):
        is_late = pa.array(late[event_type == index])
        draw = _Draw(rng, len(is_late))
        quantity, fields = _details_of(name, draw)
        lag = join(', "recorded_lag_s": ', draw.whole(3_600, 300_000), "}")
        quantities.append(quantity)
        data.append(join(*_json_parts(fields), pc.if_else(is_late, lag, "}")))
    # The columns are grouped by type now; this puts them back in the order of the events.
    back = pa.array(np.argsort(np.argsort(event_type, kind="stable")))
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
                "batch": join("b-", draw.whole(10_000, 99_999)),
            }
        case "api_call":
            fields = {
                "path": draw.pick("/v1/records", "/v1/search", "/v1/files", "/v1/reports/run"),
                "method": draw.pick("GET", "POST", "PATCH"),
                "status": draw.pick(200, 200, 200, 201, 404, 429, 500),
                "ms": draw.whole(4, 900),
            }
        case "automation_run":  # quantity: compute seconds, to the nanosecond
            quantity = pa.array(draw.skewed(8)).cast(pa.decimal128(38, 9), safe=False)
            fields = {
                "automation": join("auto-", draw.whole(1_000, 9_999)),
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
                "schedule": join("sched-", draw.whole(100, 999)),
                "cron": draw.pick("0 6 * * *", "*/15 * * * *", "0 9 * * 1"),
                "status": draw.pick("ok", "ok", "ok", "skipped"),
                "delay_ms": draw.whole(1, 3_000),
            }
        case "ai_tokens_used":  # a refused request uses nothing: zero is a valid quantity
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
                "version": join("4.", draw.whole(0, 30), ".", draw.whole(0, 10)),
                "session_s": draw.whole(5, 7_200),
                "locale": draw.pick("en-US", "en-GB", "de-DE", "ja-JP"),
            }
    return quantity.cast(pa.string()), fields


def _json_parts(fields: JsonFields) -> Iterator[pa.Array | str]:
    """The parts of a JSON object, to be joined, without its closing brace."""
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
