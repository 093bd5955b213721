"""Erasing a person: every layer without them, in the order of the flow, and the search that
proves it. How a landed table looks without a person is said in `erased_users`.

The search opens everything that the pipeline writes. The application's own tables are not among
it: erasing there is the application's task.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import duckdb

from usage_pipeline.alerts import limits
from usage_pipeline.days import ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import dagster_database_url, publish_database_url
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import compact, open_duckdb, quoted
from usage_pipeline.infra.postgres import connect
from usage_pipeline.landing import erased_users, lost_events
from usage_pipeline.landing.erasing import days_of_user, erase_user
from usage_pipeline.landing.landed_days import in_use, landed_manifests
from usage_pipeline.publishing import readers_copy
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import exports, published
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

# Where Dagster keeps what runs, materialisations, checks and sensors said. Its database may be
# the application's as well, whose tables are none of the pipeline's.
DAGSTER_TABLES = (
    "asset_check_executions",
    "asset_daemon_asset_evaluations",
    "asset_event_tags",
    "asset_keys",
    "backfill_tags",
    "bulk_actions",
    "concurrency_limits",
    "concurrency_slots",
    "daemon_heartbeats",
    "dynamic_partitions",
    "event_logs",
    "instance_info",
    "instigators",
    "job_ticks",
    "jobs",
    "kvs",
    "pending_steps",
    "run_tags",
    "runs",
    "secondary_indexes",
    "snapshots",
)

# Different bytes, of 16, below which an id is found by chance; of random ids one in 10^9 has fewer.
_BYTES_THAT_TELL = 8


@dataclass(frozen=True)
class Trace:
    """A place that holds a person's id.

    Attributes:
        place: a file below USAGE_HOME, with the table where it is a database; or a table in
            Postgres.
        rows: rows that hold the id; None where its bytes were found outside of rows, or in the
            file's name.
    """

    place: str
    rows: int | None


def erase(rollup: Rollup, user_id: UUID) -> list[Trace]:
    """Remove a person from every layer; totals stay, under a user_id that is null.

    Killed at any point, it is completed by erasing the same person again.

    Args:
        rollup: the steps; of the source only totals are read, for the audit.
        user_id: whom to erase.

    Returns:
        Places that hold the id all the same; empty when the person is erased.

    Raises:
        UsagePipelineError: the layers cannot be built, audited or published; what was published
            before then still is.
    """
    settings = rollup.settings
    rollup.progress("waiting for extractions and writers", 0, 1)
    with (
        in_use(settings, fcntl.LOCK_EX),
        writer.exclusive(settings, "erasing a person"),
    ):
        erased_users.add(settings, user_id)
        days = days_of_user(settings, user_id)
        # Before the files change: whatever happens, these days will be built from them.
        rollup.pending.landed(ranges_of_days(days))
        done = itertools.count(1)
        erase_user(
            settings,
            user_id,
            days,
            lambda day: rollup.progress(f"erasing from {day}", next(done), len(days)),
        )
    is_landed = bool(landed_manifests(settings))
    if is_landed:
        rollup.build_staging()
        rollup.build_days(())
        limits.forget(settings, user_id)  # before and after, since publishing judges what was not
        rollup.publish(f"erasure-{uuid4()}")
    limits.forget(settings, user_id)
    if is_landed:
        rollup.raise_alerts()
    with writer.exclusive(settings, "compacting"):
        for path in (settings.warehouse_path, published.own_path(settings)):
            if path.exists():
                rollup.progress(f"compacting {path.name}", 0, 1)
                compact(settings, path)
        if published.exists(settings):
            with scratch(settings) as work:
                readers_copy.serve(settings, work / settings.snapshot_path.name)
    exports.remove_user(settings, user_id)
    if published.exists(settings):
        rollup.announce_days()  # a person less is active on them; `status` would miss it
    return find_traces(rollup, user_id)


def find_traces(rollup: Rollup, user_id: UUID) -> list[Trace]:
    """Every place that holds a person's id: files, tables in DuckDB and in Postgres."""
    rollup.progress("searching", 0, 1)
    settings = rollup.settings
    with writer.exclusive(settings, "searching for a person"):
        found = [*_in_files(settings, user_id)]
    publish, dagster = publish_database_url(settings), dagster_database_url(settings)
    found += _in_postgres(
        publish,
        "USAGE_PUBLISH_DATABASE_URL",
        "select format('%%I.%%I', schemaname, tablename) from pg_tables where schemaname = %s",
        settings.publish_schema,
        user_id,
    )
    found += _in_postgres(
        dagster,
        "DAGSTER_PG_URL",
        "select name from unnest(%s) as name where to_regclass(name) is not null",
        list(DAGSTER_TABLES),
        user_id,
    )
    return found


def remedy(settings: Settings) -> str:
    """What to do when places still hold an id that was erased."""
    lost = ranges_of_days(lost_events.lost_days(settings))
    if not lost:
        return "Let running work end, erase the user again, and read docs/operations.md"
    return (
        f"The events of {', '.join(map(str, lost))} are damaged and gone from the source, so no "
        "table of these days can be built without the user. Put the days' directories back below "
        "landing/usage_events and roll the days up, or take what the source has: "
        f"{lost_events.allowing(lost)}. Then erase the user again"
    )


def check_known(settings: Settings, user_id: UUID, traces: Sequence[Trace]) -> None:
    """Refuse an id of which nothing is held and that was not erased before: a mistyped one.

    Raises:
        UsagePipelineError: nothing about the person is held.
    """
    if not traces and user_id not in erased_users.read(settings):
        raise UsagePipelineError(
            "Nothing about this user is held", "Check the id in the application's users"
        )


def _in_files(settings: Settings, user_id: UUID) -> Iterator[Trace]:
    databases = (settings.warehouse_path, settings.published_path, settings.snapshot_path)
    needles = _needles(user_id)
    with open_duckdb(settings, ":memory:") as db:
        for path in sorted(settings.home.rglob("*")):
            if not path.is_file() or settings.postgres_dir in path.parents:
                continue
            place = str(path.relative_to(settings.home))
            found = []
            if path.suffix == ".parquet" or path in databases:
                try:
                    # The readers' copy may be open to one of them who could refuse us.
                    served = path == settings.snapshot_path
                    with published.as_served(settings) if served else nullcontext(path) as file:
                        found = [*_in_tables(db, file, place, user_id)]
                except duckdb.Error:
                    if not path.exists():  # another run's temporary file
                        continue
                    found = [Trace(f"{place} (cannot be read)", None)]
            if not found and (str(user_id) in path.name or _holds(path, needles)):
                found = [Trace(place, None)]
            yield from found


def _in_tables(
    db: duckdb.DuckDBPyConnection, path: Path, place: str, user_id: UUID
) -> Iterator[Trace]:
    """The tables of a DuckDB or Parquet file; both compress, so that bytes say little."""
    if path.suffix == ".parquet":
        tables = {place: f"read_parquet('{quoted(path)}', hive_partitioning = false)"}
    else:
        db.execute(f"attach '{quoted(path)}' as {path.stem} (read_only)")
        names = db.execute(
            "select table_name from duckdb_tables() where database_name = ? order by 1",
            [path.stem],
        ).fetchall()
        tables = {f"{place}: {name}": f'{path.stem}.main."{name}"' for (name,) in names}
    for name, relation in tables.items():
        ((rows,),) = db.execute(
            f"select count(*) from {relation} as held"  # whole rows: nested columns, too
            " where regexp_matches(cast(held as varchar), ?)",
            [erased_users.id_pattern([user_id])],
        ).fetchall()
        if rows:
            yield Trace(name, rows)


def _needles(user_id: UUID) -> list[bytes]:
    """The forms in which a file can hold the id outside of compressed parts.

    An id that is nearly all zeros is in any binary file; of such a one only the spelled form tells.
    """
    spelled = [str(user_id).encode(), str(user_id).upper().encode()]
    if len(set(user_id.bytes)) < _BYTES_THAT_TELL:
        return spelled
    digits = [user_id.hex.encode(), user_id.hex.upper().encode()]
    # DuckDB keeps a UUID as a signed number of 128 bits, moved so that it sorts as its text.
    number = (user_id.int ^ (1 << 127)).to_bytes(16, "little")
    return [*spelled, *digits, user_id.bytes, number]


def _holds(path: Path, needles: Iterable[bytes]) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(data.find(needle) >= 0 for needle in needles)
    except (FileNotFoundError, ValueError):  # gone meanwhile, or empty
        return False


def _in_postgres(
    url: str, variable: str, tables: str, parameter: str | list[str], user_id: UUID
) -> Iterator[Trace]:
    """The tables that a query lists, all columns taken as text."""
    with connect(url, variable) as connection, connection.cursor() as cursor:
        cursor.execute(tables, (parameter,))
        for (table,) in cursor.fetchall():
            cursor.execute(
                f"select count(*) from {table} as held where held::text ~ %s",
                (erased_users.id_pattern([user_id]),),
            )
            (rows,) = cursor.fetchone() or (0,)
            if rows:
                yield Trace(f"Postgres: {table}", rows)
