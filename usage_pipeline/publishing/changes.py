"""What differs between the warehouse and what is published, and the stamps that follow from it.

A table is looked at in parts: a local day or month of a dated table, all of another. A part
without a published row is taken over as it is; only parts that both sides have are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

import duckdb

from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.publishing.identity import Snapshot
from usage_pipeline.serving.tables import RECORDS, SERVED_TABLES, STAMPS, ServedTable
from usage_pipeline.settings import Settings

INSTANT = "TIMESTAMP WITH TIME ZONE"
MANY = 1_000  # rows that go; fewer are as cheaply found by their keys


@dataclass(frozen=True)
class TableChange:
    """What one publish did to one table of the snapshot, in rows."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Delta:
    """A table's difference to the previous snapshot.

    Attributes:
        columns: published names and DuckDB types, in order.
        change: in rows. All rows of a `whole` table count as inserted, and as deleted before.
        whole: the previous snapshot lacks the table, has it with other columns, or would be
            replaced in all its rows: it is taken over as it is, and there are no `changes`.
        fresh: parts without a published row, taken over as they are; None is an undated table.
        replaced: compared parts that lose or change most of their rows, and `MANY`.
        place: the one whose difference it is; empty for that of the snapshot, which all follow.
    """

    table: ServedTable
    columns: dict[str, str]
    change: TableChange = TableChange()
    whole: bool = False
    fresh: tuple[date | None, ...] = ()
    replaced: tuple[date | None, ...] = ()
    place: str = ""

    @property
    def changes(self) -> str:
        """The temporary table of the compared parts' rows that go (side -1) and come (side 1)."""
        return f"change_{self.place}{self.table.name}"

    @property
    def empty(self) -> bool:
        return not self.whole and self.change == TableChange()


def columns_of(db: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Column names and DuckDB types; empty when there is no such relation."""
    try:
        described = db.execute(f"describe {relation}").fetchall()
    except duckdb.CatalogException:
        return {}
    return {name: kind for name, kind, *_ in described}


def published_columns(db: duckdb.DuckDBPyConnection, table: ServedTable) -> dict[str, str]:
    """Names and types as published: those of the model, and the stamps that it lacks.

    Raises:
        UsagePipelineError: the warehouse lacks the table.
    """
    built = columns_of(db, f"warehouse.main.{table.name}")
    if not built:
        raise UsagePipelineError(
            f"The warehouse has no table {table.name}",
            "Build the models with `usage-pipeline rollup`",
        )
    return built | dict.fromkeys((c for c in table.stamps if c not in built), INSTANT)


def compare_all(
    db: duckdb.DuckDBPyConnection,
    settings: Settings,
    ranges: Sequence[DayRange],
    base: Snapshot | None,
    published_at: datetime,
) -> list[Delta]:
    """What differs in each table of the warehouse; in all rows when the zone is another one,
    because rows cut in the old zone lie between the days of `ranges`.

    Args:
        published_at: the stamp of rows that are new or have new numbers.
    """
    everything = base is not None and base.timezone != settings.timezone
    return [
        _compare(
            db,
            table,
            "true" if everything or not table.windowed else _window(table, ranges, settings),
            published_at,
            first=base is None,
        )
        for table in SERVED_TABLES
        if table.name not in RECORDS
    ]


def _compare(
    db: duckdb.DuckDBPyConnection,
    table: ServedTable,
    window: str,
    published_at: datetime,
    *,
    first: bool,
) -> Delta:
    columns, known = published_columns(db, table), columns_of(db, f"published.main.{table.name}")
    if first or list(columns.items()) != list(known.items()) or _moved_on(db, table):
        gone = count(db, f"from published.main.{table.name}") if known else 0
        come = count(db, f"from warehouse.main.{table.name}")
        return Delta(table, columns, TableChange(inserted=come, deleted=gone), whole=True)
    if table.moving:
        window = f"({window}) or {within(table, _parts_of_other_size(db, table))}"
    before = _rows_by_part(db, table, f"published.main.{table.name}", window)
    now = _rows_by_part(db, table, f"warehouse.main.{table.name}", window)
    fresh = tuple(part for part in now if part not in before)
    delta = Delta(table, columns, fresh=fresh)
    _find_changes(db, delta, f"({window}) and not {within(table, fresh)}", published_at)
    added = count(db, f"from {delta.changes} where side > 0")
    removed = _rows_by_part(db, table, delta.changes, "side < 0")
    keys = count(db, f"from (select distinct {', '.join(table.key)} from {delta.changes})")
    updated = added + sum(removed.values()) - keys
    return replace(
        delta,
        change=TableChange(
            inserted=added - updated + sum(now[part] for part in fresh),
            updated=updated,
            deleted=sum(removed.values()) - updated,
        ),
        replaced=tuple(
            part for part, rows in removed.items() if rows >= MANY and rows * 2 > before[part]
        ),
    )


def _moved_on(db: duckdb.DuckDBPyConnection, table: ServedTable) -> bool:
    """Whether all rows are new, by the column that is the same in all of them."""
    if table.as_of is None:
        return False
    published, built = (
        db.execute(f"select min({table.as_of}), max({table.as_of}) from {rows}").fetchall()
        for rows in (f"published.main.{table.name}", f"warehouse.main.{table.name}")
    )
    return published != built


def _parts_of_other_size(db: duckdb.DuckDBPyConnection, table: ServedTable) -> list[date | None]:
    before, now = (
        _rows_by_part(db, table, f"{database}.main.{table.name}", "true")
        for database in ("published", "warehouse")
    )
    return [part for part in before | now if before.get(part) != now.get(part)]


def _rows_by_part(
    db: duckdb.DuckDBPyConnection, table: ServedTable, relation: str, where: str
) -> dict[date | None, int]:
    rows = f"select {table.dated or 'null'} as part, count(*) from {relation} where {where}"
    return dict(db.execute(f"{rows} group by part order by part").fetchall())


def _find_changes(
    db: duckdb.DuckDBPyConnection, delta: Delta, where: str, published_at: datetime
) -> None:
    """Create the table of rows that go and come: all columns compared but for stamps that
    publishing gives, nulls equal."""
    table, given = delta.table, given_stamps(db, delta.table)
    names = ", ".join(column for column in delta.columns if column not in given)
    db.execute(f"""
        create or replace temp table differing as
        select cast(sum(side) as integer) as side, {names}
               {"".join(f", max({stamp}) as {stamp}" for stamp in given)}
        from (
            select 1 as side, {names} {"".join(f", null as {stamp}" for stamp in given)}
            from warehouse.main.{table.name} where {where}
            union all
            select -1 as side, {names} {"".join(f", {stamp}" for stamp in given)}
            from published.main.{table.name} where {where}
        )
        group by {names}
        having sum(side) <> 0
    """)
    new, old = (f"(from differing where side {sign} 0)" for sign in "><")
    come = stamped(delta, delta.columns, new, old, published_at) if given else f"from {new}"
    db.execute(f"""
        create temp table {delta.changes} as
        select side, {", ".join(delta.columns)} from {old}
        union all by name
        ({come});
        drop table differing
    """)


def given_stamps(db: duckdb.DuckDBPyConnection, table: ServedTable) -> list[str]:
    """The stamps that publishing gives to a table's rows."""
    built = columns_of(db, f"warehouse.main.{table.name}")
    return [stamp for stamp in table.stamps if stamp not in built]


def taken_over(db: duckdb.DuckDBPyConnection, delta: Delta, published_at: datetime) -> str:
    """A query for the rows of the warehouse that are taken over as they are: of the fresh parts,
    or of the whole table, whose rows keep the stamps that they have."""
    table, given = delta.table, given_stamps(db, delta.table)
    where = "true" if delta.whole else within(table, delta.fresh)
    built = ", ".join(column for column in delta.columns if column not in given)
    if not given:
        return f"select {built} from warehouse.main.{table.name} where {where}"
    known = columns_of(db, f"published.main.{table.name}")
    if delta.whole and {*table.key, *given} <= known.keys():
        unstamped = "".join(f", cast(null as timestamptz) as {stamp}" for stamp in given)
        new = f"(select {built}{unstamped} from warehouse.main.{table.name})"
        return stamped(delta, known, new, f"published.main.{table.name}", published_at)
    stamps = "".join(f", {_instant(published_at)} as {stamp}" for stamp in given)
    return f"select {built}{stamps} from warehouse.main.{table.name} where {where}"


def stamped(
    delta: Delta, known: Mapping[str, str], new: str, old: str, published_at: datetime
) -> str:
    """A query for new rows with their stamps: those of the old row of their key, if there is one,
    but for the other ones than `created_at` where a number is another one. An instant is none.

    Args:
        known: names and types of the columns of `old`.
    """
    at = _instant(published_at)
    numbers = [c for c, kind in known.items() if c in delta.columns and kind != INSTANT]
    unchanged = same(numbers, "new", "old")
    stamps = ", ".join(
        f"case when {'true' if stamp == STAMPS[0] else unchanged}"
        f" then coalesce(old.{stamp}, {at}) else {at} end as {stamp}"
        for stamp in delta.table.stamps
    )
    return f"""
        select new.* replace ({stamps})
        from {new} as new left join {old} as old on {same(delta.table.key, "new", "old")}
    """


def _instant(moment: datetime) -> str:
    return f"timestamptz '{moment.isoformat()}'"


def count(db: duckdb.DuckDBPyConnection, relation: str) -> int:
    (rows,) = db.execute(f"select count(*) {relation}").fetchall()[0]
    return int(rows)


def same(columns: Sequence[str], left: str, right: str) -> str:
    """Null-safe equality of the columns of two relations."""
    return " and ".join(f"{left}.{c} is not distinct from {right}.{c}" for c in columns)


def _window(table: ServedTable, ranges: Sequence[DayRange], settings: Settings) -> str:
    """The predicate for the rows of these days and of the months that hold them.

    With it go the days before `USAGE_START_DATE`: when that moved on, they are published still.
    """
    if table.moving:  # what is made from several days is of the last of them
        return f"{table.dated} >= date '{min(r.start for r in ranges)}'" if ranges else "false"
    before = DayRange(date(1900, 1, 1), settings.start_date)
    return " or ".join(f"({in_range(table, r)})" for r in [before, *ranges])


def in_range(table: ServedTable, days: DayRange) -> str:
    """The predicate for a dated table's rows of days, or of the months that hold them."""
    start, end = days.whole_months() if table.grain == "month" else days
    return f"{table.dated} >= date '{start}' and {table.dated} < date '{end}'"


def within(table: ServedTable, parts: Collection[date | None]) -> str:
    """The predicate for the rows of parts of a table."""
    if table.dated is None or not parts:
        return "true" if parts else "false"
    return f"{table.dated} in ({', '.join(f'date {str(part)!r}' for part in parts)})"
