"""Who uses the sample's application: users, orgs, members, and what they pay. No events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from usage_pipeline.app_db.sample.columns import DAY, Columns, Numbers, instants, join, uuids

ZONE_SHARES = {
    "America/New_York": 0.30,
    "America/Los_Angeles": 0.15,
    "Europe/London": 0.15,
    "Europe/Berlin": 0.20,
    "Asia/Kolkata": 0.10,
    "Asia/Tokyo": 0.05,
    "Australia/Sydney": 0.05,
}
KIND_SHARES = (0.60, 0.25, 0.15)  # office workers, integrators, AI users
PLANS = ("free", "pro", "team", "enterprise")
# In mean monthly use of one user, so that a few cross them whatever the size of the sample.
LIMIT_FACTORS = {"free": 7, "pro": 15, "team": 50, "enterprise": None}  # None: unlimited


@dataclass(frozen=True)
class Users:
    """Ordered by time zone, then sign-up. `ended` is the sample's end for those who stay."""

    ids: pa.Array
    zone: Numbers
    created: Numbers
    ended: Numbers
    deleted: Numbers
    activity: Numbers
    kind: Numbers


@dataclass(frozen=True)
class Orgs:
    """`places[user]` is personal use (-1), the main org and a second one (-1 if none)."""

    ids: pa.Array
    created: Numbers
    ended: Numbers
    deleted: Numbers
    owner: Numbers
    places: Numbers
    joined: Numbers


def invent_users(rng: np.random.Generator, count: int, begin: int, end: int) -> Users:
    """Sign-ups grow steadily from long before the period to its end; some users leave again."""
    zone = rng.choice(len(ZONE_SHARES), count, p=list(ZONE_SHARES.values()))
    history = max(365 * DAY, 2.7 * (end - begin))
    growth = np.sqrt(rng.random(count))
    growth[0] = 0
    created = np.minimum(end - (1 - growth) * history, end - 1).astype(np.int64)
    # A fifth only tries the product. Nobody leaves within a day; the events rely on it.
    life = DAY + rng.exponential(np.where(rng.random(count) < 0.2, 12 * DAY, 1_500 * DAY))
    life[0] = np.inf  # with the first sign-up, so that there is a user at any time
    ended = np.minimum(created + life, end).astype(np.int64)
    deleted = (ended < end) & (rng.random(count) < 0.5)  # the others just fall silent
    activity = np.ceil(100 * rng.lognormal(0, 1.3, count)).astype(np.int64)
    kind = rng.choice(len(KIND_SHARES), count, p=KIND_SHARES)
    order = np.lexsort((created, zone))
    columns = (zone, created, ended, deleted, activity, kind)
    return Users(uuids(rng, count), *(column[order] for column in columns))


def invent_orgs(rng: np.random.Generator, users: Users, end: int) -> Orgs:
    """Orgs of skewed size, founded by their owner; three in four users work in one."""
    people = len(users.ids)
    count = max(1, people // 8)
    owner = rng.permutation(people)[:count]
    created = np.minimum(users.created[owner] + rng.integers(0, DAY, count), end - 1)
    deleted = users.deleted[owner] & (rng.random(count) < 0.5)
    ended = np.where(deleted, users.ended[owner], end)

    popularity = 1 / np.arange(1, count + 1) ** 0.8
    places = rng.choice(count, (people, 3), p=popularity / popularity.sum())
    places[rng.random((people, 3)) >= (0, 0.75, 0.12)] = -1
    places[owner, 1] = np.arange(count)
    places[places[:, 2] == places[:, 1], 2] = -1
    joined = np.maximum(users.created[:, None], created[places])
    joined += rng.integers(0, 3 * DAY, joined.shape)
    joined[owner, 1] = created
    # Whoever would join after leaving, or after the org has ended, never joins.
    places[joined >= np.minimum(ended[places], users.ended[:, None])] = -1
    places[owner, 1] = np.arange(count)
    return Orgs(uuids(rng, count), created, ended, deleted, owner, places, joined)


@dataclass(frozen=True)
class Demand:
    """What plans are made and chosen by.

    Attributes:
        monthly_use: mean quantity of one user in a month, per event type.
        users: how often that each user is to use of the busiest type personally.
        orgs: the same of each org.
    """

    monthly_use: Mapping[str, float]
    users: Numbers
    orgs: Numbers


def account_tables(
    rng: np.random.Generator, users: Users, orgs: Orgs, end: int, demand: Demand
) -> Iterator[tuple[str, Columns]]:
    """Name and columns of every table but the events.

    Args:
        rng: source of all draws.
        users: who they are.
        orgs: where they work.
        end: nothing happens from then on.
        demand: what they are to use.
    """
    number = np.arange(len(users.ids))
    yield (
        "users",
        {
            "id": users.ids,
            "email": join("user", pa.array(number), "@example.com"),
            "created_at": instants(users.created),
            "deleted_at": instants(users.ended, users.deleted),
        },
    )
    yield (
        "orgs",
        {
            "id": orgs.ids,
            "name": join("Example org ", pa.array(number[: len(orgs.ids)])),
            "created_at": instants(orgs.created),
            "deleted_at": instants(orgs.ended, orgs.deleted),
        },
    )
    member, place = np.nonzero(orgs.places >= 0)
    org = orgs.places[member, place]
    role = np.where(rng.random(len(member)) < 0.1, "admin", "member")
    role[(place == 1) & (orgs.owner[org] == member)] = "owner"
    yield (
        "org_members",
        {
            "org_id": orgs.ids.take(pa.array(org)),
            "user_id": users.ids.take(pa.array(member)),
            "role": pa.array(role),
            "created_at": instants(orgs.joined[member, place]),
        },
    )
    yield "subscriptions", _subscriptions(rng, users, orgs, end, demand)
    yield "plan_limits", _plan_limits(demand.monthly_use)
    hooked = np.flatnonzero(rng.random(len(orgs.ids)) < 0.15)
    org_ids = orgs.ids.take(pa.array(hooked))
    yield (
        "org_webhooks",
        {
            "id": uuids(rng, len(hooked)),
            "org_id": org_ids,
            "url": join("https://hooks.example.com/", org_ids),
            "secret": uuids(rng, len(hooked)),
            # Nobody is behind these hosts; whoever wants to see messages arrive enables one.
            "enabled": pa.array(np.zeros(len(hooked), dtype=bool)),
            "created_at": instants(orgs.created[hooked]),
        },
    )


def _subscriptions(
    rng: np.random.Generator, users: Users, orgs: Orgs, end: int, demand: Demand
) -> Columns:
    """One per org and per user without org, of the smallest plan that is enough; a fifth began with
    the one below."""
    loners = np.flatnonzero((orgs.places < 0).all(axis=1))
    user = np.append(loners, np.full(len(orgs.ids), -1))
    org = np.append(np.full(len(loners), -1), np.arange(len(orgs.ids)))
    created = np.append(users.created[loners], orgs.created)
    ended = np.append(users.ended[loners], orgs.ended)
    # How many rows there are is drawn, so that demand changes neither ids nor what is drawn later.
    content = np.append(
        rng.choice(2, len(loners), p=(0.8, 0.2)),
        rng.choice(4, len(orgs.ids), p=(0.35, 0.3, 0.3, 0.05)),
    )
    switch = created + DAY + rng.exponential(90 * DAY, len(created)).astype(np.int64)
    upgraded = (rng.random(len(created)) < 0.25) & (switch < ended) & (content < 3)

    enough = [factor for factor in LIMIT_FACTORS.values() if factor]
    level = np.searchsorted(enough, np.append(demand.users[loners], demand.orgs))
    level = np.maximum(level, upgraded)
    canceled = np.append(np.where(upgraded, switch, ended), ended[upgraded])
    created = np.append(created, switch[upgraded])
    user, org = np.append(user, user[upgraded]), np.append(org, org[upgraded])
    level = np.append(level - upgraded, level[upgraded])
    status = np.select(
        [
            canceled < end,
            level == 0,
            created > end - 14 * DAY,
            rng.random(len(level)) < 0.04,
        ],
        ["canceled", "active", "trialing", "past_due"],
        "active",
    )
    return {
        "id": uuids(rng, len(user)),
        "user_id": users.ids.take(pa.array(user, mask=user < 0)),
        "org_id": orgs.ids.take(pa.array(org, mask=org < 0)),
        "plan": pa.array(PLANS).take(pa.array(level)),
        "status": pa.array(status),
        "created_at": instants(created),
        "canceled_at": instants(canceled, canceled < end),
    }


def _plan_limits(monthly_use: Mapping[str, float]) -> Columns:
    """Round numbers: one significant digit."""
    rows = [
        (plan, metric, factor and max(1, int(float(f"{factor * use:.1g}"))))
        for plan, factor in LIMIT_FACTORS.items()
        for metric, use in monthly_use.items()
    ]
    plans, metrics, limits = zip(*rows, strict=True)
    return {
        "plan": pa.array(plans),
        "metric_type": pa.array(metrics),
        "limit_quantity": pa.array(limits, pa.int64()),
    }
