"""DuckDB files: how they are opened and compacted, and the SQL that every one of them needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import duckdb

from usage_pipeline.infra.disk import scratch
from usage_pipeline.settings import Settings

MEMORY_LIMIT = "1GB"


@contextmanager
def open_duckdb(
    settings: Settings, path: Path | str, *, read_only: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB file (or `:memory:`) with bounded memory, spilling below USAGE_HOME, in UTC.

    Read-only, a file may be open in several threads at once, each as it is at that moment.
    """
    with scratch(settings) as spilled:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(spilled),
            "preserve_insertion_order": False,
        }
        # Attached, for a process opens a path once: whoever opens it as well is refused another
        # temp_directory, and is given the file that was there before.
        with duckdb.connect(":memory:" if read_only else str(path), config=config) as db:
            if read_only:
                name = Path(path).stem  # as views in the file say it that dbt made
                db.execute(f"attach '{quoted(Path(path))}' as \"{name}\" (read_only)")
                db.execute(f'use "{name}"')
            db.execute("set TimeZone = 'UTC'")
            yield db


def exact_sum(value: str) -> str:
    """SQL that adds up a DECIMAL(38,9); NULL when the sum, or one of its parts, cannot be held.

    As `total_of` in the dbt project's `totals.sql` does, which says how.
    """
    ordinary = f"{value} between -10000000000000000000 and 10000000000000000000"
    small = f"sum(case when {ordinary} then {value} else {value} - trunc({value}) end)"
    great = f"coalesce(sum(case when not {ordinary} then trunc({value}) end), 0)"
    whole, fraction = f"({great} + trunc({small}))", f"({small} - trunc({small}))"
    carry = f"case when sign({whole}) * sign({fraction}) < 0 then sign({whole}) else 0 end"
    return (
        f"case when count({value}) = count(*) then try_cast({whole} - {carry} as decimal(38, 9))"
        f" + cast({fraction} + {carry} as decimal(10, 9)) end"
    )


def quoted(path: Path) -> str:
    """A path as the inside of an SQL string: `attach` and `copy` take no parameters."""
    return str(path).replace("'", "''")


def compact(settings: Settings, path: Path) -> None:
    """Rewrite a DuckDB file, so that nothing of its deleted rows stays in its free blocks.

    The caller is the single writer; readers keep the old file until they reopen.
    """
    with scratch(settings) as work:
        with open_duckdb(settings, ":memory:") as db:
            # Read-only is refused by no reader, but leaves the log of a killed writer as it is.
            log = path.with_name(f"{path.name}.wal")
            db.execute(f"attach '{quoted(path)}' as old{'' if log.exists() else ' (read_only)'}")
            if log.exists():
                db.execute("checkpoint old")
            db.execute(f"attach '{quoted(work / path.name)}' as new")
            db.execute("copy from database old to new; checkpoint new")
        (work / path.name).replace(path)


def load_postgres_extension(db: duckdb.DuckDBPyConnection) -> None:
    """Load DuckDB's Postgres extension from its wheel: no download at run time."""
    # libpq's word for what a server has to send, which DuckDB takes for UTF-8 whatever it is.
    os.environ["PGCLIENTENCODING"] = "UTF8"
    wheel = files("duckdb_extension_postgres_scanner").joinpath(
        "extensions", f"v{duckdb.__version__}", "postgres_scanner.duckdb_extension"
    )
    if wheel.is_file():
        db.execute(f"load '{wheel}'")
    else:  # a platform without a wheel
        db.execute("install postgres")
        db.execute("load postgres")


def write_parquet(db: duckdb.DuckDBPyConnection, relation: str, path: Path) -> None:
    # This level takes a fifth less work than the usual one, for a twentieth more bytes.
    how = "format parquet, compression zstd, compression_level 1"
    db.execute(f"copy {relation} to '{quoted(path)}' ({how})")
