"""What differs between the warehouse and what is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import duckdb

from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.publishing.identity import Snapshot
from usage_pipeline.serving.tables import LEDGER, SERVED_TABLES, ServedTable
from usage_pipeline.settings import Settings


@dataclass(frozen=True)
class TableChange:
    """What one publish did to one table of the snapshot, in rows."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


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


def columns_of(db: duckdb.DuckDBPyConnection, catalog: str, table: str) -> dict[str, str]:
    """Column names and DuckDB types; empty when there is no such table."""
    try:
        described = db.execute(f"describe {catalog}.main.{table}").fetchall()
    except duckdb.CatalogException:
        return {}
    return {name: kind for name, kind, *_ in described}


def compare_all(
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
        rows = count(db, f"from warehouse.main.{table.name}")
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
    added = count(db, f"from {delta.changes} where side > 0")
    removed = count(db, f"from {delta.changes} where side < 0")
    keys = count(db, f"from (select distinct {key} from {delta.changes})")
    updated = added + removed - keys
    return Delta(table, columns, False, TableChange(added - updated, updated, removed - updated))


def count(db: duckdb.DuckDBPyConnection, relation: str) -> int:
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
