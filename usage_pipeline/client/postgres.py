"""Straight to Postgres: events into the application's table, usage from the published schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date, datetime
from typing import Any

from usage_pipeline.client.answers import (
    UsageAggregation,
    UsageLimit,
    UsageSummary,
    read,
    read_summary,
)
from usage_pipeline.client.errors import UsageError
from usage_pipeline.client.events import Event, Id
from usage_pipeline.client.transport import PeriodType, SendError, Window

_COLUMNS = "id, user_id, org_id, event_type, event_data, quantity, created_at"
_ROWS_AT_ONCE = 1000
# SQLSTATE: data exceptions, constraints, and what is of another type than the column.
_CONTENT_IS_BAD = ("22", "23", "42804")

# By parameter, and whether it is an instant. A day begins when the published calendar says.
_DAYS = "period_start in (select starts_at from {schema}.calendar where calendar_date"
_CONDITIONS = {
    ("user_id", False): "user_id = %(user_id)s::uuid",
    ("org_id", False): "org_id = %(org_id)s::uuid",
    ("period_type", False): "period_type = %(period_type)s",
    ("start", False): f"{_DAYS} >= %(start)s::date)",
    ("start", True): "period_start >= %(start)s::timestamptz",
    ("end", False): f"{_DAYS} < %(end)s::date)",
    ("end", True): "period_start < %(end)s::timestamptz",
    ("metric_type", False): "metric_type = %(metric_type)s",
}


class PostgresTransport:
    """Events by INSERT, on a connection that is opened when it is needed and kept.

    Args:
        url: anything that libpq takes.
        timeout: seconds for connecting, and for a statement.
        table: where events go, with its schema where that is not on the search path.

    Raises:
        ImportError: psycopg2 is not installed.
    """

    def __init__(self, url: str, timeout: float, table: str) -> None:
        import psycopg2

        self._driver = psycopg2
        self._url, self._timeout = url, timeout
        name = ".".join(_quoted(part) for part in table.split("."))
        # As rows of the table's own type: an enum, text or JSON column takes what it can hold.
        self._insert = (
            f"set local statement_timeout = {int(timeout * 1000)}; "
            f"insert into {name} ({_COLUMNS}) "
            f"select {_COLUMNS} from json_populate_recordset(null::{name}, %s::json) "
            "on conflict do nothing"
        )
        self._connection: Any = None
        self._parents: list[Any] = []

    def send(self, events: Sequence[Event]) -> list[str | None]:
        body = b"[" + b",".join(event.body for event in events) + b"]"
        try:
            if self._connection is None:
                self._connection = _connect(self._url, self._timeout)
            with self._connection, self._connection.cursor() as cursor:
                cursor.execute(self._insert, (body.decode(),))
        except self._driver.Error as error:
            code = error.pgcode or ""
            if self._connection is not None and self._connection.closed:
                self._connection = None
            raise SendError(
                f"{type(error).__name__} {code}".rstrip(),  # the message may hold the row
                refused=code.startswith(_CONTENT_IS_BAD),
                answered=bool(code),
            ) from error
        return [None] * len(events)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def forget(self) -> None:
        """Closing the copy would tell the server that the parent leaves: it is kept, unused."""
        self._parents.append(self._connection)
        self._connection = None


class PostgresReader:
    """Usage from the published schema, each call on a connection of its own."""

    def __init__(self, url: str, timeout: float, schema: str) -> None:
        self._url, self._timeout = url, timeout
        self._schema = _quoted(schema)

    def summary(self, user_id: Id | None, org_id: Id | None, period: Window) -> UsageSummary:
        rows = self._rows(
            """
            select
                summary.*, snapshot.snapshot_id
            from {schema}.snapshot as snapshot
            left join {schema}.usage_summary as summary
                on summary.time_window = %(period)s and (
                    (scope = 'org' and org_id = %(org_id)s::uuid)
                    or (scope = 'user' and %(org_id)s is null and user_id = %(user_id)s::uuid)
                )
            order by summary.metric_type
            """,
            {"user_id": user_id, "org_id": org_id, "period": period},
        )
        items = list(rows)
        nothing = {
            "as_of_date": None,
            "window_start": None,
            "window_end": None,
            "snapshot_id": None,
        }
        first = items[0] if items else nothing
        return read_summary({**first, "items": [i for i in items if i["metric_type"]]})

    def aggregated(
        self,
        user_id: Id | None,
        org_id: Id | None,
        period_type: PeriodType,
        start: date | None,
        end: date | None,
        metric_type: str | None,
    ) -> Iterator[UsageAggregation]:
        given = {
            "user_id": user_id,
            "org_id": org_id,
            "period_type": period_type,
            "start": start,
            "end": end,
            "metric_type": metric_type,
        }
        conditions = " and ".join(
            _CONDITIONS[name, isinstance(value, datetime)]
            for name, value in given.items()
            if value is not None
        )
        rows = self._rows(
            f"""
            select * from {{schema}}.usage_aggregations
            where {conditions}
            order by period_start, user_id, org_id, metric_type
            """,
            given,
        )
        return (read(UsageAggregation, row) for row in rows)

    def limits(self, user_id: Id | None, org_id: Id | None) -> list[UsageLimit]:
        rows = self._rows(
            """
            select * from {schema}.usage_limit_status
            where (scope = 'user' and %(org_id)s is null and user_id = %(user_id)s::uuid)
                or (scope = 'org' and org_id = %(org_id)s::uuid)
                or (scope = 'member' and org_id = %(org_id)s::uuid and user_id = %(user_id)s::uuid)
            order by scope, metric_type
            """,
            {"user_id": user_id, "org_id": org_id},
        )
        return [read(UsageLimit, row) for row in rows]

    def trigger(
        self,
        secret: str | None,
        period_type: PeriodType | None,
        start: date | None,
        end: date | None,
    ) -> str:
        raise UsageError("No rollup was started", "Postgres starts none; the API does")

    def _rows(self, query: str, parameters: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        import psycopg2

        given = {k: None if v is None else str(v) for k, v in parameters.items()}
        try:
            with closing(_connect(self._url, self._timeout)) as connection:
                connection.set_session(readonly=True)
                with connection.cursor("usage") as cursor:
                    cursor.itersize = _ROWS_AT_ONCE
                    cursor.execute(query.format(schema=self._schema), given)
                    for row in cursor:
                        names = [column.name for column in cursor.description]
                        yield dict(zip(names, row, strict=True))
        except psycopg2.Error as error:
            raise UsageError("Postgres gave no usage", str(error).strip()) from error


def _connect(url: str, timeout: float) -> Any:
    import psycopg2

    return psycopg2.connect(
        url,
        connect_timeout=max(2, int(timeout)),
        tcp_user_timeout=int(timeout * 1000),
        application_name="usage-pipeline-client",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
