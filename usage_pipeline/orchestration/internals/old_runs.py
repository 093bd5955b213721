"""Deleting what old runs left in Dagster's storage, of which Dagster keeps all for ever."""

from dataclasses import dataclass
from datetime import datetime
from typing import cast

import dagster as dg
import sqlalchemy as sql
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

_ENDED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


@dataclass(frozen=True)
class RunsForgotten:
    """What became of the runs that ended before a time.

    Attributes:
        removed: deleted.
        kept: kept, because they are the latest for an asset, a partition or a check.
        events: log entries deleted, of both.
    """

    removed: int
    kept: int
    events: int


def forget_old_runs(instance: dg.DagsterInstance, before: datetime) -> RunsForgotten:
    """Delete what old runs left in Dagster's storage, and the runs of which nothing stays.

    What stays is the latest event of each kind for each asset and partition, and the latest result
    of each check: partition status in the UI and `status` are made of these.

    Args:
        before: in UTC; only runs that ended earlier are touched.
    """
    ended = dg.RunsFilter(statuses=_ENDED, updated_before=before)
    old = set(instance.get_run_ids(ended))
    event, check, tag = SqlEventLogStorageTable, AssetCheckExecutionsTable, AssetEventTagsTable
    latest_events = (
        sql.select(sql.func.max(event.c.id).label("id"))
        .where(event.c.asset_key.is_not(None))
        .group_by(event.c.asset_key, event.c.dagster_event_type, event.c.partition)
        .subquery()
    )
    latest_checks = (
        sql.select(sql.func.max(check.c.id).label("id"))
        .group_by(check.c.asset_key, check.c.check_name, check.c.partition)
        .subquery()
    )
    storage = cast("SqlEventLogStorage", instance.event_log_storage)
    with storage.index_transaction() as connection:
        events = connection.execute(
            sql.delete(event).where(
                event.c.run_id.in_(old),
                ~sql.exists().where(latest_events.c.id == event.c.id),
            )
        ).rowcount
        connection.execute(
            sql.delete(check).where(
                check.c.run_id.in_(old),
                ~sql.exists().where(latest_checks.c.id == check.c.id),
            )
        )
        connection.execute(sql.delete(tag).where(~sql.exists().where(event.c.id == tag.c.event_id)))
        kept = {
            run_id
            for table in (event, check)
            for (run_id,) in connection.execute(
                sql.select(table.c.run_id).where(table.c.run_id.in_(old)).distinct()
            )
        }
    for run_id in old - kept:
        instance.delete_run(run_id)
    return RunsForgotten(removed=len(old - kept), kept=len(kept), events=events)
