"""Dagster's storage in Postgres (dagster.yaml): where it is, and how a long range fits into it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dagster import DagsterEventType, EventLogEntry
from dagster._config import UserConfigSchema
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage

from usage_pipeline.infra.database_urls import dagster_database_url
from usage_pipeline.settings import load_settings

_POOL_RECYCLE_SECONDS = 3600
_IN_BULK = {
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
}


class BulkEventLogStorage(PostgresEventLogStorage):
    """Writes a batch of asset events in two statements; Dagster's own does so for fewer kinds.

    Tables and columns that it once found are there for good. Dagster looks for them in the
    catalogue before each statement, which takes longer than the statement.
    """

    def __init__(self, postgres_url: str) -> None:
        self._found: set[str] = set()
        super().__init__(postgres_url)

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._found and super().has_table(table_name):
            self._found.add(table_name)
        return table_name in self._found

    def has_asset_key_col(self, column_name: str) -> bool:
        if column_name not in self._found and super().has_asset_key_col(column_name):
            self._found.add(column_name)
        return column_name in self._found

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        kinds = {event.get_dagster_event().event_type for event in events}
        if not kinds <= _IN_BULK:
            for event in events:
                self.store_event(event)
            return
        with self._connect() as connection:
            inserted = connection.execute(
                self.prepare_insert_event_batch(events).returning(SqlEventLogStorageTable.c.id)
            )
            ids = [cast("int", row[0]) for row in inserted]
        latest = {event.get_dagster_event().asset_key: at for at, event in enumerate(events)}
        with self.index_transaction() as connection:
            self._store_asset_event_tags(connection, events, ids)
            for at in latest.values():
                self._store_asset_event(connection, events[at], ids[at])


class PooledPostgresStorage(DagsterPostgresStorage):
    """dagster-postgres at `DAGSTER_PG_URL`, or in the embedded server when that is unset.

    Connections are kept: opening one for each of an event's five statements costs more than the
    statements.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        # A range of days is a single run; with one statement per asset and day its bookkeeping
        # would take longer than the rollup. Dagster asks the environment for its batches' size.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")
        url = dagster_database_url(load_settings())
        # SQLAlchemy must not pick psycopg 3, with which Dagster's NOTIFY fails.
        for scheme in ("postgresql://", "postgres://"):
            if url.startswith(scheme):
                url = "postgresql+psycopg2://" + url.removeprefix(scheme)
        super().__init__(url, inst_data=inst_data)
        self._event_log_storage = BulkEventLogStorage(url)
        for storage in (self._event_log_storage, self._run_storage, self._schedule_storage):
            storage.optimize_for_webserver(
                statement_timeout=0, pool_recycle=_POOL_RECYCLE_SECONDS, max_overflow=20
            )

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PooledPostgresStorage:
        return cls(inst_data)
