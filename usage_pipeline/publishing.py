"""Publishing: what readers see, in three places that carry the same snapshot id.

The warehouse is compared with the snapshot that readers have, and only the difference moves:
into a copy of the snapshot file, into Parquet months, and into Postgres in one transaction.
Everything is staged first; then Postgres commits, the snapshot file and the readers' copy of it
are renamed, and the Parquet files are renamed. A place that a killed run left behind is
recognised by its id and made whole by the next one. Nothing here decides *whether* to publish:
checks did.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
from psycopg2.extensions import cursor as Cursor

from usage_pipeline import app_db, erased_users, permissions, published, restatements
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.served_tables import SERVED_TABLES, ServedTable
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import DayRange, connect, next_month, quoted, scratch

LEDGER = "usage_restatements"
MONTHS_DIGESTED = 6
STATE = "published.duckdb"  # the next state, in the publish's scratch directory
READER_ROLE = "usage_reader"
_VARIABLE = "USAGE_PUBLISH_DATABASE_URL"
# Stands for null in Postgres keys: RFC 9562's greatest UUID, which no generator produces; the
# nil UUID does occur, as some applications' default organisation.
_NO_UUID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


# The shape of the snapshot file: a newer one is refused, an older one migrated.
SCHEMA_VERSION = 1

# Tables that have to be there before anything is published: what the models read back, the ledger,
# and what the ledger needs to know of the days published so far. `alter` migrates older files.
_BOOKKEEPING = """
    create table if not exists usage_aggregations (
        id uuid, user_id uuid, org_id uuid, period_type varchar, period_start timestamptz,
        metric_type varchar, period_end timestamptz, total_quantity decimal(38, 9),
        metadata json, created_at timestamptz, updated_at timestamptz
    );
    create table if not exists invalid_usage_events (
        event_id varchar, metric_type varchar, reason varchar, user_id varchar, org_id varchar,
        event_type varchar, quantity varchar, event_data varchar, created_at varchar,
        usage_date date, detected_at timestamptz
    );
    create table if not exists usage_restatements (
        usage_date date, user_id uuid, org_id uuid, metric_type varchar, restated_at timestamptz,
        old_quantity decimal(38, 9), new_quantity decimal(38, 9),
        old_event_count bigint, new_event_count bigint, cause varchar, run_id varchar
    );
    create table if not exists usage_reconciliation (
        usage_date date, metric_type varchar,
        source_events bigint, landed_events bigint, published_events bigint,
        source_sum decimal(38, 9), landed_sum decimal(38, 9), published_sum decimal(38, 9),
        matches boolean, checked_at timestamptz
    );
    create table if not exists published_days (
        usage_date date, landed_events bigint, sum_quantity decimal(38, 9),
        last_event_at timestamptz, extracted_at timestamptz, built_with varchar
    );
    create table if not exists snapshot (
        snapshot_id varchar, published_at timestamptz, run_id varchar
    );
    alter table snapshot add column if not exists timezone varchar;
    alter table snapshot add column if not exists schema_version integer;
"""


@dataclass(frozen=True)
class Snapshot:
    """The identity of what is published, recorded in all three places."""

    snapshot_id: str
    published_at: datetime
    run_id: str
    timezone: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class TableChange:
    """What one publish did to one table of the snapshot, in rows."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass
class PublishReport:
    """Figures of one publish.

    Attributes:
        snapshot_id: what readers see now.
        changed: False when the warehouse and the previous snapshot were equal; the snapshot
            file is then the same file as before.
        tables: rows per table that differ from the previous snapshot.
        seconds: per stage: `compare`, `snapshot`, `parquet`, `postgres`, `swap`.
        snapshot_bytes: size of the snapshot file.
        parquet_bytes: size of the Parquet files written.
        restated: the ledger's newest months; see `restatements.digest`.
    """

    snapshot_id: str = ""
    changed: bool = False
    tables: dict[str, TableChange] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    snapshot_bytes: int = 0
    parquet_bytes: int = 0
    restated: list[tuple[Any, ...]] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)


@dataclass(frozen=True)
class Delta:
    """A table's difference to the previous snapshot, whose rows are in `temp.<changes>`.

    With `whole` there is no such table: the previous snapshot lacks the table, or has it with
    other columns, and it is taken over as it is.

    Attributes:
        place: the one whose difference it is; empty for that of the snapshot, which all follow.
    """

    table: ServedTable
    columns: dict[str, str]
    whole: bool
    change: TableChange
    place: str = ""

    @property
    def changes(self) -> str:
        return f"change_{self.place}{self.table.name}"

    @property
    def empty(self) -> bool:
        return not self.whole and self.change == TableChange()


def ensure_snapshot(settings: Settings) -> None:
    """Create the published file when it is absent, migrate it when an older release wrote it.

    The warehouse's views of published rows read it, so it must exist before the first publish.

    Raises:
        UsagePipelineError: a newer release wrote it.
    """
    path = published.own_path(settings)
    version = _schema_version(settings) if path.exists() else None
    if version is not None and version > SCHEMA_VERSION:
        raise _written_by_newer(f"The snapshot {path}", version)
    if version == SCHEMA_VERSION:
        return
    with scratch(settings) as work:
        if path.exists():
            published.clone(path, work / "migrated.duckdb")
        with connect(settings, work / "migrated.duckdb") as db:
            db.execute(_BOOKKEEPING)
            db.execute("update snapshot set schema_version = ?", [SCHEMA_VERSION])
            if columns_of(db, "migrated", "usage_daily"):
                # Published before the ledger was kept: what changes from now on is a restatement.
                db.execute(
                    "insert into published_days by name select distinct usage_date from usage_daily"
                    " where usage_date not in (select usage_date from published_days)"
                )
        (work / "migrated.duckdb").replace(path)


def is_published(settings: Settings) -> bool:
    """Whether readers find anything in the snapshot."""
    if not published.exists(settings):
        return False
    with connect(settings, ":memory:") as db:
        published.attach(settings, db)
        return bool(columns_of(db, "published", "usage_daily"))


def _schema_version(settings: Settings) -> int:
    """The version that the snapshot file carries; 0 before versions were written."""
    with connect(settings, ":memory:") as db:
        published.attach(settings, db)
        if "schema_version" not in columns_of(db, "published", "snapshot"):
            return 0
        row = db.execute("select schema_version from published.main.snapshot").fetchone()
    return int(row[0] or 0) if row else SCHEMA_VERSION


def _written_by_newer(what: str, version: int) -> UsagePipelineError:
    return UsagePipelineError(
        f"{what} has schema {version} of a newer release; this one knows {SCHEMA_VERSION}",
        "Update the checkout to that release, or restore the state of this one from a backup",
    )


def publish(
    settings: Settings, ranges: Sequence[DayRange], run_id: str, built_with: str
) -> PublishReport:
    """Make the warehouse's rows what readers see. The caller is the single writer.

    Args:
        settings: where the warehouse, the outputs and the publish database are.
        ranges: local days whose rows may have changed; their months are compared as well.
        run_id: recorded with the snapshot and the restatements.
        built_with: version of models and meters that built the warehouse.

    Raises:
        UsagePipelineError: the warehouse lacks a table, Postgres refuses, or a newer release
            published; readers then still see the previous state everywhere.
    """
    ensure_snapshot(settings)
    report = PublishReport()
    with scratch(settings) as work:
        copy = work / settings.snapshot_path.name
        with connect(settings, ":memory:") as db:
            db.execute(f"attach '{quoted(settings.warehouse_path)}' as warehouse (read_only)")
            published.attach(settings, db)
            base = snapshot = _recorded_snapshot(db)
            new = Snapshot(str(uuid4()), datetime.now(UTC), run_id, settings.timezone)
            with report.timed("compare"):
                deltas = _compare_all(db, settings, ranges, base)
                deltas.append(_ledger(db, settings, deltas, base, new, built_with=built_with))
                unseen = _count(
                    db,
                    f"from ({_days_published(ranges)}) as days anti join"
                    " published.main.published_days using (usage_date)",
                )
            report.tables = {delta.table.name: delta.change for delta in deltas}
            if base is None or unseen or not all(delta.empty for delta in deltas):
                report.changed = True
                snapshot = new
                with report.timed("snapshot"):
                    _build_snapshot(db, settings.published_path, work / STATE, deltas, snapshot)
                    _note_days(db, ranges, built_with)
                    db.execute("checkpoint serving")
                    published.stage(settings, work / STATE, copy)
            assert snapshot is not None
            source = "serving" if report.changed else "published"
            report.restated = restatements.digest(db, f"{source}.main.{LEDGER}", MONTHS_DIGESTED)
            parquet = _Parquet(settings, work / "parquet")
            with report.timed("parquet"):
                parquet.stage(db, source, deltas, base, snapshot)
            with report.timed("postgres"):
                url = app_db.publish_database_url(settings)
                with app_db.connect(url, _VARIABLE) as connection, connection.cursor() as cursor:
                    postgres = _Postgres(cursor, settings.publish_schema, work / "rows.csv")
                    postgres.write(db, source, deltas, base, snapshot)
        with report.timed("swap"):
            if report.changed:
                (work / STATE).replace(settings.published_path)
            published.serve(settings, copy)
            report.parquet_bytes = parquet.swap(snapshot)
            permissions.share_all(settings)
    report.snapshot_id = snapshot.snapshot_id
    report.snapshot_bytes = settings.snapshot_path.stat().st_size
    return report


def repair(
    settings: Settings,
    db: duckdb.DuckDBPyConnection,
    work: Path,
    deltas: Mapping[str, Sequence[Delta]],
) -> None:
    """Write to each place what it lacks of what is published. The caller is the single writer.

    The snapshot keeps its id and the ledger its rows: a number that no run published is not one
    that was restated. A place that records another id is compared and written whole.

    Args:
        db: with `warehouse` and `published` attached, and the tables of the deltas' changes.
        work: scratch directory.
        deltas: of every served table, for `snapshot`, `parquet` and `postgres`.

    Raises:
        UsagePipelineError: Postgres refuses; nothing is changed then.
    """
    snapshot, source = _recorded_snapshot(db), "published"
    copy = work / settings.snapshot_path.name
    assert snapshot is not None
    if not all(delta.empty for delta in deltas["snapshot"]):
        source = "serving"
        _build_snapshot(db, settings.snapshot_path, work / STATE, deltas["snapshot"], snapshot)
        db.execute("checkpoint serving")
        published.stage(settings, work / STATE, copy)
    parquet = _Parquet(settings, work / "parquet")
    parquet.stage(db, source, deltas["parquet"], snapshot, snapshot, repairing=True)
    url = app_db.publish_database_url(settings)
    with app_db.connect(url, _VARIABLE) as connection, connection.cursor() as cursor:
        postgres = _Postgres(cursor, settings.publish_schema, work / "rows.csv")
        postgres.write(db, source, deltas["postgres"], snapshot, snapshot, repairing=True)
    if source == "serving":
        db.execute("detach serving")
        (work / STATE).replace(settings.published_path)
        published.serve(settings, copy)
    parquet.swap(snapshot)
    permissions.share_all(settings)


# --- compare -------------------------------------------------------------------------------


def _recorded_snapshot(db: duckdb.DuckDBPyConnection) -> Snapshot | None:
    row = db.execute(
        "select snapshot_id, published_at, run_id, timezone, schema_version"
        " from published.main.snapshot"
    ).fetchone()
    return Snapshot(*row) if row else None


def columns_of(db: duckdb.DuckDBPyConnection, catalog: str, table: str) -> dict[str, str]:
    """Column names and DuckDB types; empty when there is no such table."""
    try:
        described = db.execute(f"describe {catalog}.main.{table}").fetchall()
    except duckdb.CatalogException:
        return {}
    return {name: kind for name, kind, *_ in described}


def _compare_all(
    db: duckdb.DuckDBPyConnection,
    settings: Settings,
    ranges: Sequence[DayRange],
    base: Snapshot | None,
) -> list[Delta]:
    """What differs in each table of the warehouse; in all rows when the zone is another one,
    because rows cut in the old zone lie between the days of `ranges`."""
    everything = base is not None and base.timezone != settings.timezone
    return [
        _compare(
            db,
            table,
            "true" if everything or not table.windowed else _window(table, ranges, settings),
            first=base is None,
        )
        for table in SERVED_TABLES
        if table.name != LEDGER
    ]


def _compare(
    db: duckdb.DuckDBPyConnection, table: ServedTable, window: str, *, first: bool
) -> Delta:
    """The rows to add (side 1) and to remove (side -1), all columns compared, nulls equal."""
    columns = columns_of(db, "warehouse", table.name)
    if not columns:
        raise UsagePipelineError(
            f"The warehouse has no table {table.name}",
            "Build the models with `usage-pipeline rollup`",
        )
    if first or list(columns.items()) != list(columns_of(db, "published", table.name).items()):
        rows = _count(db, f"from warehouse.main.{table.name}")
        return Delta(table, columns, True, TableChange(inserted=rows))
    names = ", ".join(columns)
    delta = Delta(table, columns, False, TableChange())
    db.execute(f"""
        create temp table {delta.changes} as
        select cast(sum(side) as integer) as side, {names}
        from (
            select 1 as side, {names} from warehouse.main.{table.name} where {window}
            union all
            select -1 as side, {names} from published.main.{table.name} where {window}
        )
        group by {names}
        having sum(side) <> 0
    """)
    key = ", ".join(table.key)
    added = _count(db, f"from {delta.changes} where side > 0")
    removed = _count(db, f"from {delta.changes} where side < 0")
    keys = _count(db, f"from (select distinct {key} from {delta.changes})")
    updated = added + removed - keys
    return Delta(table, columns, False, TableChange(added - updated, updated, removed - updated))


def _ledger(
    db: duckdb.DuckDBPyConnection,
    settings: Settings,
    deltas: Sequence[Delta],
    base: Snapshot | None,
    snapshot: Snapshot,
    *,
    built_with: str,
) -> Delta:
    """The restatements that these deltas are; the ledger's earlier rows stay as they are, but for
    the ids of erased persons."""
    (cells,) = (delta for delta in deltas if delta.table.name == "usage_daily")
    numbers = ", ".join((*restatements.KEY, "total_quantity", "event_count"))
    relation = cells.changes
    if cells.whole and base is None:
        relation = f"(select 1 as side, {numbers} from warehouse.main.usage_daily where false)"
    elif cells.whole:  # the table has other columns than before; these it always had
        relation = (
            f"(select 1 as side, {numbers} from warehouse.main.usage_daily union all"
            f" select -1 as side, {numbers} from published.main.usage_daily)"
        )
    ledger = f"published.main.{LEDGER}"
    people = f"select user_id as person from {relation} union select user_id from {ledger}"
    erased = erased_users.read(settings).among(db, people)
    (table,) = (table for table in SERVED_TABLES if table.name == LEDGER)
    delta = Delta(table, columns_of(db, "published", LEDGER), False, TableChange())
    rows = restatements.record_restatements(
        db,
        delta.changes,
        relation,
        erased=erased,
        restated_at=snapshot.published_at,
        run_id=snapshot.run_id,
        built_with=built_with,
        recut=base is not None and base.timezone != snapshot.timezone,
    )
    renamed = restatements.forget(db, delta.changes, ledger, erased)
    return replace(delta, change=TableChange(inserted=rows, updated=renamed))


def _days_published(ranges: Sequence[DayRange]) -> str:
    """The landed days of the ranges as a query: empty days are published as well."""
    within = " or ".join(f"usage_date >= '{r.start}' and usage_date < '{r.end}'" for r in ranges)
    return f"select * from warehouse.main.stg_landed_days where {within or 'false'}"


def _note_days(db: duckdb.DuckDBPyConnection, ranges: Sequence[DayRange], built_with: str) -> None:
    """Remember what the published days were made of, for the causes of later restatements."""
    days = _days_published(ranges)
    db.execute(
        "delete from serving.main.published_days where usage_date in"
        f" (select usage_date from ({days}))"
    )
    db.execute(
        "insert into serving.main.published_days by name"
        " select usage_date, landed_events, sum_quantity, last_event_at, extracted_at,"
        f" ? as built_with from ({days})",
        [built_with],
    )


def _count(db: duckdb.DuckDBPyConnection, relation: str) -> int:
    (rows,) = db.execute(f"select count(*) {relation}").fetchall()[0]
    return int(rows)


def _window(table: ServedTable, ranges: Sequence[DayRange], settings: Settings) -> str:
    """The predicate for the rows of these days and of the months that hold them.

    With it go the days before `USAGE_START_DATE`: when that moved on, they are published still.
    """
    before = DayRange(date(1900, 1, 1), settings.start_date)
    return " or ".join(f"({in_range(table, r, settings)})" for r in [before, *ranges])


def in_range(table: ServedTable, days: DayRange, settings: Settings) -> str:
    months = days.whole_months()
    if table.grain == "period":
        return " or ".join(
            f"period_type = '{period}'"
            f" and {table.dated} >= timestamptz '{settings.day_start(start).isoformat()}'"
            f" and {table.dated} < timestamptz '{settings.day_start(end).isoformat()}'"
            for period, (start, end) in (("daily", days), ("monthly", months))
        )
    start, end = months if table.grain == "month" else days
    return f"{table.dated} >= date '{start}' and {table.dated} < date '{end}'"


# --- snapshot ------------------------------------------------------------------------------


def _build_snapshot(
    db: duckdb.DuckDBPyConnection,
    previous: Path,
    target: Path,
    deltas: Sequence[Delta],
    snapshot: Snapshot,
) -> None:
    """The previous snapshot plus the deltas, as `target`, attached as `serving`."""
    published.clone(previous, target)
    db.execute(f"attach '{quoted(target)}' as serving")
    for delta in deltas:
        name, names = delta.table.name, ", ".join(delta.columns)
        if delta.whole:
            db.execute(
                f"create or replace table serving.main.{name} as"
                f" select {names} from warehouse.main.{name}"
            )
        elif not delta.empty:
            same = " and ".join(f"old.{c} is not distinct from gone.{c}" for c in delta.table.key)
            db.execute(
                f"delete from serving.main.{name} as old"
                f" using (from {delta.changes} where side < 0) as gone where {same}"
            )
            db.execute(
                f"insert into serving.main.{name}"
                f" select {names} from {delta.changes} where side > 0"
            )
    db.execute("delete from serving.main.snapshot")
    db.execute(
        "insert into serving.main.snapshot by name select unnest($snapshot, recursive := true)",
        {"snapshot": asdict(snapshot)},
    )


# --- Parquet -------------------------------------------------------------------------------


class _Parquet:
    """`serving/parquet/<table>/[month=YYYY-MM-01/]data.parquet`, staged, then renamed."""

    def __init__(self, settings: Settings, work: Path) -> None:
        self._settings = settings
        self._root = settings.serving_dir / "parquet"
        self._marker = self._root / "_snapshot.json"
        self._work = work
        self._staged: dict[Path, Path | None] = {}

    def stage(
        self,
        db: duckdb.DuckDBPyConnection,
        source: str,
        deltas: Sequence[Delta],
        base: Snapshot | None,
        snapshot: Snapshot,
        *,
        repairing: bool = False,
    ) -> None:
        """Write the files of touched months; all of them when Parquet lags behind `base`."""
        recorded = self._recorded_id()
        if recorded == snapshot.snapshot_id and not repairing:
            return
        lagging = base is None or recorded != base.snapshot_id
        for delta in deltas:
            absent = not (self._root / delta.table.name).exists()
            if lagging or absent or not delta.empty:
                self._stage_table(db, source, delta, everything=lagging or absent or delta.whole)
        target = self._root / "snapshot" / "data.parquet"
        self._stage_file(db, "*", f"from {source}.main.snapshot", target)

    def swap(self, snapshot: Snapshot) -> int:
        """Rename what was staged, then record the id; returns the bytes written."""
        if not self._staged:
            return 0
        written = 0
        for target, staged in self._staged.items():
            if staged:
                written += staged.stat().st_size
                permissions.share(self._settings, staged)
                permissions.make_shared_folder(self._settings, target.parent)
                staged.replace(target)
            else:
                target.unlink(missing_ok=True)
                with suppress(OSError):  # as long as the month has another file
                    target.parent.rmdir()
        self._work.mkdir(exist_ok=True)
        marker = self._work / "_snapshot.json"
        marker.write_text(json.dumps(vars(snapshot), default=str))
        permissions.share(self._settings, marker)
        permissions.make_shared_folder(self._settings, self._root)
        marker.replace(self._marker)
        return written

    def _recorded_id(self) -> str | None:
        try:
            return str(json.loads(self._marker.read_text())["snapshot_id"])
        except (FileNotFoundError, KeyError, json.JSONDecodeError):
            return None

    def _stage_table(
        self, db: duckdb.DuckDBPyConnection, source: str, delta: Delta, *, everything: bool
    ) -> None:
        table, relation = delta.table, f"{source}.main.{delta.table.name}"
        folder = self._root / table.name
        # Other engines know neither Parquet's UUID (Spark) nor its JSON; a column that the
        # directory already names must not be in the file as well.
        columns = ", ".join(
            f"cast({name} as varchar) as {name}" if kind in ("UUID", "JSON") else name
            for name, kind in delta.columns.items()
            if name != "month"
        )
        if everything or table.dated is None:  # whatever else lies there would be read as well
            self._staged |= dict.fromkeys(folder.rglob("*.parquet"))
        if table.dated is None:
            self._stage_file(db, columns, f"from {relation}", folder / "data.parquet")
            return
        touched = relation if everything else delta.changes
        query = f"select distinct {self._month(table)} from {touched}"
        months = {month for (month,) in db.execute(query).fetchall()}
        if everything:
            months |= {date.fromisoformat(path.name[6:]) for path in folder.glob("month=*")}
        for month in sorted(months):
            within = in_range(table, DayRange(month, next_month(month)), self._settings)
            rows, target = f"from {relation} where {within}", folder / f"month={month}"
            self._staged |= dict.fromkeys(target.glob("*.parquet"))
            self._staged[target / "data.parquet"] = None
            if _count(db, rows):
                self._stage_file(db, columns, rows, target / "data.parquet")
        # Without a row there would be no file, and reading the table would be an error.
        self._staged |= dict.fromkeys(folder.glob("month=*/empty.parquet"))
        if not _count(db, f"from (from {relation} limit 1)"):
            first = self._settings.start_date.replace(day=1)
            target = folder / f"month={first}" / "empty.parquet"
            self._stage_file(db, columns, f"from {relation}", target)

    def _stage_file(
        self, db: duckdb.DuckDBPyConnection, columns: str, rows: str, target: Path
    ) -> None:
        staged = self._work / f"{uuid4()}.parquet"
        self._work.mkdir(exist_ok=True)
        db.execute(
            f"copy (select {columns} {rows}) to '{quoted(staged)}'"
            " (format parquet, compression zstd)"
        )
        self._staged[target] = staged

    def _month(self, table: ServedTable) -> str:
        local = table.dated
        if table.grain == "period":
            local = f"{table.dated} at time zone '{self._settings.timezone}'"
        return f"cast(date_trunc('month', {local}) as date)"


# --- Postgres ------------------------------------------------------------------------------


class _Postgres:
    """The publish schema, written in the caller's transaction.

    Changed rows are deleted and copied in: measured on a par with `update … from` and faster
    than `on conflict do update`, which also needs the rows in a table of their own first.

    Args:
        cursor: of a connection to the publish database.
        schema: owned by the pipeline; created when absent.
        rows_file: scratch file through which rows pass, so that none pass through Python.
    """

    def __init__(self, cursor: Cursor, schema: str, rows_file: Path) -> None:
        self._cursor = cursor
        self._schema = schema
        self._rows_file = rows_file

    def write(
        self,
        db: duckdb.DuckDBPyConnection,
        source: str,
        deltas: Sequence[Delta],
        base: Snapshot | None,
        snapshot: Snapshot,
        *,
        repairing: bool = False,
    ) -> None:
        """Apply the deltas, or compare whole tables when Postgres does not hold `base`."""
        recorded = self._open()
        if recorded == snapshot.snapshot_id and not repairing:
            return
        follows = base is not None and recorded == base.snapshot_id
        for delta in deltas:
            rows = f"from {source}.main.{delta.table.name}"
            if self._create(delta):
                self._copy(db, rows, self._name(delta.table.name), delta.columns)
                self._index(delta)
            elif not follows or delta.whole:
                self._apply_comparison(db, rows, delta)
            elif not delta.empty:
                self._apply_changes(db, delta)
        self._cursor.execute(f"delete from {self._name('snapshot')}")
        self._cursor.execute(
            f"insert into {self._name('snapshot')}"
            " (snapshot_id, published_at, run_id, timezone, schema_version)"
            " values (%(snapshot_id)s, %(published_at)s, %(run_id)s, %(timezone)s,"
            " %(schema_version)s)",
            asdict(snapshot),
        )
        self._grant()

    def _open(self) -> str | None:
        """Lock the schema against other writers and return the snapshot id that it holds."""
        self._cursor.execute(
            "set client_encoding to 'UTF8'; set local work_mem to '64MB';"
            " select pg_advisory_xact_lock(hashtext('usage-pipeline'), hashtext(%s))",
            (self._schema,),
        )
        # `create … if not exists` wants the privilege to create even when there is nothing to do.
        if not self._fetch("select 1 from pg_namespace where nspname = %s", self._schema):
            self._cursor.execute(f'create schema "{self._schema}"')
        if self._fetch("select to_regclass(%s)", self._name("snapshot")) == [(None,)]:
            self._cursor.execute(
                f"create table {self._name('snapshot')}"
                " (snapshot_id text primary key, published_at timestamptz, run_id text)"
            )
        if len(self._attributes("snapshot")) < len(fields(Snapshot)):
            self._cursor.execute(
                f"alter table {self._name('snapshot')}"
                " add column if not exists timezone text,"
                " add column if not exists schema_version integer"
            )
        recorded = self._fetch(
            f"select snapshot_id, coalesce(schema_version, 0) from {self._name('snapshot')}"
        )
        if recorded and recorded[0][1] > SCHEMA_VERSION:
            raise _written_by_newer(f"Schema {self._schema} in Postgres", recorded[0][1])
        return str(recorded[0][0]) if recorded else None

    def _create(self, delta: Delta) -> bool:
        """Create the table when it is absent or has other columns; True when it did."""
        name = self._name(delta.table.name)
        wanted = [(column, postgres_type(kind)) for column, kind in delta.columns.items()]
        if self._attributes(delta.table.name) == wanted:
            return False
        columns = ", ".join(f"{column} {kind}" for column, kind in wanted)
        self._cursor.execute(f"drop table if exists {name}")
        self._cursor.execute(f"create table {name} ({columns})")
        return True

    def _attributes(self, table: str) -> list[tuple[Any, ...]]:
        """Names and types of a table's columns; empty when there is no such table."""
        return self._fetch(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped"
            " order by attnum",
            self._name(table),
        )

    def _index(self, delta: Delta) -> None:
        """Key and indexes; after the first load, because that is faster."""
        table, name = delta.table, self._name(delta.table.name)
        if table.nullable:
            key = ", ".join(f"({expression})" for expression in _key_expressions(delta))
            self._cursor.execute(f"create unique index {table.name}_key on {name} ({key})")
        else:
            self._cursor.execute(f"alter table {name} add primary key ({', '.join(table.key)})")
        for columns in table.indexes:
            self._cursor.execute(f"create index on {name} ({', '.join(columns)})")

    def _apply_changes(self, db: duckdb.DuckDBPyConnection, delta: Delta) -> None:
        key = ", ".join(delta.table.key)
        self._temporary("removed", f"select {key} from {self._name(delta.table.name)} limit 0")
        self._copy(db, f"from {delta.changes} where side < 0", "removed", delta.table.key)
        self._delete_removed(delta)
        target = self._name(delta.table.name)
        # In the order of an index, neighbouring rows meet the same pages: a fifth less work.
        order = ", ".join((*delta.table.indexes, delta.table.key)[0])
        added = f"from {delta.changes} where side > 0 order by {order}"
        self._copy(db, added, target, delta.columns)

    def _apply_comparison(self, db: duckdb.DuckDBPyConnection, rows: str, delta: Delta) -> None:
        """Write what differs between the table and all rows of the snapshot, if anything."""
        target = self._name(delta.table.name)
        self._temporary("complete", f"select * from {target} limit 0")
        self._copy(db, rows, "complete", delta.columns)
        self._temporary("removed", f"select * from {target} except select * from complete")
        self._temporary("added", f"select * from complete except select * from {target}")
        self._delete_removed(delta)
        self._cursor.execute(f"insert into {target} select * from added")

    def _delete_removed(self, delta: Delta) -> None:
        same = " and ".join(
            f"{old} = {gone}"
            for old, gone in zip(
                _key_expressions(delta, "old."), _key_expressions(delta, "removed."), strict=True
            )
        )
        self._cursor.execute("analyze removed")
        self._cursor.execute(
            f"delete from {self._name(delta.table.name)} as old using removed where {same}"
        )

    def _copy(
        self, db: duckdb.DuckDBPyConnection, rows: str, target: str, columns: Iterable[str]
    ) -> None:
        names = ", ".join(columns)
        db.execute(
            f"copy (select {names} {rows}) to '{quoted(self._rows_file)}'"
            " (format csv, header false)"
        )
        with self._rows_file.open("rb") as file:
            self._cursor.copy_expert(f"copy {target} ({names}) from stdin (format csv)", file)

    def _grant(self) -> None:
        """Let dashboards read, where an administrator has made the role for them."""
        # Not on all tables of the schema: another role's view there is not ours to grant.
        ours = [self._name(name) for name in ("snapshot", *(t.name for t in SERVED_TABLES))]
        if self._fetch("select 1 from pg_roles where rolname = %s", READER_ROLE):
            self._cursor.execute(
                f'grant usage on schema "{self._schema}" to {READER_ROLE};'
                f" grant select on {', '.join(ours)} to {READER_ROLE}"
            )

    def _temporary(self, name: str, query: str) -> None:
        self._cursor.execute(f"drop table if exists pg_temp.{name}")
        self._cursor.execute(f"create temp table {name} on commit drop as {query}")

    def _fetch(self, query: str, *parameters: str) -> list[tuple[Any, ...]]:
        self._cursor.execute(query, parameters)
        return self._cursor.fetchall()

    def _name(self, table: str) -> str:
        return f'"{self._schema}".{table}'


def postgres_type(duckdb_type: str) -> str:
    """A DuckDB type as Postgres's `format_type` spells it."""
    renamed = {"VARCHAR": "text", "JSON": "jsonb"}
    return renamed.get(duckdb_type, duckdb_type.lower().replace("decimal", "numeric"))


def _key_expressions(delta: Delta, prefix: str = "") -> list[str]:
    """The key in Postgres, null being a value; Postgres 13 and 14 lack `nulls not distinct`.

    Text is hashed: values of any length fit into an index, and '' stays apart from null.
    """
    expressions = []
    for column in delta.table.key:
        expression = f"{prefix}{column}"
        if column in delta.table.nullable:
            if delta.columns[column] == "UUID":
                expression = f"coalesce({expression}, '{_NO_UUID}'::uuid)"
            else:
                expression = f"coalesce(md5({expression}), '')"
        expressions.append(expression)
    return expressions
