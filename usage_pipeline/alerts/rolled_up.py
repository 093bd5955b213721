"""`usage.rolled_up`: days of organisations whose published totals are new or others than before,
and with them what was odd on the new ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import date, datetime
from itertools import chain, groupby, islice
from operator import itemgetter
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

TOLD_TOGETHER = 1_000
OrgDay = tuple[UUID, date]


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
        if since and orgs:
            same = {"timezone": timezone, "snapshot_id": snapshot_id, "published_at": published_at}
            changed = _changed_days(db, orgs, since)
            while some := list(islice(changed, TOLD_TOGETHER)):
                known = _last_told(cursor, settings.publish_schema, [day for day, _ in some])
                messages = (_message(day, totals, same) for day, totals in some)
                added += outbox.add(
                    cursor,
                    settings.publish_schema,
                    (
                        message
                        for message, (day, _) in zip(messages, some, strict=True)
                        if message.payload["totals"] != known.get(day)
                    ),
                )
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


def _message(day: OrgDay, totals: dict[str, Any], same: dict[str, Any]) -> Message:
    org, usage_date = day
    payload = as_json(
        ROLLED_UP, {"org_id": org, "usage_date": usage_date, **same, "totals": totals}
    )
    key = f"{ROLLED_UP}:{org}:{usage_date}:{same['snapshot_id']}"
    return Message(ROLLED_UP, key, org, None, payload)


def _changed_days(
    db: duckdb.DuckDBPyConnection, orgs: Collection[UUID], since: datetime
) -> Iterator[tuple[OrgDay, dict[str, Any]]]:
    """Days of these organisations on which a number of a user is new, another one, or gone, with
    their totals by metric; as many in memory as are read at once."""
    cursor = db.execute(
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
    )
    rows = chain.from_iterable(iter(lambda: cursor.fetchmany(TOLD_TOGETHER), []))
    names = ("total_quantity", "event_count", "active_users")
    for day, cells in groupby(rows, key=itemgetter(0, 1)):
        yield (
            day,
            {
                metric: dict(zip(names, numbers, strict=True))
                for _, _, metric, *numbers in cells
                if metric is not None
            },
        )


def _last_told(
    cursor: Cursor, schema: str, days: Collection[OrgDay]
) -> dict[OrgDay, dict[str, Any]]:
    """The totals of each day's last message."""
    cursor.execute(
        "select distinct on (days.org_id, days.usage_date)"
        "  days.org_id, days.usage_date::date, payload -> 'totals'"
        " from unnest(%s::uuid[], %s::text[]) as days (org_id, usage_date)"
        f' inner join "{schema}".outbox_messages as messages on messages.org_id = days.org_id'
        "  and event_type = %s and payload ->> 'usage_date' = days.usage_date"
        " order by days.org_id, days.usage_date, created_at desc",
        ([str(org) for org, _ in days], [str(day) for _, day in days], ROLLED_UP),
    )
    return {(UUID(org), day): totals for org, day, totals in cursor.fetchall()}
