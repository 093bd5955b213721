"""Published tables in the schema of a Postgres."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
from psycopg2.extensions import cursor as Cursor

from usage_pipeline.days import ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.duckdb_files import quoted
from usage_pipeline.publishing.changes import Delta, within
from usage_pipeline.publishing.identity import (
    ONCE,
    SCHEMA_VERSION,
    STAMPED,
    Snapshot,
    written_by_newer,
)
from usage_pipeline.serving import as_of
from usage_pipeline.serving.tables import PUBLISHES, SERVED_TABLES, STAMPS
from usage_pipeline.serving.views import RELATIONS, VIEWS, View

READER_ROLE = "usage_reader"
ROWS_A_COPY = 1_000_000  # what is sorted in memory and passes through the scratch file at once
NULLS_NOT_DISTINCT = 150000  # the first version of Postgres whose unique indexes can do that
_ATTEMPTS = 30  # of two seconds each, to change what others read
# Stands for null in the unique indexes of Postgres 13 and 14, beside a column that says so.
_NO_UUID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class PostgresTables:
    """The publish schema, written in the caller's transaction.

    A day or month that is new, or mostly so, is loaded whole, in the place of what is deleted by
    its date; elsewhere changed rows are deleted by their key and copied in. No statement but those
    of a comparison reads a table's history, and none shuts readers out for longer than a commit.

    Args:
        cursor: of a connection to the publish database.
        schema: owned by the pipeline; created when absent.
        rows_file: scratch file through which rows pass, so that none pass through Python.
    """

    def __init__(self, cursor: Cursor, schema: str, rows_file: Path) -> None:
        self._cursor = cursor
        self._schema = schema
        self._rows_file = rows_file
        self._grants: dict[str, list[tuple[str, str]]] = {}
        self._loaded: dict[str, tuple[str, list[str]]] = {}

    def write(
        self,
        db: duckdb.DuckDBPyConnection,
        source: str,
        deltas: Sequence[Delta],
        base: Snapshot | None,
        snapshot: Snapshot,
        *,
        repairing: bool = False,
        may_shrink: bool = False,
    ) -> None:
        """Apply the deltas, or compare whole tables when Postgres does not hold `base`.

        Args:
            db: with the Postgres extension loaded, and `source` attached, which has all tables.
            may_shrink: whether an operator said that days of another home may go.

        Raises:
            UsagePipelineError: a newer release wrote the schema, tables of others are in it, it
                has days that the source lacks, or views of others depend on a table that has to
                be made anew.
        """
        recorded, version = self._open()
        if recorded == snapshot.snapshot_id and not repairing:
            return
        if self._widen(deltas):  # before the rows, for its lock would keep readers waiting for them
            self._cursor.connection.commit()
            recorded, version = self._open()
        follows = base is not None and recorded == base.snapshot_id
        if recorded and not follows and not may_shrink:
            self._require_days_kept(db, source, first=base is None)
        for delta in deltas:
            unstamped = version < STAMPED and {*STAMPS} <= delta.columns.keys()
            if self._create(delta):
                self._load(db, source, delta)
                self._index(delta)
                self._cursor.execute(f"analyze {self._name(delta.table.name)}")
                continue
            self._index(delta)
            if unstamped or (follows and delta.whole):
                self._replace(db, source, delta)
            elif not follows or (version < ONCE and delta.table.name == PUBLISHES):
                self._apply_comparison(db, source, delta)
            elif not delta.empty:
                self._apply_changes(db, source, delta)
        for view in VIEWS:
            self._create_view(view)
        self._create_functions()
        self._cursor.execute(f"delete from {self._name('snapshot')}")
        self._cursor.execute(
            f"insert into {self._name('snapshot')}"
            " (snapshot_id, published_at, run_id, timezone, schema_version)"
            " values (%(snapshot_id)s, %(published_at)s, %(run_id)s, %(timezone)s,"
            " %(schema_version)s)",
            asdict(snapshot),
        )
        self._grant()
        self._drop_retired()
        self._attach()

    def _open(self) -> tuple[str | None, int]:
        """Lock the schema against other writers; gives the id and the version of what it holds."""
        self._cursor.execute(
            "set client_encoding to 'UTF8'; set local work_mem to '64MB';"
            " select pg_advisory_xact_lock(hashtext('usage-pipeline'), hashtext(%s))",
            (self._schema,),
        )
        # `create … if not exists` wants the privilege to create even when there is nothing to do.
        if not self._fetch("select 1 from pg_namespace where nspname = %s", self._schema):
            self._cursor.execute(f'create schema "{self._schema}"')
        if "snapshot_id" not in dict(self._attributes("snapshot")):
            self._require_no_tables()
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
        if not recorded:
            return None, SCHEMA_VERSION
        if recorded[0][1] > SCHEMA_VERSION:
            raise written_by_newer(f"Schema {self._schema} in Postgres", recorded[0][1])
        return str(recorded[0][0]), int(recorded[0][1])

    def _require_no_tables(self) -> None:
        """Refuse a schema with tables of our names that we did not make: they would be replaced."""
        ours = ["snapshot", *RELATIONS]
        found = self._fetch(
            "select relname from pg_class where relnamespace = quote_ident(%s)::regnamespace"
            " and relname = any(%s) order by relname",
            self._schema,
            ours,
        )
        if found:
            raise UsagePipelineError(
                f"Schema {self._schema} in Postgres has tables that this pipeline did not make: "
                + ", ".join(name for (name,) in found),
                "Set USAGE_PUBLISH_SCHEMA to a schema for the pipeline alone; it is created",
            )

    def _require_days_kept(self, db: duckdb.DuckDBPyConnection, source: str, first: bool) -> None:
        """Refuse to take days away that another home, or a later state of this one, published.

        A run that was killed between the places has its days here still, or pending.

        Args:
            first: whether this home publishes for the first time, so that it knows of no number
                that changed; then no day may have fewer events than readers see.
        """
        if not self._attributes("usage_daily"):
            return
        theirs = self._fetch(
            f"select usage_date, sum(event_count)::bigint from {self._name('usage_daily')}"
            " group by usage_date order by usage_date"
        )
        events = "select usage_date, sum(event_count) from {}.main.usage_daily group by usage_date"
        ours = dict(db.execute(events.format(source)).fetchall())
        days = f"select usage_date from {source}.main.published_days"
        known = {day for (day,) in db.execute(days).fetchall()}
        fewer = [d for d, n in theirs if d not in known or (first and ours.get(d, 0) < n)]
        if fewer:
            ranges = ranges_of_days(fewer)
            more = f" and {len(ranges) - 3} more ranges" if ranges[3:] else ""
            raise UsagePipelineError(
                f"Schema {self._schema} in Postgres was published by another USAGE_HOME, or by a"
                f" later state of this one, and has more events of"
                f" {', '.join(map(str, ranges[:3]))}{more}",
                "Roll these days up as well, restore that USAGE_HOME, publish into another"
                " USAGE_PUBLISH_SCHEMA, or take what is here with"
                " `usage-pipeline rollup --allow-fewer-events`",
            )

    def _widen(self, deltas: Sequence[Delta]) -> bool:
        """Add new last columns to tables in place, with what others granted and built on them;
        True when there were any."""
        widened = False
        for delta in deltas:
            there, wanted = self._attributes(delta.table.name), _attributes(delta.columns)
            new = wanted[len(there) :]
            if there and new and wanted[: len(there)] == there:
                table = self._name(delta.table.name)
                added = ", ".join(f"add column {name} {kind}" for name, kind in new)
                self._alone(table, f"alter table {table} {added}", _ATTEMPTS)
                widened = True
        return widened

    def _create(self, delta: Delta) -> bool:
        """Create the table when it is absent or has other columns; True when it did."""
        wanted = _attributes(delta.columns)
        if self._attributes(delta.table.name) == wanted:
            return False
        if self._attributes(delta.table.name):
            for view in VIEWS:
                if delta.table.name in view.tables:
                    self._drop(view.name)
            self._drop(delta.table.name)
        columns = ", ".join(f"{column} {kind}" for column, kind in wanted)
        self._cursor.execute(f"create table {self._name(delta.table.name)} ({columns})")
        self._grant_again(delta.table.name)
        return True

    def _create_view(self, view: View) -> None:
        name = self._name(view.name)
        query = view.definition("jsonb", f'"{self._schema}".')
        self._cursor.execute("drop view if exists pg_temp.wanted")
        self._cursor.execute(f"create temp view wanted as {query}")
        defined = (
            "select pg_get_viewdef(oid) from pg_class where oid = to_regclass(%s) and relkind = 'v'"
        )
        if self._fetch(defined, name) != self._fetch(defined, "pg_temp.wanted"):
            self._drop(view.name)
            self._cursor.execute(f"create view {name} as {query}")
            self._grant_again(view.name)
        self._cursor.execute("drop view pg_temp.wanted")

    def _create_functions(self) -> None:
        """Create or replace those that are not as they should be; their grants stay."""
        schema = f'"{self._schema}".'
        for name, query in (
            (as_of.DAILY, as_of.daily(schema)),
            (as_of.MONTHLY, as_of.monthly("postgres", schema)),
        ):
            function = f"{self._name(name)}(timestamptz)"
            defined = "select prosrc from pg_proc where oid = to_regprocedure(%s)"
            if self._fetch(defined, function) != [(query,)]:
                columns = ", ".join(f"{c} {kind}" for c, kind in as_of.COLUMNS[name].items())
                self._cursor.execute(
                    f"create or replace function {self._name(name)}(moment timestamptz)"
                    f" returns table ({columns}) language sql stable parallel safe as $${query}$$"
                )

    def _drop(self, relation: str) -> None:
        """Drop a table or view, if it is there; what was granted on it is granted again later."""
        kinds = self._fetch(
            "select case relkind when 'v' then 'view' else 'table' end from pg_class"
            " where oid = to_regclass(%s)",
            self._name(relation),
        )
        for (kind,) in kinds:
            self._grants[relation] = self._granted(relation)
            for child in self._children(relation):
                self._cursor.execute(f"drop table {self._name(child)}")
            try:
                name = self._name(relation)
                self._alone(name, f"drop {kind} {name}", _ATTEMPTS)
            except psycopg2.errors.DependentObjectsStillExist as error:
                dependents = (error.diag.message_detail or "").replace("\n", ", ")
                raise UsagePipelineError(
                    f"{self._name(relation)} is made anew, but is in use: {dependents}",
                    "Drop what depends on it, publish with `usage-pipeline rollup`, and create it"
                    " again",
                ) from None

    def _alone(self, relation: str, statement: str, attempts: int) -> None:
        """Execute what shuts readers out. New ones wait behind it while older ones are waited for,
        so it gives up after a moment, lets them through and tries again.

        Raises:
            UsagePipelineError: a reader held the relation all the time.
        """
        for _ in range(attempts):
            self._cursor.execute("savepoint alone; set local lock_timeout to '2s'")
            try:
                self._cursor.execute(f"{statement}; set local lock_timeout to 0")
                return
            except psycopg2.errors.LockNotAvailable:
                self._cursor.execute("rollback to savepoint alone")
        raise UsagePipelineError(
            f"{relation} has to change, but a transaction has been reading it all the time",
            "End that transaction, which pg_stat_activity shows, and run again",
        )

    def _granted(self, relation: str) -> list[tuple[str, str]]:
        """The statements that grant again what was granted on a relation and its columns; each with
        its column, '' for all."""
        return [
            (column, statement)
            for column, statement in self._fetch(
                "select coalesce(attname, ''),"
                " format('grant %%s%%s on %%s to %%s%%s', privilege_type, columns, %s,"
                " coalesce(quote_ident(rolname), 'public'),"
                " case when is_grantable then ' with grant option' else '' end)"
                " from (select '' as columns, null as attname, relowner, granted.*"
                "       from pg_class, aclexplode(relacl) as granted where oid = to_regclass(%s)"
                "       union all"
                "       select format(' (%%I)', attname), attname, relowner, granted.*"
                "       from pg_class, pg_attribute, aclexplode(attacl) as granted"
                "       where attrelid = pg_class.oid and pg_class.oid = to_regclass(%s)) as grants"
                " left join pg_roles on pg_roles.oid = grantee"
                " where grantee <> relowner",
                *(self._name(relation),) * 3,
            )
        ]

    def _grant_again(self, relation: str) -> None:
        there = {"", *(name for name, _ in self._attributes(relation))}
        for column, statement in self._grants.pop(relation, []):
            if column in there:
                self._cursor.execute(statement)

    def _attributes(self, table: str) -> list[tuple[Any, ...]]:
        """Names and types of a table's columns; empty when there is no such table."""
        return self._fetch(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped"
            " order by attnum",
            self._name(table),
        )

    def _index(self, delta: Delta, table: str = "") -> None:
        """Create the indexes that the table, or another one for its rows, lacks; after the first
        load, because that is faster."""
        table = table or delta.table.name
        there = {
            name
            for (name,) in self._fetch(
                "select relname from pg_index join pg_class on pg_class.oid = indexrelid"
                " where indrelid = to_regclass(%s)",
                self._name(table),
            )
        }
        for name, definition in self._indexes(delta, table):
            if name not in there:
                self._cursor.execute(definition.format(index=name, table=self._name(table)))

    def _indexes(self, delta: Delta, name: str) -> Iterator[tuple[str, str]]:
        """Names and definitions. The key is one index that also finds its rows: by the date first,
        where the key has one, so that a night's rows lie side by side in it."""
        table = delta.table
        key = ", ".join(_key_columns(delta).values())
        if not table.nullable:
            yield f"{name}_pkey", f"alter table {{table}} add primary key ({key})"
        elif self._cursor.connection.server_version >= NULLS_NOT_DISTINCT:
            unique = "create unique index {index} on {table}"
            yield f"{name}_grain", f"{unique} ({key}) nulls not distinct"
        else:  # rows with a null are unique by an index of their own
            unique = "create unique index {index} on {table}"
            yield f"{name}_grain", f"{unique} ({key})"
            nulls = " or ".join(f"{column} is null" for column in table.nullable)
            values = ", ".join(f"({value})" for value in _key_values(delta))
            yield f"{name}_nulls", f"{unique} ({values}) where {nulls}"
        dated = () if table.dated in (None, table.key[0]) else ((table.dated,),)
        for columns in (*dated, *table.indexes):
            columns_index = f"{name}_{'_'.join(map(str, columns))}_idx"
            listed = ", ".join(map(str, columns))
            yield columns_index, f"create index {{index}} on {{table}} ({listed})"

    def _drop_retired(self) -> None:
        """Drop the indexes of earlier releases, or leave them to a later publish when a reader
        holds their table."""
        for table in SERVED_TABLES:
            for name in (f"{table.name}_key", f"{table.name}_user_id_org_id_{table.dated}_idx"):
                if self._fetch("select to_regclass(%s)", self._name(name)) != [(None,)]:
                    with suppress(UsagePipelineError):
                        self._alone(self._name(table.name), f"drop index {self._name(name)}", 1)

    def _apply_changes(self, db: duckdb.DuckDBPyConnection, source: str, delta: Delta) -> None:
        table, target = delta.table, self._name(delta.table.name)
        elsewhere = f"not {within(table, delta.replaced)}"
        if delta.change.updated or delta.change.deleted:
            keys = list(dict.fromkeys([*table.key, *([table.dated] if table.dated else [])]))
            self._temporary("removed", f"select {', '.join(keys)} from {target} limit 0")
            gone = f"from {delta.changes} where side < 0 and {elsewhere}"
            self._copy(db, gone, "removed", keys)
            self._delete_removed(delta)
        if delta.replaced:
            self._cursor.execute(f"delete from {target} where {within(table, delta.replaced)}")
        if delta.fresh or delta.replaced:
            parts = within(table, (*delta.fresh, *delta.replaced))
            self._load(db, source, delta, parts, ordered=True)
        if delta.change.updated or delta.change.inserted:
            come = f"from {delta.changes} where side > 0 and {elsewhere}"
            self._copy(db, f"{come} order by {_order(delta)}", target, delta.columns)

    def _replace(self, db: duckdb.DuckDBPyConnection, source: str, delta: Delta) -> None:
        """Replace all rows. Those of a table that is replaced night by night are loaded into a new
        child of it, whose indexes are built at once; readers find it there from the commit on."""
        table, target = delta.table, self._name(delta.table.name)
        there = self._children(table.name)
        empty = [c for c in there if not self._fetch(f"select 1 from only {self._name(c)} limit 1")]
        self._cursor.execute(f"delete from {target}")
        if table.as_of is None:
            self._load(db, source, delta, ordered=True)
            return
        names = (f"{table.name}_{number}" for number in range(1, len(there) + 2))
        child = next(name for name in names if name not in there)
        self._cursor.execute(f"create table {self._name(child)} (like {target})")
        self._load(db, source, delta, into=self._name(child))
        self._index(delta, child)
        self._cursor.execute(f"analyze {self._name(child)}")
        self._loaded[table.name] = (child, empty)

    def _attach(self) -> None:
        """Make loaded tables children of theirs, in the place of those that were emptied before
        this publish: a transaction that began before it still finds the rows of then.

        Readers wait for the commit only. When one keeps its table too long, the rows are copied.
        """
        for table, (child, empty) in self._loaded.items():
            target, loaded = self._name(table), self._name(child)
            dropped = "".join(f"; drop table {self._name(name)}" for name in empty)
            try:
                # Nobody may be between looking for the children and reading them.
                lock = f"lock table {target} in access exclusive mode"
                self._alone(target, f"{lock}; alter table {loaded} inherit {target}{dropped}", 1)
            except UsagePipelineError:
                self._cursor.execute(
                    f"insert into {target} select * from {loaded}; drop table {loaded}"
                )

    def _children(self, table: str) -> list[str]:
        return [
            str(name)
            for (name,) in self._fetch(
                "select relname from pg_inherits join pg_class on pg_class.oid = inhrelid"
                " where inhparent = to_regclass(%s) order by relname",
                self._name(table),
            )
        ]

    def _apply_comparison(self, db: duckdb.DuckDBPyConnection, source: str, delta: Delta) -> None:
        """Write what differs between the table and all rows of the snapshot, if anything."""
        target = self._name(delta.table.name)
        self._temporary("complete", f"select * from {target} limit 0")
        self._load(db, source, delta, into="complete")
        self._temporary("removed", f"select * from {target} except select * from complete")
        self._temporary("added", f"select * from complete except select * from {target}")
        self._delete_removed(delta)
        self._cursor.execute(f"insert into {target} select * from added")

    def _delete_removed(self, delta: Delta) -> None:
        """Delete the rows whose keys are in `removed`, each found by the index of the key.

        One statement for each way in which keys have nulls, since `is not distinct from` uses no
        index. Other ways to join are shut, because a planner that does not know the newest days
        takes them for empty.
        """
        table, key = delta.table, _key_columns(delta)
        self._cursor.execute(
            "analyze removed; set local enable_seqscan to off; set local enable_hashjoin to off;"
            " set local enable_mergejoin to off; set local enable_bitmapscan to off"
        )
        nulls = ", ".join(f"{column} is null" for column in table.nullable) or "null"
        for ways in self._fetch(f"select distinct {nulls} from removed"):
            absent = {c for c, is_null in zip(table.nullable, ways, strict=False) if is_null}
            same = " and ".join(
                f"old.{column} is null and removed.{column} is null"
                if column in absent
                else f"{_of('old', column, value)} = {_of('removed', column, value)}"
                for column, value in key.items()
            )
            self._cursor.execute(
                f"delete from {self._name(table.name)} as old using removed where {same}"
            )
        self._cursor.execute(
            "reset enable_seqscan; reset enable_hashjoin; reset enable_mergejoin;"
            " reset enable_bitmapscan"
        )

    def _load(
        self,
        db: duckdb.DuckDBPyConnection,
        source: str,
        delta: Delta,
        where: str = "true",
        *,
        into: str = "",
        ordered: bool = False,
    ) -> None:
        """Copy rows of the snapshot, days or months together up to a number of rows.

        Args:
            into: another table than the delta's.
            ordered: by an index: neighbouring rows meet the same pages, a fifth less work.
        """
        table, rows = delta.table, f"from {source}.main.{delta.table.name}"
        order = f" order by {_order(delta)}" if ordered else ""
        batches: list[list[Any]] = [[]]
        if table.dated:
            size = 0
            counted = f"select {table.dated}, count(*) {rows} where {where} group by 1 order by 1"
            for part, count in db.execute(counted).fetchall():
                if size and size + count > ROWS_A_COPY:
                    batches.append([])
                    size = 0
                batches[-1].append(part)
                size += count
        for parts in batches:
            wanted = within(table, parts) if table.dated else where
            target = into or self._name(table.name)
            self._copy(db, f"{rows} where {wanted}{order}", target, delta.columns)

    def _copy(
        self, db: duckdb.DuckDBPyConnection, rows: str, target: str, columns: Iterable[str]
    ) -> None:
        names = ", ".join(columns)
        db.execute(
            f"copy (select {names} {rows}) to '{quoted(self._rows_file)}' (format postgres_binary)"
        )
        with self._rows_file.open("rb") as file:
            self._cursor.copy_expert(f"copy {target} ({names}) from stdin (format binary)", file)

    def _grant(self) -> None:
        """Let dashboards read, where an administrator has made the role for them."""
        # Not on all tables of the schema: another role's view there is not ours to grant.
        names = ("snapshot", *RELATIONS)
        functions = ", ".join(f"{self._name(name)}(timestamptz)" for name in as_of.COLUMNS)
        if has_readers(self._cursor):
            self._cursor.execute(
                f'grant usage on schema "{self._schema}" to {READER_ROLE};'
                f" grant select on {', '.join(map(self._name, names))} to {READER_ROLE};"
                f" grant execute on function {functions} to {READER_ROLE}"
            )

    def _temporary(self, name: str, query: str) -> None:
        self._cursor.execute(f"drop table if exists pg_temp.{name}")
        self._cursor.execute(f"create temp table {name} on commit drop as {query}")

    def _fetch(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        self._cursor.execute(query, parameters)
        return self._cursor.fetchall()

    def _name(self, table: str) -> str:
        return f'"{self._schema}".{table}'


def has_readers(cursor: Cursor) -> bool:
    """Whether an administrator has made the role for dashboards."""
    cursor.execute("select 1 from pg_roles where rolname = %s", (READER_ROLE,))
    return cursor.fetchone() is not None


def postgres_type(duckdb_type: str) -> str:
    """A DuckDB type as Postgres's `format_type` spells it."""
    renamed = {"VARCHAR": "text", "JSON": "jsonb"}
    return renamed.get(duckdb_type, duckdb_type.lower().replace("decimal", "numeric"))


def _attributes(columns: dict[str, str]) -> list[tuple[Any, ...]]:
    return [(column, postgres_type(kind)) for column, kind in columns.items()]


def _key_columns(delta: Delta) -> dict[str, str]:
    """What an index holds of each column of the key. Text that may be null is hashed: it may be of
    any length, and an index may not."""
    return {
        column: f"md5({column})"
        if column in delta.table.nullable and delta.columns[column] == "VARCHAR"
        else column
        for column in delta.table.key
    }


def _key_values(delta: Delta) -> Iterator[str]:
    """The same with two values for each that may be null, so that null is no value of any."""
    for column, value in _key_columns(delta).items():
        if column in delta.table.nullable:
            nothing = _NO_UUID if delta.columns[column] == "UUID" else ""
            yield f"{column} is null"
            yield f"coalesce({value}, '{nothing}')"
        else:
            yield value


def _of(relation: str, column: str, value: str) -> str:
    return value.replace(column, f"{relation}.{column}")


def _order(delta: Delta) -> str:
    return ", ".join((*delta.table.indexes, delta.table.key)[0])
