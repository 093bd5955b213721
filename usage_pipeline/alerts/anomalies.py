"""`usage.anomaly_detected`: odd days of organisations, on the days that are newly published."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import duckdb

from usage_pipeline.alerts.events import ANOMALY_DETECTED, as_json
from usage_pipeline.alerts.outbox import Message

_DAYS = 14  # the newest ones, among which are those published since


def messages(
    db: duckdb.DuckDBPyConnection, orgs: Collection[UUID], since: datetime, snapshot_id: str
) -> list[Message]:
    """A message for each odd day of these organisations that is newer than all that was published
    before; a day that is rolled up again tells nobody.

    Args:
        db: what is published.
        since: up to which publish was told.
    """
    cursor = db.execute(
        """
        with newest as (
            select usage_date, min(created_at) as published_at
            from usage_daily
            where usage_date > (select max(usage_date) - $days::integer from usage_daily)
            group by usage_date
        ),
        known as (
            select max(usage_date) as usage_date from newest where published_at <= $since
        )
        select scope, user_id, org_id, metric_type, usage_date, rule, kind, quantity, expected,
            score
        from usage_anomalies semi join newest using (usage_date)
        where scope = 'org' and list_contains($orgs::uuid[], org_id)
            and usage_date > coalesce((select usage_date from known), usage_date - 1)
        order by all
        """,
        {"orgs": list(orgs), "since": since, "days": _DAYS},
    )
    names = [column[0] for column in cursor.description or ()]
    found = []
    for values in cursor.fetchall():
        row = dict(zip(names, values, strict=True))
        of = (row["org_id"], row["usage_date"], row["metric_type"], row["rule"])
        key = ":".join(map(str, (ANOMALY_DETECTED, *of)))
        payload = as_json(ANOMALY_DETECTED, row | {"snapshot_id": snapshot_id})
        found.append(Message(ANOMALY_DETECTED, key, row["org_id"], None, payload))
    return found
