"""Why a published number is what it is: what the published tables, the ledger, the proof and the
alerts say of it. Reads what is published, and opens neither warehouse nor source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any, Literal
from uuid import UUID

import duckdb

from usage_pipeline.app_db.fingerprints import EXACT
from usage_pipeline.days import DayRange, next_month
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.duckdb_files import exact_sum, open_duckdb, quoted
from usage_pipeline.infra.postgres import connect
from usage_pipeline.landing import erased_users
from usage_pipeline.meters.meter import Meter
from usage_pipeline.meters.version import read_meters
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import as_of, published
from usage_pipeline.settings import Settings

_VARIABLE = "USAGE_PUBLISH_DATABASE_URL"
# Whose limits a number counts for: a user's in an organisation for the member's.
_ALERTED = {"user": ["user", "member"], "org": ["org"], "platform": []}


@dataclass(frozen=True)
class Question:
    """Which number.

    Attributes:
        user_id: None for an organisation and the platform.
        org_id: of a user, their use in it alone; of no user, the organisation's number.
        day: None for the whole month.
        as_of: the moment whose number is asked for; None is now.
    """

    metric: str
    month: date
    user_id: UUID | None = None
    org_id: UUID | None = None
    day: date | None = None
    as_of: datetime | None = None

    @property
    def scope(self) -> Literal["user", "org", "platform"]:
        if self.user_id:
            return "user"
        return "org" if self.org_id else "platform"

    @property
    def days(self) -> DayRange:
        if self.day:
            return DayRange(self.day, date.fromordinal(self.day.toordinal() + 1))
        return DayRange(self.month, next_month(self.month))


@dataclass(frozen=True)
class Number:
    """A published row; `org_id` is that of a user's row, `usage_date` None for a month's."""

    org_id: UUID | None
    total_quantity: Decimal | None
    event_count: int
    usage_date: date | None = None


@dataclass(frozen=True)
class Publish:
    """One row of `usage_snapshots`; `meters_version` is unknown of publishes of older releases."""

    snapshot_id: str
    published_at: datetime
    run_id: str
    meters_version: str | None = None


@dataclass(frozen=True)
class Restatement:
    """Changes of a day by one publish.

    Attributes:
        org_id: of a user's row; None of the numbers of all users.
        numbers: how many rows of `usage_daily` changed; of more than one, quantities are None.
        meters_version: with which the publish was made; None of older releases.
    """

    usage_date: date
    org_id: UUID | None
    restated_at: datetime
    cause: str
    run_id: str
    numbers: int
    old_quantity: Decimal | None
    new_quantity: Decimal | None
    old_event_count: int
    new_event_count: int
    meters_version: str | None


@dataclass(frozen=True)
class Proof:
    """A day's row of `usage_reconciliation`, over all users."""

    usage_date: date
    source_events: int | None
    landed_events: int
    published_events: int
    source_sum: Decimal | None
    landed_sum: Decimal | None
    published_sum: Decimal | None
    matches: bool | None
    checked_at: datetime


@dataclass(frozen=True)
class Answer:
    """All that is known of a number.

    Attributes:
        publish: the state that the number is of.
        meter: as it was then; None where publishes were not recorded yet.
        numbers: the rows, by organisation; none when nobody used it.
        total: of the rows together; None where they do not add up.
        places: what each place that was asked has: the same rows, others, or why it has none.
        days: the published days, by organisation.
        set_aside: events that do not count, by reason.
        waiting: days of the number whose next state is not published yet.
        alerts: the rows of `usage_alerts`, if that table is there; None where Postgres cannot be
            read.
        now: the rows that are published now.
    """

    question: Question
    publish: Publish
    meter: Meter | None
    numbers: list[Number]
    total: Decimal | None
    event_count: int
    places: dict[str, list[Number] | str]
    days: list[Number]
    first_event_at: datetime | None
    last_event_at: datetime | None
    set_aside: dict[str, int]
    proof: list[Proof]
    restatements: list[Restatement]
    alerts: list[dict[str, Any]] | None
    waiting: list[DayRange]
    now: list[Number]

    @property
    def alike(self) -> bool:
        """Whether all places have the number."""
        return all(rows == self.numbers for rows in self.places.values())


def explain(settings: Settings, question: Question) -> Answer:
    """All that is known of a number.

    Raises:
        UsagePipelineError: nothing can be said: the month is not published, nobody knows the
            metric, the user or the organisation, the person is erased, or nothing is recorded of
            the moment.
    """
    with published.reading(settings) as db:
        publish, meters = _published_then(db, settings, question)
        _require_known(db, settings, question, meters)
        meter = next((m for m in meters if m.key == question.metric), None)
        additive = meter.adds_up if meter else False
        if question.as_of and question.scope != "user" and not additive:
            raise UsagePipelineError(
                f"What {question.metric} was of all users at another moment is not recorded, since"
                " its totals do not add up",
                "Ask for a user, or without --as-of",
            )
        numbers, days = (
            _numbers(db.execute(_statement(question, days=days)).fetchall())
            for days in (False, True)
        )
        first, last = _first_and_last(db, question)
        answer = Answer(
            question=question,
            publish=publish,
            meter=meter,
            numbers=numbers,
            total=_total(numbers, additive),
            event_count=sum(number.event_count for number in numbers),
            places={},
            days=days,
            first_event_at=first,
            last_event_at=last,
            set_aside=_set_aside(db, question, meter),
            proof=_proof(db, question),
            restatements=_restatements(db, question),
            alerts=None,
            waiting=_waiting(settings, question.days),
            now=_numbers(
                db.execute(_statement(replace(question, as_of=None), days=False)).fetchall()
            ),
        )
    answer.places.update(_places(settings, question))
    if isinstance(answer.places["Postgres"], str):
        return answer
    return replace(answer, alerts=_alerts(settings, question))


def _published_then(
    db: duckdb.DuckDBPyConnection, settings: Settings, question: Question
) -> tuple[Publish, list[Meter]]:
    publishes = "select snapshot_id, published_at, run_id, meters_version, meters"
    if question.as_of is None:
        found = db.execute(
            f"{publishes} from snapshot left join usage_snapshots"
            " using (snapshot_id, published_at, run_id)"
        ).fetchone()
    else:
        found = db.execute(
            f"{publishes} from usage_snapshots where published_at <= ?"
            " order by published_at desc limit 1",
            [question.as_of],
        ).fetchone()
        ((begins,),) = db.execute("select min(published_at) from usage_snapshots").fetchall()
        if begins is None or found is None:
            since = f"{begins.astimezone(settings.zone):%Y-%m-%d %H:%M}" if begins else "now on"
            raise UsagePipelineError(
                f"Nothing is recorded of what was published at {question.as_of:%Y-%m-%d %H:%M}",
                f"Ask for a moment from {since} on",
            )
    if found is None:
        raise UsagePipelineError("Nothing is published", "Publish it with `usage-pipeline rollup`")
    *identity, spelled = found
    return Publish(*identity), read_meters(spelled) if spelled else []


def _require_known(
    db: duckdb.DuckDBPyConnection, settings: Settings, question: Question, meters: Sequence[Meter]
) -> None:
    month, metric = question.month, question.metric
    known = {meter.key for meter in meters}
    used = db.execute("select distinct metric_type from platform_usage_monthly").fetchall()
    known |= {key for (key,) in used}
    if metric not in known:
        raise UsagePipelineError(
            f"No metric {metric} is published", f"Use one of: {', '.join(sorted(known))}"
        )
    days = question.days
    first, last, there = db.execute(
        "select min(usage_date), max(usage_date),"
        " count(*) filter (usage_date >= $1 and usage_date < $2) from published_days"
        " where usage_date >= $3",
        [days.start, days.end, settings.start_date],
    ).fetchall()[0]
    if not there:
        what = question.day or f"{month:%Y-%m}"
        raise UsagePipelineError(
            f"{what} is not published; published are days from {first} to {last}",
            f"Publish it with `usage-pipeline rollup --start {days.start} --end {days.end}`",
        )
    if question.user_id and question.user_id in erased_users.read(settings):
        raise UsagePipelineError(
            "This person was erased, and nothing is known of them",
            "Their usage is part of the rows whose user_id is NULL; ask for the organisation",
        )
    for column, who, what in (
        ("user_id", question.user_id, "user"),
        ("org_id", question.org_id, "organisation"),
    ):
        if who and not _is_known(db, settings, column, who):
            raise UsagePipelineError(
                f"Nobody knows the {what} {who}",
                f"Check the id in the application's {'users' if what == 'user' else 'orgs'}",
            )


def _is_known(db: duckdb.DuckDBPyConnection, settings: Settings, column: str, who: UUID) -> bool:
    """Whether the id has usage, had some, or is an account's."""
    accounts = settings.landing_dir / ("users.parquet" if column == "user_id" else "orgs.parquet")
    relations = [
        f"select 1 from {table} where {column} = $1"
        for table in ("usage_monthly", "usage_restatements")
    ]
    if accounts.exists():
        relations.append(
            f"select 1 from read_parquet('{quoted(accounts)}') where try_cast(id as uuid) = $1"
        )
    return bool(db.execute(f"{' union all '.join(relations)} limit 1", [who]).fetchall())


def _statement(question: Question, *, days: bool, schema: str = "", relation: str = "") -> str:
    """The query for the rows of the month, or of its days, which DuckDB and Postgres read.

    Args:
        schema: of the tables in Postgres, with a dot.
        relation: instead of the table.
    """
    by_day = days or question.day is not None
    period = "usage_date" if by_day else "month"
    prefix = "" if question.scope == "user" else f"{question.scope}_"
    table = f"{schema}{prefix}usage_{'daily' if by_day else 'monthly'}"
    org = "org_id" if question.scope == "user" else "null"
    quantity, events, group = "total_quantity", "event_count", ""
    if question.as_of:
        name = as_of.DAILY if by_day else as_of.MONTHLY
        table = f"{schema}{name}(timestamptz '{question.as_of.isoformat()}')"
        if question.scope != "user":  # of the rows of all users
            quantity = "sum(total_quantity)" if schema else exact_sum("total_quantity")
            events = "cast(sum(event_count) as bigint)"
            group = " group by usage_date" if days else " having count(*) > 0"
    return (
        f"select {org}, {quantity}, {events}, {period if days else 'null'}"
        f" from {relation or table} where {_who(question)}"
        f" and {period} >= date '{question.days.start}' and {period} < date '{question.days.end}'"
        f"{group} order by 4, 1 nulls first"
    )


def _numbers(rows: Sequence[tuple[Any, ...]]) -> list[Number]:
    return [
        Number(UUID(str(org)) if org else None, quantity, events, day)
        for org, quantity, events, day in rows
    ]


def _total(numbers: Sequence[Number], additive: bool) -> Decimal | None:
    quantities = [n.total_quantity for n in numbers if n.total_quantity is not None]
    if len(numbers) == len(quantities) == 1:
        return quantities[0]
    if numbers and additive and len(quantities) == len(numbers):
        return reduce(EXACT.add, quantities, Decimal())
    return None


def _first_and_last(
    db: duckdb.DuckDBPyConnection, question: Question
) -> tuple[datetime | None, datetime | None]:
    return db.execute(
        "select min(first_event_at), max(last_event_at) from usage_daily"
        f" where {_who(question)} and {_within(question)}"
    ).fetchall()[0]


def _within(question: Question) -> str:
    start, end = question.days
    return f"usage_date >= date '{start}' and usage_date < date '{end}'"


def _who(question: Question) -> str:
    ids = (("user_id", question.user_id), ("org_id", question.org_id))
    wanted = [f"{column} = '{who}'" for column, who in ids if who]
    return " and ".join([*wanted, f"metric_type = '{question.metric}'"])


def _set_aside(
    db: duckdb.DuckDBPyConnection, question: Question, meter: Meter | None
) -> dict[str, int]:
    """Events that the meter would have counted, by the reason why it does not."""
    ids = (("user_id", question.user_id), ("org_id", question.org_id))
    who = "".join(f" and {column} = '{of}'" for column, of in ids if of)
    event_type = meter.event_type if meter else ""
    rows = db.execute(
        "select reason, count(*) from invalid_usage_events"
        f" where {_within(question)}{who}"
        " and (metric_type = $1 or (metric_type is null and event_type = $2))"
        " group by reason order by reason",
        [question.metric, event_type],
    )
    return dict(rows.fetchall())


def _proof(db: duckdb.DuckDBPyConnection, question: Question) -> list[Proof]:
    columns = ", ".join(Proof.__dataclass_fields__)
    rows = db.execute(
        f"select {columns} from usage_reconciliation"
        f" where metric_type = $1 and {_within(question)} order by usage_date",
        [question.metric],
    )
    return [Proof(*row) for row in rows.fetchall()]


def _restatements(db: duckdb.DuckDBPyConnection, question: Question) -> list[Restatement]:
    """Day by day, oldest first; for organisations and the platform, changes of all users."""
    one = "case count(*) when 1 then max({0}) end"
    org = "org_id" if question.user_id else "cast(null as uuid)"
    rows = db.execute(f"""
        select usage_date, {org} as org, restated_at, cause, ledger.run_id, count(*),
               {one.format("old_quantity")}, {one.format("new_quantity")},
               cast(sum(old_event_count) as bigint), cast(sum(new_event_count) as bigint),
               max(meters_version)
        from usage_restatements as ledger
        left join usage_snapshots as publish on publish.published_at = restated_at
        where {_who(question)} and {_within(question)}
        group by usage_date, org, restated_at, cause, ledger.run_id
        order by restated_at, usage_date, org nulls first
    """)
    return [Restatement(*row) for row in rows.fetchall()]


def _waiting(settings: Settings, days: DayRange) -> list[DayRange]:
    """Days that are landed or built anew, and not published yet."""
    waiting = Rollup(settings).pending.ranges()
    cut = [DayRange(max(r.start, days.start), min(r.end, days.end)) for r in waiting]
    return [r for r in cut if r.start < r.end]


def _places(settings: Settings, question: Question) -> dict[str, list[Number] | str]:
    """The rows of each place; why it has none, where it cannot be read."""
    readers: dict[str, Callable[[], list[tuple[Any, ...]]]] = {
        "DuckDB": lambda: _in_duckdb(settings, question),
        "Parquet": lambda: _in_parquet(settings, question),
        "Postgres": lambda: _in_postgres(settings, question),
    }
    if question.as_of:  # files have no functions
        del readers["Parquet"]
    found: dict[str, list[Number] | str] = {}
    for place, read in readers.items():
        try:
            found[place] = _numbers(read())
        except (duckdb.Error, UsagePipelineError) as error:
            found[place] = str(error).splitlines()[0]
    return found


def _in_duckdb(settings: Settings, question: Question) -> list[tuple[Any, ...]]:
    with open_duckdb(settings, settings.snapshot_path, read_only=True) as db:
        return db.execute(_statement(question, days=False)).fetchall()


def _in_parquet(settings: Settings, question: Question) -> list[tuple[Any, ...]]:
    prefix = "" if question.scope == "user" else f"{question.scope}_"
    table = f"{prefix}usage_{'daily' if question.day else 'monthly'}"
    folder = settings.serving_dir / "parquet" / table / f"month={question.month}"
    if not folder.exists():
        return []
    files = f"read_parquet('{quoted(folder)}/*.parquet', hive_types = {{'month': date}})"
    with open_duckdb(settings, ":memory:") as db:
        return db.execute(_statement(question, days=False, relation=files)).fetchall()


def _in_postgres(settings: Settings, question: Question) -> list[tuple[Any, ...]]:
    statement = _statement(question, days=False, schema=f'"{settings.publish_schema}".')
    with (
        connect(publish_database_url(settings), _VARIABLE) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        return cursor.fetchall()


def _alerts(settings: Settings, question: Question) -> list[dict[str, Any]]:
    """Rows of `usage_alerts` of the month, oldest first; a state of Postgres alone."""
    with (
        connect(publish_database_url(settings), _VARIABLE) as connection,
        connection.cursor() as cursor,
    ):
        table = f'"{settings.publish_schema}".usage_alerts'
        cursor.execute("select to_regclass(%s)", (table,))
        if cursor.fetchall() == [(None,)]:
            return []
        cursor.execute(
            f"select * from {table} where scope = any(%s) and {_who(question)} and month = %s"
            " order by raised_at, threshold",
            (_ALERTED[question.scope], question.month),
        )
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
