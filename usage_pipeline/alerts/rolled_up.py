"""`usage.rolled_up`: days of organisations whose published totals are new or others than before,
and with them what was odd on the new ones."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from typing import Any
from uuid import UUID

import duckdb
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.alerts import anomalies, outbox
from usage_pipeline.alerts.events import ROLLED_UP, as_json
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.app_db.recipients import open_recipients
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings


def announce(settings: Settings) -> int:
    """Add a message for each organisation with an enabled webhook and each of its days whose totals
    changed since this was called last, and for what was odd on its new days; gives how many. The
    first call only begins: nobody is told of a whole history.

    Raises:
        UsagePipelineError: nothing is published, or a database fails; the next call does it then.
    """
    with published.reading(settings) as db, outbox.opened(settings) as cursor:
        found = db.execute("select snapshot_id, published_at, timezone from snapshot").fetchone()
        # One at a time, until the transaction ends.
        cursor.execute(
            f'lock table "{settings.publish_schema}".outbox_progress in share row exclusive mode'
        )
        since = _announced_until(cursor, settings.publish_schema)
        if found is None or (since and since >= found[1]):
            return 0
        snapshot_id, published_at, timezone = found
        added = 0
        orgs = _orgs(settings) if since else set()
        for day in _changed_days(db, orgs, since) if since and orgs else ():
            same = {"usage_date": day, "timezone": timezone}
            same |= {"snapshot_id": snapshot_id, "published_at": published_at}
            totals = _totals(db, day)
            known = _last_told(cursor, settings.publish_schema, day, totals)
            payloads = (
                as_json(ROLLED_UP, {"org_id": org, **same, "totals": theirs})
                for org, theirs in totals.items()
            )
            added += outbox.add(
                cursor,
                settings.publish_schema,
                (
                    Message(ROLLED_UP, f"{ROLLED_UP}:{org}:{day}:{snapshot_id}", org, None, payload)
                    for org, payload in zip(totals, payloads, strict=True)
                    if payload["totals"] != known.get(org)
                ),
            )
        if since and orgs:
            odd = anomalies.messages(db, orgs, since, snapshot_id)
            added += outbox.add(cursor, settings.publish_schema, odd)
        _announced(cursor, settings.publish_schema, published_at)
        return added


def is_behind(settings: Settings) -> bool:
    """Whether something was published whose changed days nobody was told of.

    Raises:
        UsagePipelineError: nothing is published, or the publish database fails.
    """
    with published.reading(settings) as db, outbox.existing(settings) as cursor:
        found = db.execute("select published_at from snapshot").fetchone()
        since = _announced_until(cursor, settings.publish_schema) if cursor else None
        return bool(found and since and since < found[0])


def _announced_until(cursor: Cursor, schema: str) -> datetime | None:
    """Up to which publish was told; None before the first look."""
    cursor.execute(f'select announced_until from "{schema}".outbox_progress')
    row = cursor.fetchone()
    return row[0] if row else None


def _announced(cursor: Cursor, schema: str, until: datetime) -> None:
    cursor.execute(f'delete from "{schema}".outbox_progress')
    cursor.execute(f'insert into "{schema}".outbox_progress values (%s)', (until,))


def _orgs(settings: Settings) -> set[UUID]:
    """Those with an enabled webhook."""
    with open_recipients(settings) as source:
        return set(source.orgs_with_webhooks())


def _changed_days(
    db: duckdb.DuckDBPyConnection, orgs: Collection[UUID], since: datetime
) -> list[date]:
    """Days on which a number of a user of one of the organisations is new, another one, or gone;
    what these are is the temporary table `changed`."""
    db.execute(
        """
        create temp table changed as
        with orgs as (
            select unnest($orgs::uuid[]) as org_id
        )
        select org_id, usage_date from usage_daily semi join orgs using (org_id)
        where updated_at > $since
        union
        select org_id, usage_date from usage_restatements semi join orgs using (org_id)
        where restated_at > $since
        """,
        {"orgs": list(orgs), "since": since},
    )
    days = db.execute("select distinct usage_date from changed order by usage_date").fetchall()
    return [day for (day,) in days]


def _totals(db: duckdb.DuckDBPyConnection, day: date) -> dict[UUID, dict[str, Any]]:
    """By organisation that changed on the day, and metric."""
    rows = db.execute(
        """
        select org_id, metric_type, total_quantity, event_count, active_users
        from changed left join org_usage_daily using (org_id, usage_date)
        where usage_date = $day
        order by org_id, metric_type
        """,
        {"day": day},
    ).fetchall()
    found: dict[UUID, dict[str, Any]] = {}
    for org, metric, quantity, events, users in rows:
        totals = found.setdefault(org, {})
        if metric is not None:
            totals[metric] = {
                "total_quantity": quantity,
                "event_count": events,
                "active_users": users,
            }
    return found


def _last_told(
    cursor: Cursor, schema: str, day: date, orgs: Collection[UUID]
) -> dict[UUID, dict[str, Any]]:
    """The totals of each organisation's last message of the day."""
    cursor.execute(
        "select distinct on (org_id) org_id, payload -> 'totals'"
        f' from "{schema}".outbox_messages'
        " where event_type = %s and org_id = any(%s::uuid[]) and payload ->> 'usage_date' = %s"
        " order by org_id, created_at desc",
        (ROLLED_UP, [*map(str, orgs)], str(day)),
    )
    return {UUID(org): totals for org, totals in cursor.fetchall()}
