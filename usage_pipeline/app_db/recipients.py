"""Who is told of what: endpoints and addresses, read when something is sent, and kept nowhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg2.extensions import connection as PostgresConnection

from usage_pipeline.app_db.schema_drift import read_shape, record_shape
from usage_pipeline.app_db.session import source_query
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.settings import Settings

WEBHOOKS, ADDRESSES = "org_webhooks", "user_emails"  # the reviewed queries
_TIMEOUT = "1min"
_MANAGE = "role in ('owner', 'admin')"


@dataclass(frozen=True)
class Endpoint:
    """One of `org_webhooks`. Neither URL nor secret is shown by accident."""

    webhook_id: UUID
    org_id: UUID
    url: str = field(repr=False)
    secret: str = field(repr=False)
    enabled: bool = True


class Recipients:
    """The source, asked in short read-only transactions of one connection.

    Ids are compared as literals, which Postgres takes for the type of their column, text or UUID.
    """

    def __init__(self, settings: Settings, postgres: PostgresConnection) -> None:
        self._settings = settings
        self._postgres = postgres

    def orgs_with_webhooks(self) -> set[UUID]:
        """Organisations that have an enabled one."""
        return {UUID(str(org)) for (org,) in self._rows(WEBHOOKS, "distinct org_id", "enabled")}

    def enabled_webhooks(self, orgs: Collection[UUID]) -> list[tuple[UUID, UUID]]:
        """Organisation and webhook of each that is enabled."""
        return self._pairs(self._rows(WEBHOOKS, "org_id, id", "enabled and org_id in", orgs))

    def endpoints(self, webhooks: Collection[UUID]) -> dict[UUID, Endpoint]:
        """Those that still exist, also when they are not enabled."""
        rows = self._rows(WEBHOOKS, "id, org_id, url, secret, enabled", "id in", webhooks)
        found = [
            Endpoint(UUID(str(i)), UUID(str(org)), url or "", secret or "", bool(enabled))
            for i, org, url, secret, enabled in rows
        ]
        return {endpoint.webhook_id: endpoint for endpoint in found}

    def endpoints_of(self, org: UUID) -> list[Endpoint]:
        """All of an organisation."""
        rows = self._rows(WEBHOOKS, "id", "org_id in", [org])
        return [*self.endpoints([UUID(str(i)) for (i,) in rows]).values()]

    def managers(self, orgs: Collection[UUID]) -> list[tuple[UUID, UUID]]:
        """Organisation and user of each owner and admin."""
        where = f"{_MANAGE} and org_id in"
        return self._pairs(self._rows("org_members", "org_id, user_id", where, orgs))

    def org_names(self, orgs: Collection[UUID]) -> dict[UUID, str]:
        """Names of organisations, as their owners know them."""
        rows = self._rows("orgs", "id, name", "name is not null and id in", orgs)
        return {UUID(str(i)): name for i, name in rows}

    def addresses(self, users: Collection[UUID]) -> dict[UUID, str]:
        """E-mail addresses of users who are not deleted and have one."""
        usable = "email <> '' and deleted_at is null and id in"
        return {
            UUID(str(i)): email for i, email in self._rows(ADDRESSES, "id, email", usable, users)
        }

    def note_schema(self, table: str) -> None:
        """Write down the table's columns, so that a check can tell when they change."""
        with self._postgres.cursor() as cursor:
            cursor.execute(f"select * from ({source_query(table)}) as source limit 0")
            oids = {column.table_oid for column in cursor.description or ()} - {None}
            record_shape(self._settings, read_shape(self._postgres, oids))
        self._postgres.rollback()

    def _rows(
        self, table: str, columns: str, where: str, ids: Collection[UUID] | None = None
    ) -> list[tuple[Any, ...]]:
        """Rows of a reviewed query; those of the ids, where the condition ends with `in`."""
        if ids is not None and not ids:
            return []
        query = f"select {columns} from ({source_query(table)}) as source where {where}"
        with self._postgres.cursor() as cursor:
            cursor.execute(f"set transaction read only; set local statement_timeout = '{_TIMEOUT}'")
            if ids is None:
                cursor.execute(query)
            else:
                cursor.execute(query.replace("%", "%%") + " %s", (tuple(map(str, ids)),))
            rows = cursor.fetchall()
        self._postgres.rollback()  # nothing stays open while something is sent
        return rows

    def _pairs(self, rows: list[tuple[Any, ...]]) -> list[tuple[UUID, UUID]]:
        return [(UUID(str(left)), UUID(str(right))) for left, right in rows]


@contextmanager
def open_recipients(settings: Settings) -> Iterator[Recipients]:
    """Ask the source.

    Raises:
        UsagePipelineError: it cannot be read as the queries say.
    """
    with connect(app_database_url(settings)) as postgres:
        yield Recipients(settings, postgres)
