"""Who crossed a threshold of a plan's limit: recorded once a month, and told once.

Judged in Postgres after each publish, on what readers see there, in one transaction with the
messages. Nothing else is needed, so what a failed run did not judge is judged by the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg2.extensions import cursor as Cursor

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.events import LIMIT_EXCEEDED, LIMIT_RESOLVED, LIMIT_WARNING, spelled
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.app_db.fingerprints import has_events
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.meters.meter import Meter
from usage_pipeline.publishing.postgres_tables import READER_ROLE, has_readers
from usage_pipeline.settings import Settings

NAME = "usage_alerts"
LIMITS = "usage_limits_monthly"
JUDGED = "alerts_judged"  # of the last look
TABLES = (NAME, JUDGED)
KEY = ("scope", "user_id", "org_id", "metric_type", "month", "threshold")
DESCRIPTION = (
    "One row per subject, meter, month and threshold of a plan's limit that was crossed. State of "
    "its own, in Postgres only."
)

# Which of the two ids are set follows from the scope, so that none needs a stand-in for null.
_SUBJECT = "scope, coalesce(user_id, org_id), coalesce(org_id, user_id), metric_type"
_CROSSING = (
    "scope, user_id, org_id, metric_type, month, threshold, used_quantity, limit_quantity,"
    " usage_date, snapshot_id"
)
# Of a row of `status` that has come to a threshold; of a month that is over, as of its last day.
_CROSSED = (
    "select status.scope, status.user_id, status.org_id, status.metric_type, status.month,"
    " {threshold}, status.used_quantity, status.limit_quantity,"
    " least(%s, cast(status.month + interval '1 month' as date) - 1) as usage_date,"
    " cast(%s as text) as snapshot_id, status.plan"
)
SHOWN = (
    *("scope", "user_id", "org_id", "metric_type", "month", "threshold", "used_quantity"),
    *("limit_quantity", "usage_date", "raised_at", "resolved_at", "recrossed_at"),
)
_TABLES = f"""
    create table {{schema}}.{NAME} (
        scope text not null, user_id uuid, org_id uuid, metric_type text not null,
        month date not null, threshold numeric(38,9) not null,
        used_quantity numeric(38,9) not null, limit_quantity numeric(38,9) not null,
        usage_date date not null, snapshot_id text not null, raised_at timestamptz not null,
        resolved_at timestamptz, recrossed_at timestamptz, announced_at timestamptz,
        check ((user_id is not null) = (scope in ('user', 'member'))),
        check ((org_id is not null) = (scope in ('org', 'member')))
    );
    create unique index {NAME}_grain on {{schema}}.{NAME} (month, {_SUBJECT}, threshold);
    create table {{schema}}.alerts_judged (
        snapshot_id text not null, as_of_date date not null, judged_at timestamptz not null,
        silent_until date
    )
"""


_COLUMNS = {
    NAME: {*_CROSSING.split(", "), "raised_at", "resolved_at", "recrossed_at", "announced_at"},
    JUDGED: {"snapshot_id", "as_of_date", "judged_at", "silent_until"},
}


@dataclass
class AlertReport:
    """What one look at the limits found.

    Attributes:
        snapshot_id: what was judged; empty when nothing is published, or it was judged before.
        skipped: why it was not; empty when it was.
        silent: whether nobody is told, because an existing history is looked at for the first
            time, be it in pieces.
        raised: rows that are new.
        recrossed: rows whose threshold was crossed again, of which nobody is told again.
        resolved: rows whose threshold is not reached any more.
        messages: how many were put into the outbox.
        by_threshold: metric, threshold and how many rows are new.
        rows: of the month, by then.
        newest: some of them, in the columns `SHOWN`.
    """

    snapshot_id: str = ""
    skipped: str = ""
    silent: bool = False
    raised: int = 0
    recrossed: int = 0
    resolved: int = 0
    messages: int = 0
    by_threshold: list[tuple[Any, ...]] = field(default_factory=list)
    rows: int = 0
    newest: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Crossing:
    """A subject beyond a threshold of its limit, or back below it.

    Attributes:
        threshold: a share of the limit.
        used_quantity: in the meter's unit; None when there is no use any more.
        limit_quantity: None when there is no limit any more.
        usage_date: the newest landed day of what showed it.
        snapshot_id: what showed it.
    """

    scope: str
    user_id: UUID | None
    org_id: UUID | None
    metric_type: str
    month: date
    threshold: Decimal
    used_quantity: Decimal | None
    limit_quantity: Decimal | None
    usage_date: date
    snapshot_id: str
    plan: str | None

    @classmethod
    def of(cls, row: Sequence[Any]) -> Crossing:
        scope, user_id, org_id, *rest = row
        return cls(scope, user_id and UUID(user_id), org_id and UUID(org_id), *rest)

    def message(self, event_type: str = "") -> Message:
        """Of an event type; of the crossing itself unless given."""
        event_type = event_type or (LIMIT_EXCEEDED if self.threshold >= 1 else LIMIT_WARNING)
        facts: dict[str, Any] = {
            "scope": self.scope,
            "user_id": self.user_id,
            "org_id": self.org_id,
            "metric_type": self.metric_type,
            "month": self.month,
            "threshold": spelled(self.threshold),
        }
        return Message(
            event_type,
            ":".join([event_type, *(str(fact or "") for fact in facts.values())]),
            self.org_id,
            self.user_id,
            facts
            | {
                "used_quantity": self.used_quantity,
                "limit_quantity": self.limit_quantity,
                "plan": self.plan,
                "usage_date": self.usage_date,
                "snapshot_id": self.snapshot_id,
            },
        )


def judge(settings: Settings, meters: Sequence[Meter], *, only_new: bool = False) -> AlertReport:
    """Compare what is published with the limits, record what changed, and put what is to be told
    into the outbox, all in one transaction.

    Args:
        meters: with their thresholds.
        only_new: do nothing when what is published was judged before.

    Raises:
        UsagePipelineError: a database fails; nothing is recorded then, and the next call does it.
    """
    with _alone_with_alerts(settings) as alerts:
        if not alerts.snapshot_id or (only_new and alerts.judged == alerts.snapshot_id):
            return AlertReport()
        report = AlertReport(alerts.snapshot_id)
        if alerts.judged_to and alerts.as_of < alerts.judged_to:
            report.skipped = f"{alerts.as_of} is older than {alerts.judged_to}, judged before"
        elif _is_catching_up(settings, alerts.as_of):
            report.skipped = f"the source is far ahead of {alerts.as_of}"
        else:
            yesterday = settings.today() - timedelta(days=1)
            until = alerts.silent_until if alerts.judged_to else yesterday
            report.silent = until is not None
            if until and not _is_behind(settings, alerts.as_of, until):
                until = None
            alerts.judge(meters, report, until)
        return report


def left_out(settings: Settings, *, tell: bool = False) -> list[Crossing]:
    """What is crossed in the month that was judged last and nobody was told: the highest threshold
    of each subject.

    Args:
        tell: put it into the outbox as well.

    Raises:
        UsagePipelineError: the publish database fails.
    """
    with _alone_with_alerts(settings) as alerts:
        found = alerts.left_out()
        if tell:
            alerts.announce(found)
        return found


def forget(settings: Settings, user_id: UUID) -> None:
    """Remove a person's alerts and messages.

    Raises:
        UsagePipelineError: the publish database fails.
    """
    with _alone_with_alerts(settings) as alerts:
        alerts.forget(user_id)


def of_org(settings: Settings, org_id: UUID, months: Sequence[date]) -> list[dict[str, Any]]:
    """The rows of `usage_alerts` of an organisation in these months, the newest first; none while
    there is no such table.

    Raises:
        UsagePipelineError: the publish database fails.
    """
    url, table = publish_database_url(settings), f'"{settings.publish_schema}".{NAME}'
    with connect(url, "USAGE_PUBLISH_DATABASE_URL") as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", (table,))
        if cursor.fetchone() == (None,):
            return []
        cursor.execute(
            f"select {', '.join(SHOWN)} from {table} where month = any(%s) and scope = 'org'"
            " and coalesce(user_id, org_id) = %s order by raised_at desc, metric_type, threshold",
            (list(months), str(org_id)),
        )
        return [dict(zip(SHOWN, row, strict=True)) for row in cursor.fetchall()]


def _is_catching_up(settings: Settings, as_of: date) -> bool:
    """Whether a history is being rolled up piece by piece: plans and limits are those of today, and
    nobody is to be told of a month long past."""
    later = DayRange(
        as_of + timedelta(settings.lookback_days + 1), settings.today() + timedelta(days=1)
    )
    return later.start < later.end - timedelta(days=1) and has_events(settings, later)


def _is_behind(settings: Settings, as_of: date, until: date) -> bool:
    """Whether days up to `until` that the source has are still to be rolled up."""
    return as_of < until and has_events(
        settings, DayRange(as_of + timedelta(days=1), until + timedelta(days=1))
    )


@contextmanager
def _alone_with_alerts(settings: Settings) -> Iterator[_Alerts]:
    url = publish_database_url(settings)
    with connect(url, "USAGE_PUBLISH_DATABASE_URL") as connection, connection.cursor() as cursor:
        yield _Alerts(cursor, settings.publish_schema)


class _Alerts:
    """The alerts and what is published beside them, in the caller's transaction.

    Attributes:
        snapshot_id: what is published; empty when no limits, or no days, are.
        as_of: the newest landed day of it.
        judged: the snapshot that was judged last; empty when none was.
        judged_to: the newest landed day of that.
        silent_until: up to which day a first start has still to come before anybody is told.
    """

    def __init__(self, cursor: Cursor, schema: str) -> None:
        self._cursor = cursor
        self._schema = schema
        # The publisher's lock: what is published stays while it is judged.
        cursor.execute(
            "set client_encoding to 'UTF8'; set local work_mem to '64MB';"
            " select pg_advisory_xact_lock(hashtext('usage-pipeline'), hashtext(%s))",
            (schema,),
        )
        self.snapshot_id, self.as_of = "", date.min
        self.judged, self.judged_to, self.silent_until = "", None, None
        if self._exists(LIMITS):
            for published in self._fetch(
                "select snapshot_id, max(metric_date)"
                " from {schema}.snapshot, {schema}.platform_metrics_daily group by snapshot_id"
            ):
                self.snapshot_id, self.as_of = published
        if self._exists(NAME) or self._exists(JUDGED):
            self._require_ours()
            for judged in self._fetch(
                "select snapshot_id, as_of_date, silent_until from {schema}.alerts_judged"
            ):
                self.judged, self.judged_to, self.silent_until = judged

    def _require_ours(self) -> None:
        """Add the column that tables of earlier checkouts lack; refuse tables that lack others.

        Raises:
            UsagePipelineError: somebody else made one of them, or changed it.
        """
        there: dict[str, set[str]] = {table: set() for table in TABLES}
        for table, column in self._fetch(
            "select relname, attname from pg_class"
            " inner join pg_attribute on attrelid = pg_class.oid"
            " where relnamespace = quote_ident(%s)::regnamespace and relname = any(%s)"
            "  and attnum > 0 and not attisdropped",
            self._schema,
            list(TABLES),
        ):
            there[table].add(column)
        lacking = {table: _COLUMNS[table] - there[table] for table in TABLES}
        if lacking == {NAME: set(), JUDGED: {"silent_until"}}:
            self._execute(f"alter table {{schema}}.{JUDGED} add column silent_until date")
            return
        for table, columns in lacking.items():
            if columns:
                what = f"lacks {', '.join(sorted(columns))}" if there[table] else "is lost"
                names = " and ".join(f'"{self._schema}".{name}' for name in TABLES)
                raise UsagePipelineError(
                    f"The table {table} in schema {self._schema} in Postgres {what}",
                    f"Restore {names} from a backup, if they were the pipeline's; or drop what is"
                    " there of them, and the next rollup makes them anew, without telling of what"
                    " is crossed by then",
                )

    @property
    def month(self) -> date:
        return self.as_of.replace(day=1)

    @property
    def last_month(self) -> date:
        return (self.month - timedelta(days=1)).replace(day=1)

    def judge(
        self, meters: Sequence[Meter], report: AlertReport, silent_until: date | None
    ) -> None:
        """Fill the report, and write what it says; `silent_until` is for the looks after it."""
        if not self._exists(NAME):
            self._execute(_TABLES)
        self._grant()
        self._note_late(silent=report.silent)
        report.recrossed = self._reopen(announced=not report.silent)
        report.resolved = self._resolve(meters)
        report.raised = self._raise(meters, announced=not report.silent)
        report.by_threshold = self._fetch(
            "select metric_type, threshold, count(*) from raised group by 1, 2 order by 1, 2"
        )
        if not report.silent:
            report.messages = self._tell()
        of_month = f"from {{schema}}.{NAME} where month = %s"
        ((report.rows,),) = self._fetch(f"select count(*) {of_month}", self.month)
        report.newest = self._fetch(
            f"select {', '.join(SHOWN)} {of_month} order by raised_at desc, threshold desc limit 5",
            self.month,
        )
        self._execute("delete from {schema}.alerts_judged")
        self._execute(
            "insert into {schema}.alerts_judged values (%s, %s, now(), %s)",
            self.snapshot_id,
            self.as_of,
            silent_until,
        )

    def _note_late(self, *, silent: bool) -> None:
        """Find whose use of the month before is another one since the last look: its last day may
        have come with this month's first, or changed after it. Of a silent look, all that have any.

        Nobody where meters or days are others than then, or another home has published.
        """
        since: str = "select timestamptz '-infinity' as published_at"
        snapshots: tuple[str, ...] = ()
        if not silent:
            since = (
                "select judged.published_at from {schema}.usage_snapshots as judged"
                " inner join {schema}.usage_snapshots as published"
                "  on judged.meters_version = published.meters_version"
                "  and judged.timezone = published.timezone"
                " where judged.snapshot_id = %s and published.snapshot_id = %s"
            )
            snapshots = self.judged, self.snapshot_id
        self._execute(
            "create temp table late on commit drop as"
            f" with since as ({since}),"
            " changed as ("
            "  select user_id, org_id, metric_type from {schema}.usage_monthly, since"
            "  where month = %s and updated_at > since.published_at)"
            " select case when org_id is null then 'user' else 'member' end as scope,"
            "  user_id, org_id, metric_type from changed where user_id is not null"
            " union"
            " select 'org', null, org_id, metric_type from changed where org_id is not null",
            *snapshots,
            self.last_month,
        )

    @property
    def _status(self) -> str:
        """The rows that are judged: of the running month all, of the one before those that are
        late."""
        limits = f"{{schema}}.{LIMITS}"
        return (
            f"(select * from {limits} where month = '{self.month}' union all"
            f" select closed.* from {limits} as closed inner join late on {_same('closed', 'late')}"
            f" where closed.month = '{self.last_month}')"
        )

    def _reopen(self, *, announced: bool) -> int:
        """Open rows that were closed; those of which nobody was told become news."""
        closed = (
            "alerts.resolved_at is not null and alerts.month = status.month"
            f" and {_same('alerts', 'status')} and {_reaches('alerts.threshold')}"
        )
        self._execute(
            "create temp table reopened on commit drop as"
            f" {_CROSSED.format(threshold='alerts.threshold')}"
            f" from {{schema}}.{NAME} as alerts, {self._status} as status"
            f" where {closed} and alerts.announced_at is null",
            self.as_of,
            self.snapshot_id,
        )
        return self._execute(
            f"update {{schema}}.{NAME} as alerts set resolved_at = null, recrossed_at = now(),"
            "  announced_at = coalesce(alerts.announced_at, case when %s then now() end)"
            f" from {self._status} as status where {closed}",
            announced,
        )

    def _resolve(self, meters: Sequence[Meter]) -> int:
        """Close rows of the running month by their own threshold, whatever the meters say of it by
        now; none while a day of it is missing, whose use would be too, and none of a meter that is
        gone. An unknown use or limit closes none."""
        self._execute(
            "create temp table resolved on commit drop as"
            " select alerts.scope, alerts.user_id, alerts.org_id, alerts.metric_type, alerts.month,"
            "  alerts.threshold, status.used_quantity, status.limit_quantity,"
            "  cast(%s as date) as usage_date, cast(%s as text) as snapshot_id, status.plan,"
            "  alerts.announced_at is not null"
            "   and alerts.announced_at >= coalesce(alerts.recrossed_at, '-infinity') as is_news"
            f" from {{schema}}.{NAME} as alerts left join {{schema}}.{LIMITS} as status"
            f"  on {_same('alerts', 'status')} and status.month = alerts.month"
            " where alerts.month = %s and alerts.resolved_at is null"
            "  and (status.status is not null"
            "   or status.scope is null and alerts.metric_type = any(%s::text[]))"
            f" and not coalesce({_reaches('alerts.threshold')}, false)"
            "  and not exists (select from {schema}.platform_metrics_daily"
            "   where metric_date >= %s and event_count is null)",
            self.as_of,
            self.snapshot_id,
            self.month,
            [meter.key for meter in meters],
            self.month,
        )
        return self._execute(
            f"update {{schema}}.{NAME} as alerts set resolved_at = now() from resolved"
            f" where {_same('alerts', 'resolved')} and alerts.month = resolved.month"
            "  and alerts.threshold = resolved.threshold"
        )

    def _raise(self, meters: Sequence[Meter], *, announced: bool) -> int:
        self._execute(
            "create temp table raised on commit drop as"
            f" {_CROSSED.format(threshold='thresholds.threshold')} from {self._status} as status"
            " inner join unnest(%s::text[], %s::numeric[]) as thresholds (metric_type, threshold)"
            "  on status.metric_type = thresholds.metric_type"
            f" left join {{schema}}.{NAME} as alerts on {_same('alerts', 'status')}"
            "  and alerts.month = status.month and alerts.threshold = thresholds.threshold"
            f" where alerts.scope is null and {_reaches('thresholds.threshold')}",
            self.as_of,
            self.snapshot_id,
            [meter.key for meter in meters for _ in meter.alert_thresholds],
            [threshold for meter in meters for threshold in meter.alert_thresholds],
        )
        return self._execute(
            f"insert into {{schema}}.{NAME} ({_CROSSING}, raised_at, announced_at)"
            f" select {_CROSSING}, now(), case when %s then now() end from raised",
            announced,
        )

    def _tell(self) -> int:
        """One message a subject: of its highest threshold that is new or that nobody was told of,
        unless it is known to be beyond a higher one; and of the highest that it fell below for the
        first time since."""
        raised = self._crossings(
            f"select {_CROSSING}, plan from (table raised union all table reopened) as raised"
            " where not exists ("
            f" select from {{schema}}.{NAME} as alerts where {_same('alerts', 'raised')}"
            "  and alerts.month = raised.month and alerts.resolved_at is null"
            "  and alerts.threshold > raised.threshold)"
        )
        resolved = self._crossings(
            f"select distinct on ({_SUBJECT}) {_CROSSING}, plan from resolved where is_news"
            f" order by {_SUBJECT}, threshold desc"
        )
        messages = [crossing.message() for crossing in raised]
        messages += [crossing.message(LIMIT_RESOLVED) for crossing in resolved]
        outbox.add(self._cursor, self._schema, messages)
        return len(messages)

    def left_out(self) -> list[Crossing]:
        if self.judged_to is None:
            return []
        return self._crossings(
            f"select {_CROSSING}, plan from ("
            f" select distinct on ({_SUBJECT}) alerts.*, null as plan"
            f" from {{schema}}.{NAME} as alerts where month = %s and resolved_at is null"
            f" order by {_SUBJECT}, threshold desc) as highest"
            f" where announced_at is null order by {_SUBJECT}",
            self.judged_to.replace(day=1),
        )

    def announce(self, crossings: Sequence[Crossing]) -> None:
        """Tell of what `left_out` gave, and with it of the lower thresholds."""
        outbox.add(self._cursor, self._schema, [crossing.message() for crossing in crossings])
        months = list({crossing.month for crossing in crossings})
        self._execute(
            f"update {{schema}}.{NAME} set announced_at = now()"
            " where announced_at is null and resolved_at is null and month = any(%s::date[])",
            months,
        )

    def forget(self, user_id: UUID) -> None:
        if self._exists(NAME):
            self._execute(f"delete from {{schema}}.{NAME} where user_id = %s", str(user_id))
        outbox.forget(self._cursor, self._schema, user_id)

    def _crossings(self, query: str, *parameters: Any) -> list[Crossing]:
        return [Crossing.of(row) for row in self._fetch(query, *parameters)]

    def _exists(self, table: str) -> bool:
        return self._fetch("select to_regclass(%s)", f'"{self._schema}".{table}') != [(None,)]

    def _grant(self) -> None:
        """Let dashboards read; the publisher grants the role the schema itself."""
        if has_readers(self._cursor):
            self._execute(f"grant select on {{schema}}.{NAME} to {READER_ROLE}")

    def _execute(self, statement: str, *parameters: Any) -> int:
        """Rows that it wrote."""
        self._cursor.execute(statement.replace("{schema}", f'"{self._schema}"'), parameters or None)
        return int(self._cursor.rowcount)

    def _fetch(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        self._execute(query, *parameters)
        return self._cursor.fetchall()


def _same(left: str, right: str) -> str:
    """Whether two rows are of one subject and metric."""
    return (
        f"{left}.scope = {right}.scope and {left}.metric_type = {right}.metric_type"
        f" and coalesce({left}.user_id, {left}.org_id) = coalesce({right}.user_id, {right}.org_id)"
        f" and coalesce({left}.org_id, {left}.user_id) = coalesce({right}.org_id, {right}.user_id)"
    )


def _reaches(threshold: str) -> str:
    """Whether the row of `status` has come to a share of its limit, exactly. Of a limit of 0, any
    use has; of no limit, none (null)."""
    return (
        f"(status.used_quantity >= status.limit_quantity * {threshold}"
        " and (status.limit_quantity > 0 or status.used_quantity > 0))"
    )
