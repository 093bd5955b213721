"""The three places of what is published: compared with what they should hold, and repaired.

Numbers come from the warehouse; the ledger, the proof and the columns that say when a row was
published come from the pipeline's own published state, which alone knows them. What readers have,
their copy of that state included, is a place and no measure. Every value is compared as text, so
that no engine's reading of a number gets in between. Days whose hash and count agree are not
looked at.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb

from usage_pipeline.days import DayRange, next_month
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.disk import disk_is_full, scratch
from usage_pipeline.infra.duckdb_files import load_postgres_extension, open_duckdb, quoted
from usage_pipeline.infra.postgres import database_error
from usage_pipeline.publishing import publisher, readers_copy
from usage_pipeline.publishing.changes import (
    INSTANT,
    Delta,
    TableChange,
    columns_of,
    given_stamps,
    in_range,
    published_columns,
    same,
)
from usage_pipeline.publishing.postgres_tables import postgres_type
from usage_pipeline.serving import published
from usage_pipeline.serving.tables import SERVED_TABLES, ServedTable
from usage_pipeline.serving.views import VIEWS
from usage_pipeline.settings import Settings

LINES_A_TABLE = 20
PLACES = ("snapshot", "parquet", "postgres")

# Not served by a model, but in all three places.
_IDENTITY = ServedTable("snapshot", key=("snapshot_id",), windowed=False, model=False)
# Not in Parquet; made anew with the tables that they read.
_VIEWS = {
    ServedTable(
        view.name, key=view.key, dated=view.dated, windowed=view.dated is not None, model=False
    ): view
    for view in VIEWS
}
_VARIABLE = "USAGE_PUBLISH_DATABASE_URL"


@dataclass
class Unlike:
    """A table that in one place is not what it should be.

    Attributes:
        place: one of `PLACES`.
        rows: how many rows differ, are missing or too many; 0 when `unusable`.
        unusable: the table is missing, has other columns, or cannot be read.
        lines: one for each row, with all values that differ; at most `LINES_A_TABLE` rows.
    """

    place: str
    table: str
    rows: int = 0
    unusable: bool = False
    lines: list[str] = field(default_factory=list)


def compare(settings: Settings, days: DayRange, *, built: bool) -> list[Unlike]:
    """Compare the days, their months, and tables that are not cut by days, in all places.

    Args:
        built: numbers are compared with the warehouse, which has to hold what is published; the
            published state is the measure otherwise. The caller is the single writer.

    Raises:
        UsagePipelineError: a database cannot be read, or the published state lacks a table.
    """
    with _opened(settings, built) as comparison:
        return comparison.run(days)


def repair(settings: Settings, days: DayRange) -> list[Unlike]:
    """Make the places what the warehouse says; gives what was not, and is now.

    Only rows and Parquet months that differ are written: one transaction in Postgres, the others by
    rename. The caller is the single writer and has proven the warehouse's days.

    Raises:
        UsagePipelineError: as for `compare`, a place cannot be written, or all places agree on what
            the warehouse does not have: that was published, and is no damage.
    """
    with _opened(settings, built=True) as comparison:
        unlike = comparison.run(days)
        served_is_own = comparison.served_is_own
    if not served_is_own:
        readers_copy.serve_again(settings)
    with scratch(settings) as work, _opened(settings, built=True) as comparison:
        found = comparison.run(days)
        agreed = _agreed(found)
        if agreed:
            raise UsagePipelineError(
                f"All three places agree on {', '.join(agreed)}, unlike the warehouse",
                "What readers see alike is changed by a rollup only, which keeps the ledger:"
                f" `usage-pipeline rollup --start {days.start} --end {days.end}`",
            )
        if found:
            deltas = {place: comparison.deltas(place) for place in PLACES}
            publisher.repair(settings, comparison.db, work, deltas)
        return unlike


def _agreed(found: list[Unlike]) -> list[str]:
    """Tables that differ from the warehouse in the same way in all places."""
    ways: dict[str, list[tuple[int, list[str]]]] = {}
    for unlike in found:
        lines = [line.removeprefix(unlike.place) for line in unlike.lines]
        ways.setdefault(unlike.table, []).append((unlike.rows, lines))
    return [
        table
        for table, seen in ways.items()
        if len(seen) == len(PLACES) and seen.count(seen[0]) == len(seen)
    ]


@contextmanager
def _opened(settings: Settings, built: bool) -> Iterator[_Comparison]:
    url = publish_database_url(settings)
    with (
        published.as_served(settings) as copy,
        open_duckdb(settings, ":memory:") as db,
    ):
        published.attach(settings, db)
        db.execute(f"attach '{quoted(copy)}' as served (read_only)")
        if built:
            db.execute(f"attach '{quoted(settings.warehouse_path)}' as warehouse (read_only)")
        load_postgres_extension(db)
        try:
            escaped = url.replace("'", "''")
            db.execute(f"attach '{escaped}' as remote (type postgres, read_only)")
        except duckdb.Error as error:
            raise database_error(error, url, _VARIABLE) from None
        same = filecmp.cmp(copy, published.own_path(settings), shallow=False)
        same = same and not published.readers_log(settings)
        yield _Comparison(settings, db, built=built, served_is_own=same)


class _Comparison:
    def __init__(
        self,
        settings: Settings,
        db: duckdb.DuckDBPyConnection,
        *,
        built: bool,
        served_is_own: bool,
    ) -> None:
        self.db = db
        self.served_is_own = served_is_own
        self._settings = settings
        self._built = built
        self._unlike: dict[tuple[str, str], Unlike] = {}

    def run(self, days: DayRange) -> list[Unlike]:
        """What differs, place by place."""
        if log := published.readers_log(self._settings):
            line = f"snapshot {log.name}: readers see what somebody wrote into their copy"
            self._unlike["snapshot", log.name] = Unlike("snapshot", log.name, lines=[line])
        for table in (*SERVED_TABLES, _IDENTITY):
            self._compare_table(table, PLACES, days)
        # Where a table differs, its view does in the same rows.
        for table, view in _VIEWS.items():
            like = [
                place
                for place in ("snapshot", "postgres")
                if not any((place, name) in self._unlike for name in view.tables)
            ]
            self._compare_table(table, like, days)
        return sorted(self._unlike.values(), key=lambda unlike: PLACES.index(unlike.place))

    def _compare_table(self, table: ServedTable, places: Sequence[str], days: DayRange) -> None:
        columns = self._columns(table)
        places = [place for place in places if self._usable(place, table, columns)]
        # By month: what is compared at once has to fit into memory and scratch.
        for piece in _by_month(days) if table.windowed else [days]:
            where = self._in_range(table, piece) if table.windowed else _all_rows(table)
            if places:
                self._expect(table, columns, where)
            for place in places:
                self._compare(place, table, columns, where)

    def _in_range(self, table: ServedTable, days: DayRange) -> str:
        if table not in _VIEWS:
            return in_range(table, days)
        starts = self._settings.day_start
        return " or ".join(
            f"period_type = '{period}'"
            f" and period_start >= timestamptz '{starts(start).isoformat()}'"
            f" and period_start < timestamptz '{starts(end).isoformat()}'"
            for period, (start, end) in (("daily", days), ("monthly", days.whole_months()))
        )

    def deltas(self, place: str) -> list[Delta]:
        """What a place lacks, as publishing writes it."""
        found = []
        for table in SERVED_TABLES:
            unlike = self._unlike.get((place, table.name), Unlike(place, table.name))
            change = TableChange(updated=unlike.rows)
            found.append(
                Delta(table, self._columns(table), change, whole=unlike.unusable, place=f"{place}_")
            )
        return found

    def _columns(self, table: ServedTable) -> dict[str, str]:
        """Names and DuckDB types, as built."""
        if table in _VIEWS:
            return dict(_VIEWS[table].columns)
        if self._built and table.model:
            return published_columns(self.db, table)
        return columns_of(self.db, f"published.main.{table.name}")

    def _usable(self, place: str, table: ServedTable, columns: dict[str, str]) -> bool:
        """Whether the table is there with its columns; notes it when it is not."""
        if place == "snapshot":
            own = columns_of(self.db, f"published.main.{table.name}")
            if not own or own != columns:
                raise UsagePipelineError(
                    f"The published table {table.name} is not as built",
                    "Publish it with `usage-pipeline rollup`",
                )
            if self.served_is_own and not (self._built and table.model):
                return False  # compared with itself
            usable = columns_of(self.db, f"served.main.{table.name}") == columns
        elif place == "postgres":
            there = dict(
                self.db.execute(
                    self._remote(
                        "select attname::text, format_type(atttypid, atttypmod) from pg_attribute"
                        f" where attrelid = to_regclass('{self._published(table)}')"
                        " and attnum > 0 and not attisdropped"
                    )
                ).fetchall()
            )
            usable = there == {name: postgres_type(kind) for name, kind in columns.items()}
        else:
            try:
                self.db.execute(f"select {', '.join(columns)} from {self._parquet(table)} limit 0")
                usable = True
            except duckdb.Error:
                usable = False
        if not usable:
            self._note_unusable(place, table)
        return usable

    def _note_unusable(self, place: str, table: ServedTable) -> None:
        unlike = self._note(place, table)
        unlike.unusable = True
        unlike.lines = [f"{place} {table.name}: is missing, has other columns, or cannot be read"]

    def _expect(self, table: ServedTable, columns: dict[str, str], where: str) -> None:
        """Create `expected`: the rows that all places should hold."""
        self.db.execute("drop table if exists expected")
        names, key = ", ".join(columns), ", ".join(table.key)
        published = f"(from published.main.{table.name} where {where})"
        query = f"select {names} from {published}"
        if self._built and table.model:
            given = given_stamps(self.db, table)
            built = "".join(
                f", (select published_at from published.main.snapshot) as {c}"
                if c in given
                else f", {c}"
                for c in columns
            )
            query = f"select {built[2:]} from warehouse.main.{table.name} where {where}"
        if self._built and table.model and table.stamps:
            # A row that was lost there has no stamp, and gets a new one.
            stamps = ", ".join(f"coalesce(old.{c}, new.{c}) as {c}" for c in table.stamps)
            query = (
                f"select new.* replace ({stamps}) from ({query}) as new left join"
                f" (select distinct on ({key}) * from {published}) as old"
                f" on {same(table.key, 'old', 'new')}"
            )
        self.db.execute(f"create temp table expected as {query}")

    def _compare(self, place: str, table: ServedTable, columns: dict[str, str], where: str) -> None:
        wanted = self._text("expected", table, columns, "true")
        found = self._text(place, table, columns, where)
        self.db.execute(f"create or replace temp view wanted as {wanted}")
        try:
            self.db.execute(f"create or replace temp view found as {found}")
            digests = [self._digest(relation, table, columns) for relation in ("wanted", "found")]
            parts = sorted({part for part, *_ in digests[0] ^ digests[1]})
            if parts:
                self._rows_that_differ(place, table, columns, parts)
        except duckdb.Error as error:
            if place == "snapshot" or disk_is_full(error):
                raise
            if place == "postgres":
                url = publish_database_url(self._settings)
                raise database_error(error, url, _VARIABLE) from None
            self._note_unusable(place, table)

    def _digest(
        self, relation: str, table: ServedTable, columns: dict[str, str]
    ) -> set[tuple[str, int, int]]:
        """Day or month, rows, and a hash that does not depend on their order."""
        query = (
            f"select {_part(table)} as part, count(*), sum(hash({', '.join(columns)})::hugeint)"
            f" from {relation} group by part"
        )
        return set(self.db.execute(query).fetchall())

    def _rows_that_differ(
        self, place: str, table: ServedTable, columns: dict[str, str], parts: list[str]
    ) -> None:
        """Note them, and add them to the changes that would make the place whole."""
        names, key = ", ".join(columns), ", ".join(table.key)
        within = f"list_contains($parts::varchar[], {_part(table)})"
        self.db.execute(
            f"""
            create or replace temp table different as
            select sum(side) as side, {names}
            from (
                select 1 as side, {names} from wanted where {within}
                union all
                select -1 as side, {names} from found where {within}
            )
            group by {names}
            having sum(side) <> 0
            """,
            {"parts": parts},
        )
        unlike = self._note(place, table)
        ((rows,),) = self.db.execute(
            f"select count(*) from (select distinct {key} from different)"
        ).fetchall()
        unlike.rows += rows
        room = LINES_A_TABLE - len(unlike.lines)
        if room > 0:
            unlike.lines += self._described(place, table, columns, room)
        if table is not _IDENTITY:
            self._add_changes(place, table, columns)

    def _described(
        self, place: str, table: ServedTable, columns: dict[str, str], limit: int
    ) -> list[str]:
        key = ", ".join(table.key)
        rows = self.db.execute(f"""
            select found, wanted
            from (select {key}, different as wanted from different where side > 0) as new
            full join (select {key}, different as found from different where side < 0) as old
                on {same(table.key, "old", "new")}
            order by coalesce(wanted, found)
            limit {limit}
        """).fetchall()
        measure = "the warehouse" if self._built and table.model else "what was published"
        lines = []
        for found, wanted in rows:
            row = found or wanted
            places = [table.dated, *table.key] if table.dated else table.key
            at = " ".join(f"{column}={row[column]}" for column in dict.fromkeys(places))
            where = f"{place} {table.name} {at}"
            if not found:
                lines.append(f"{where}: the row is missing")
            elif not wanted:
                lines.append(f"{where}: the row is not in {measure}, or there more than once")
            else:
                values = (
                    f"{column} is {found[column]}, in {measure} {wanted[column]}"
                    for column in columns
                    if found[column] != wanted[column]
                )
                lines.append(f"{where}: {'; '.join(values)}")
        return lines

    def _add_changes(self, place: str, table: ServedTable, columns: dict[str, str]) -> None:
        """As publishing takes them: keys to remove (side -1), rows to add (side 1)."""
        name = Delta(table, columns, place=f"{place}_").changes
        typed = ", ".join(_typed(column, kind) for column, kind in columns.items())
        self.db.execute(f"""
            create temp table if not exists {name} as
            select 1 as side, {", ".join(columns)} from expected limit 0
        """)
        self.db.execute(f"""
            create or replace temp table typed as select {typed} from different;
            insert into {name} by name select -1 as side, * from typed;
            insert into {name} by name select 1 as side, e.* from expected as e
            semi join typed as t on {same(table.key, "e", "t")};
        """)

    def _note(self, place: str, table: ServedTable) -> Unlike:
        return self._unlike.setdefault((place, table.name), Unlike(place, table.name))

    def _text(self, place: str, table: ServedTable, columns: dict[str, str], where: str) -> str:
        """A query for the rows with every value as text, spelled alike from all places."""
        if place == "postgres":
            relation = self._remote(
                f"select {', '.join(_remote_text(c, kind) for c, kind in columns.items())}"
                f" from {self._published(table)} where {where}"
            )
            return (
                "select "
                + ", ".join(
                    f"{_sorted_json(c)} as {c}" if kind == "JSON" else c
                    for c, kind in columns.items()
                )
                + f" {relation}"
            )
        relation = {
            "expected": "expected",
            "snapshot": f"served.main.{table.name}",
            "parquet": self._parquet(table),
        }[place]
        values = ", ".join(f"{_local_text(c, kind)} as {c}" for c, kind in columns.items())
        return f"select {values} from {relation} where {where}"

    def _remote(self, query: str) -> str:
        escaped = query.replace("'", "''")
        return f"from postgres_query('remote', '{escaped}')"

    def _published(self, table: ServedTable) -> str:
        return f'"{self._settings.publish_schema}".{table.name}'

    def _parquet(self, table: ServedTable) -> str:
        files = f"{quoted(self._settings.serving_dir)}/parquet/{table.name}/**/*.parquet"
        hive = ", hive_types = {'month': date}" if table.dated else ""
        return f"read_parquet('{files}', hive_partitioning = {bool(table.dated)}{hive})"


def _all_rows(table: ServedTable) -> str:
    return _VIEWS[table].telling if table in _VIEWS else "true"


def _by_month(days: DayRange) -> list[DayRange]:
    pieces, start = [], days.start
    while start < days.end:
        pieces.append(DayRange(start, min(next_month(start), days.end)))
        start = pieces[-1].end
    return pieces


def _local_text(column: str, kind: str) -> str:
    if kind == INSTANT:
        return f"strftime({column} at time zone 'UTC', '%Y-%m-%d %H:%M:%S.%f')"
    text = f"cast({column} as varchar)"
    return _sorted_json(text) if kind == "JSON" else text


def _remote_text(column: str, kind: str) -> str:
    if kind == INSTANT:
        return f"to_char({column} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') as {column}"
    if kind == "DATE":
        return f"to_char({column}, 'YYYY-MM-DD') as {column}"
    return f"{column}::text as {column}"


def _sorted_json(text: str) -> str:
    """Postgres orders the keys of a document, DuckDB keeps them as written."""
    document = f"try_cast(try_cast({text} as json) as map(varchar, varchar))"
    return f"coalesce(cast(list_sort(map_entries({document})) as varchar), {text})"


def _part(table: ServedTable) -> str:
    """The day or month of a row, as text; empty where there is none."""
    return f"coalesce({table.dated}, '')" if table.dated else "''"


def _typed(column: str, kind: str) -> str:
    if kind == "JSON":
        return f"null::json as {column}"
    text = f"{column} || '+00'" if kind == INSTANT else column
    return f"try_cast({text} as {kind}) as {column}"
