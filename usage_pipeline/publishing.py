"""Publishing: what readers see, in three places that carry the same snapshot id.

The warehouse is compared with the snapshot that readers have, and only the difference moves:
into a copy of the snapshot file, into Parquet months, and into Postgres in one transaction.
Everything is staged first; then Postgres commits, the snapshot file is renamed, and the Parquet
files are renamed. A place that a killed run left behind is recognised by its id and made whole
by the next one. Nothing here decides *whether* to publish: checks did.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

import duckdb
from psycopg2.extensions import cursor as Cursor

from usage_pipeline import app_db
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import DayRange, connect, next_month

READER_ROLE = "usage_reader"
_VARIABLE = "USAGE_PUBLISH_DATABASE_URL"


@dataclass(frozen=True)
class ServedTable:
    """One published table.

    Attributes:
        key: columns that identify a row.
        nullable: those of `key` that may be null; null is then a value like any other.
        dated: column that places a row in time; None for tables that are not partitioned.
        grain: what `dated` holds: local days, first days of local months, or the start
            instants of both, told apart by `period_type`.
        windowed: only the rows of the published days and their months are compared; tables
            whose other rows can move as well, all small, are compared whole.
        indexes: further indexes in Postgres, for dashboards.
    """

    name: str
    key: tuple[str, ...]
    nullable: tuple[str, ...] = ()
    dated: str | None = None
    grain: Literal["day", "month", "period"] = "day"
    windowed: bool = True
    indexes: tuple[tuple[str, ...], ...] = ()


_PERSON = ("user_id", "org_id")

SERVED_TABLES = (
    ServedTable(
        "usage_daily",
        key=("usage_date", *_PERSON, "metric_type"),
        nullable=_PERSON,
        dated="usage_date",
        indexes=((*_PERSON, "usage_date"),),
    ),
    ServedTable(
        "usage_monthly",
        key=("month", *_PERSON, "metric_type"),
        nullable=_PERSON,
        dated="month",
        grain="month",
        indexes=((*_PERSON, "month"),),
    ),
    ServedTable(
        "usage_aggregations",
        key=("id",),
        dated="period_start",
        grain="period",
        indexes=((*_PERSON, "period_start"),),
    ),
    ServedTable(
        "org_usage_daily",
        key=("usage_date", "org_id", "metric_type"),
        nullable=("org_id",),
        dated="usage_date",
        indexes=(("org_id", "usage_date"),),
    ),
    ServedTable(
        "org_usage_monthly",
        key=("month", "org_id", "metric_type"),
        nullable=("org_id",),
        dated="month",
        grain="month",
        indexes=(("org_id", "month"),),
    ),
    ServedTable("platform_usage_daily", key=("usage_date", "metric_type"), dated="usage_date"),
    ServedTable(
        "platform_usage_monthly", key=("month", "metric_type"), dated="month", grain="month"
    ),
    ServedTable(
        "platform_metrics_daily", key=("metric_date",), dated="metric_date", windowed=False
    ),
    ServedTable(
        "platform_metrics_monthly", key=("month",), dated="month", grain="month", windowed=False
    ),
    ServedTable(
        "subscriptions_by_plan_daily",
        key=("metric_date", "plan"),
        dated="metric_date",
        windowed=False,
    ),
    ServedTable("user_retention_monthly", key=("cohort_month", "months_since"), windowed=False),
    ServedTable(
        "usage_summary",
        key=("scope", *_PERSON, "time_window", "metric_type"),
        nullable=_PERSON,
        windowed=False,
        indexes=(_PERSON,),
    ),
    ServedTable(
        "usage_daily_by_dimension",
        key=("usage_date", *_PERSON, "metric_type", "dimension", "dimension_value"),
        nullable=(*_PERSON, "dimension_value"),
        dated="usage_date",
        indexes=((*_PERSON, "usage_date"),),
    ),
    ServedTable(
        "invalid_usage_events",
        key=("event_id", "metric_type"),
        nullable=("metric_type",),
        dated="usage_date",
    ),
)

# What the warehouse's usage_aggregations view reads before anything is published.
_EMPTY_SNAPSHOT = """
    create table usage_aggregations (
        id uuid, user_id uuid, org_id uuid, period_type varchar, period_start timestamptz,
        metric_type varchar, period_end timestamptz, total_quantity decimal(38, 9),
        metadata json, created_at timestamptz, updated_at timestamptz
    );
    create table snapshot (snapshot_id varchar, published_at timestamptz, run_id varchar);
"""


@dataclass(frozen=True)
class Snapshot:
    """The identity of what is published, recorded in all three places."""

    snapshot_id: str
    published_at: datetime
    run_id: str


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
    """

    snapshot_id: str = ""
    changed: bool = False
    tables: dict[str, TableChange] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    snapshot_bytes: int = 0
    parquet_bytes: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)


@dataclass(frozen=True)
class _Delta:
    """A table's difference to the previous snapshot, whose rows are in `temp.<changes>`.

    With `whole` there is no such table: the previous snapshot lacks the table, or has it with
    other columns, and it is taken over as it is.
    """

    table: ServedTable
    columns: dict[str, str]
    whole: bool
    change: TableChange

    @property
    def changes(self) -> str:
        return f"change_{self.table.name}"

    @property
    def empty(self) -> bool:
        return not self.whole and self.change == TableChange()


def ensure_snapshot(settings: Settings) -> None:
    """Create `serving/usage.duckdb` with an empty `usage_aggregations` when it is absent.

    The warehouse's view of that name reads it, so it must exist before the first publish.
    """
    if settings.snapshot_path.exists():
        return
    settings.serving_dir.mkdir(parents=True, exist_ok=True)
    with _work_dir(settings) as work:
        with connect(settings, work / "empty.duckdb") as db:
            db.execute(_EMPTY_SNAPSHOT)
        (work / "empty.duckdb").replace(settings.snapshot_path)


def publish(settings: Settings, ranges: Sequence[DayRange], run_id: str) -> PublishReport:
    """Make the warehouse's rows what readers see. The caller is the single writer.

    Args:
        settings: where the warehouse, the outputs and the publish database are.
        ranges: local days whose rows may have changed; their months are compared as well.
        run_id: recorded with the snapshot.

    Raises:
        UsagePipelineError: the warehouse lacks a table, or Postgres refuses; readers then
            still see the previous state everywhere.
    """
    ensure_snapshot(settings)
    report = PublishReport()
    snapshot_path = settings.snapshot_path
    with _work_dir(settings) as work:
        with connect(settings, ":memory:") as db:
            db.execute(f"attach '{_quoted(settings.warehouse_path)}' as warehouse (read_only)")
            db.execute(f"attach '{_quoted(snapshot_path)}' as published (read_only)")
            base = snapshot = _recorded_snapshot(db)
            with report.timed("compare"):
                deltas = [
                    _compare(db, table, ranges, settings, first=base is None)
                    for table in SERVED_TABLES
                ]
            report.tables = {delta.table.name: delta.change for delta in deltas}
            if base is None or not all(delta.empty for delta in deltas):
                report.changed = True
                snapshot = Snapshot(str(uuid4()), datetime.now(UTC), run_id)
                with report.timed("snapshot"):
                    _build_snapshot(db, snapshot_path, work / "usage.duckdb", deltas, snapshot)
            assert snapshot is not None
            source = "serving" if report.changed else "published"
            parquet = _Parquet(settings, work / "parquet")
            with report.timed("parquet"):
                parquet.stage(db, source, deltas, base, snapshot)
            with report.timed("postgres"):
                _write_postgres(settings, db, source, deltas, base, snapshot, work / "rows.csv")
        with report.timed("swap"):
            if report.changed:
                (work / "usage.duckdb").replace(snapshot_path)
            report.parquet_bytes = parquet.swap(snapshot)
    report.snapshot_id = snapshot.snapshot_id
    report.snapshot_bytes = snapshot_path.stat().st_size
    return report


@contextmanager
def _work_dir(settings: Settings) -> Iterator[Path]:
    """An empty directory below the scratch directory; leftovers of a killed run go first."""
    work = settings.scratch_dir / "publish"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


# --- compare -------------------------------------------------------------------------------


def _recorded_snapshot(db: duckdb.DuckDBPyConnection) -> Snapshot | None:
    row = db.execute(
        "select snapshot_id, published_at, run_id from published.main.snapshot"
    ).fetchone()
    return Snapshot(*row) if row else None


def _columns(db: duckdb.DuckDBPyConnection, catalog: str, table: str) -> dict[str, str]:
    """Column names and DuckDB types; empty when there is no such table."""
    try:
        described = db.execute(f"describe {catalog}.main.{table}").fetchall()
    except duckdb.CatalogException:
        return {}
    return {name: kind for name, kind, *_ in described}


def _compare(
    db: duckdb.DuckDBPyConnection,
    table: ServedTable,
    ranges: Sequence[DayRange],
    settings: Settings,
    *,
    first: bool,
) -> _Delta:
    """The rows to add (side 1) and to remove (side -1), all columns compared, nulls equal."""
    columns = _columns(db, "warehouse", table.name)
    if not columns:
        raise UsagePipelineError(
            f"The warehouse has no table {table.name}",
            "Build the models with `usage-pipeline rollup`",
        )
    if first or list(columns.items()) != list(_columns(db, "published", table.name).items()):
        rows = _count(db, f"from warehouse.main.{table.name}")
        return _Delta(table, columns, True, TableChange(inserted=rows))
    names = ", ".join(columns)
    window = _window(table, ranges, settings) if table.windowed else "true"
    delta = _Delta(table, columns, False, TableChange())
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
    return _Delta(
        table, columns, False, TableChange(added - updated, updated, removed - updated)
    )


def _count(db: duckdb.DuckDBPyConnection, relation: str) -> int:
    (rows,) = db.execute(f"select count(*) {relation}").fetchall()[0]
    return int(rows)


def _window(table: ServedTable, ranges: Sequence[DayRange], settings: Settings) -> str:
    """The predicate for the rows of these days and of the months that hold them."""
    return " or ".join(f"({_in_range(table, r, settings)})" for r in ranges) or "false"


def _in_range(table: ServedTable, days: DayRange, settings: Settings) -> str:
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
    deltas: Sequence[_Delta],
    snapshot: Snapshot,
) -> None:
    """The previous snapshot plus the deltas, as `target`, attached as `serving`."""
    _clone(previous, target)
    db.execute(f"attach '{_quoted(target)}' as serving")
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
        "insert into serving.main.snapshot values (?, ?, ?)",
        [snapshot.snapshot_id, snapshot.published_at, snapshot.run_id],
    )
    db.execute("checkpoint serving")


def _clone(source: Path, target: Path) -> None:
    """Copy a file inside the kernel; file systems that can share the blocks."""
    with source.open("rb") as read, target.open("wb") as write:
        if not hasattr(os, "copy_file_range"):  # macOS
            shutil.copyfileobj(read, write)
            return
        while os.copy_file_range(read.fileno(), write.fileno(), 1 << 30):
            pass


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
        deltas: Sequence[_Delta],
        base: Snapshot | None,
        snapshot: Snapshot,
    ) -> None:
        """Write the files of touched months; all of them when Parquet lags behind `base`."""
        recorded = self._recorded_id()
        if recorded == snapshot.snapshot_id:
            return
        lagging = base is None or recorded != base.snapshot_id
        for delta in deltas:
            if lagging or not delta.empty:
                self._stage_table(db, source, delta, everything=lagging or delta.whole)

    def swap(self, snapshot: Snapshot) -> int:
        """Rename what was staged, then record the id; returns the bytes written."""
        if self._recorded_id() == snapshot.snapshot_id:
            return 0
        written = 0
        for target, staged in self._staged.items():
            if staged:
                written += staged.stat().st_size
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(target)
            elif target.parent.name.startswith("month="):
                shutil.rmtree(target.parent, ignore_errors=True)
        self._work.mkdir(exist_ok=True)
        marker = self._work / "_snapshot.json"
        marker.write_text(json.dumps(vars(snapshot), default=str))
        self._root.mkdir(parents=True, exist_ok=True)
        marker.replace(self._marker)
        return written

    def _recorded_id(self) -> str | None:
        try:
            return str(json.loads(self._marker.read_text())["snapshot_id"])
        except (FileNotFoundError, KeyError, json.JSONDecodeError):
            return None

    def _stage_table(
        self, db: duckdb.DuckDBPyConnection, source: str, delta: _Delta, *, everything: bool
    ) -> None:
        table, relation = delta.table, f"{source}.main.{delta.table.name}"
        folder = self._root / table.name
        if table.dated is None:
            self._stage_file(db, delta, f"from {relation}", folder / "data.parquet")
            return
        touched = relation if everything else delta.changes
        months = {m for (m,) in db.execute(f"select distinct {self._month(table)} from {touched}").fetchall()}
        if everything:
            months |= {date.fromisoformat(path.name[6:]) for path in folder.glob("month=*")}
        for month in sorted(months):
            rows = _in_range(table, DayRange(month, next_month(month)), self._settings)
            target = folder / f"month={month}" / "data.parquet"
            self._stage_file(db, delta, f"from {relation} where {rows}", target)

    def _stage_file(
        self, db: duckdb.DuckDBPyConnection, delta: _Delta, rows: str, target: Path
    ) -> None:
        # Other engines know neither Parquet's UUID (Spark) nor its JSON; a column that the
        # directory already names must not be in the file as well.
        columns = ", ".join(
            f"cast({name} as varchar) as {name}" if kind in ("UUID", "JSON") else name
            for name, kind in delta.columns.items()
            if name != "month"
        )
        if delta.table.dated and not _count(db, rows):
            self._staged[target] = None
            return
        staged = self._work / f"{len(self._staged)}.parquet"
        self._work.mkdir(exist_ok=True)
        db.execute(
            f"copy (select {columns} {rows}) to '{_quoted(staged)}'"
            " (format parquet, compression zstd)"
        )
        self._staged[target] = staged

    def _month(self, table: ServedTable) -> str:
        local = table.dated
        if table.grain == "period":
            local = f"{table.dated} at time zone '{self._settings.timezone}'"
        return f"cast(date_trunc('month', {local}) as date)"
