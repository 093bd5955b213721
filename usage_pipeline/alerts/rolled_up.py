"""`usage.rolled_up`: days of organisations whose published totals are new or others than before."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from typing import Any
from uuid import UUID

import duckdb
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.events import ROLLED_UP, as_json
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.app_db.recipients import open_recipients
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings

OrgDay = tuple[UUID, date]


def announce(settings: Settings) -> int:
    """Add a message for each organisation with an enabled webhook and each of its days whose totals
    changed since this was called last; gives how many. The first call only begins: nobody is told
    of a whole history.

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
        messages = []
        if since:
            with open_recipients(settings) as source:
                orgs = source.orgs_with_webhooks()
            days = _changed(db, orgs, since)
            known = _last_told(cursor, settings.publish_schema, days)
            for (org, day), totals in days.items():
                payload = as_json(
                    ROLLED_UP,
                    {
                        "org_id": org,
                        "usage_date": day,
                        "timezone": timezone,
                        "snapshot_id": snapshot_id,
                        "published_at": published_at,
                        "totals": totals,
                    },
                )
                if payload["totals"] != known.get((org, day)):
                    key = f"{ROLLED_UP}:{org}:{day}:{snapshot_id}"
                    messages.append(Message(ROLLED_UP, key, org, None, payload))
        added = outbox.add(cursor, settings.publish_schema, messages)
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


def _changed(
    db: duckdb.DuckDBPyConnection, orgs: Collection[UUID], since: datetime
) -> dict[OrgDay, dict[str, Any]]:
    """Totals by metric of the days on which a number of an organisation's user is new, another one,
    or gone."""
    rows = db.execute(
        """
        with orgs as (
            select unnest($orgs::uuid[]) as org_id
        ),
        changed as (
            select org_id, usage_date from usage_daily semi join orgs using (org_id)
            where updated_at > $since
            union
            select org_id, usage_date from usage_restatements semi join orgs using (org_id)
            where restated_at > $since
        )
        select org_id, usage_date, metric_type, total_quantity, event_count, active_users
        from changed left join org_usage_daily using (org_id, usage_date)
        order by usage_date, org_id, metric_type
        """,
        {"orgs": list(orgs), "since": since},
    ).fetchall()
    days: dict[OrgDay, dict[str, Any]] = {}
    for org, day, metric, quantity, events, users in rows:
        totals = days.setdefault((org, day), {})
        if metric is not None:
            totals[metric] = {
                "total_quantity": quantity,
                "event_count": events,
                "active_users": users,
            }
    return days


def _last_told(
    cursor: Cursor, schema: str, days: Collection[OrgDay]
) -> dict[OrgDay, dict[str, Any]]:
    """The totals of the last message of each of these days."""
    cursor.execute(
        "select distinct on (org_id, day) org_id, day, payload -> 'totals'"
        " from unnest(%s::uuid[], %s::text[]) as asked (org_id, day)"
        f' inner join "{schema}".outbox_messages as messages using (org_id)'
        " where event_type = %s and payload ->> 'usage_date' = day"
        " order by org_id, day, created_at desc",
        ([str(org) for org, _ in days], [str(day) for _, day in days], ROLLED_UP),
    )
    return {(UUID(org), date.fromisoformat(day)): totals for org, day, totals in cursor.fetchall()}
