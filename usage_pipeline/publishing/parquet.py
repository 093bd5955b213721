"""Published tables as Parquet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb

from usage_pipeline.days import DayRange, next_month
from usage_pipeline.infra import permissions
from usage_pipeline.infra.duckdb_files import quoted
from usage_pipeline.publishing.changes import Delta, count, in_range
from usage_pipeline.publishing.identity import SCHEMA_VERSION, Snapshot
from usage_pipeline.serving.views import VIEWS
from usage_pipeline.settings import Settings


class ParquetFiles:
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
        recorded = self._recorded()
        if recorded.get("snapshot_id") == snapshot.snapshot_id and not repairing:
            return
        lagging = (
            base is None
            or recorded.get("snapshot_id") != base.snapshot_id
            or recorded.get("schema_version") != SCHEMA_VERSION  # files of other columns
        )
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
        for view in VIEWS:  # which files cannot be; one was a table in releases before
            shutil.rmtree(self._root / view.name, ignore_errors=True)
        self._work.mkdir(exist_ok=True)
        marker = self._work / "_snapshot.json"
        marker.write_text(json.dumps(vars(snapshot), default=str))
        permissions.share(self._settings, marker)
        permissions.make_shared_folder(self._settings, self._root)
        marker.replace(self._marker)
        return written

    def _recorded(self) -> dict[str, Any]:
        """The snapshot that the files are of, as written at their last change."""
        try:
            return dict(json.loads(self._marker.read_text()))
        except (FileNotFoundError, TypeError, ValueError):
            return {}

    def _stage_table(
        self, db: duckdb.DuckDBPyConnection, source: str, delta: Delta, *, everything: bool
    ) -> None:
        table, relation = delta.table, f"{source}.main.{delta.table.name}"
        folder = self._root / table.name
        # Not every engine knows Parquet's UUID; a column that the directory already names must not
        # be in the file as well.
        columns = ", ".join(
            f"cast({name} as varchar) as {name}" if kind == "UUID" else name
            for name, kind in delta.columns.items()
            if name != "month" or table.dated is None
        )
        if everything or table.dated is None:  # whatever else lies there would be read as well
            self._staged |= dict.fromkeys(folder.rglob("*.parquet"))
        if table.dated is None:
            self._stage_file(db, columns, f"from {relation}", folder / "data.parquet")
            return
        touched = relation if everything else delta.changes
        query = f"select distinct cast(date_trunc('month', {table.dated}) as date) from {touched}"
        months = {month for (month,) in db.execute(query).fetchall()}
        months |= {part.replace(day=1) for part in delta.fresh if part}
        if everything:
            months |= {date.fromisoformat(path.name[6:]) for path in folder.glob("month=*")}
        for month in sorted(months):
            within = in_range(table, DayRange(month, next_month(month)))
            rows, target = f"from {relation} where {within}", folder / f"month={month}"
            self._staged |= dict.fromkeys(target.glob("*.parquet"))
            self._staged[target / "data.parquet"] = None
            if count(db, rows):
                self._stage_file(db, columns, rows, target / "data.parquet")
        # Without a row there would be no file, and reading the table would be an error.
        self._staged |= dict.fromkeys(folder.glob("month=*/empty.parquet"))
        if not count(db, f"from (from {relation} limit 1)"):
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
