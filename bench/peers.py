"""What the pipeline is measured against, each as its own documentation advises.

Each function runs in a worker, imports its package first and times the rest. Rollups leave their
cells as Parquet or CSV, for `compare`; the time includes writing them where the peer writes them.
"""

from __future__ import annotations

import subprocess
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.shape import TYPES
from bench.worker import Stopwatch

_BOUND = "99999999999999999999999999999.9999999995"


def copy(url: str, psql: str, day: str, columns: str) -> dict[str, Any]:
    """The limit: the rows of a day leave Postgres in its binary format and are thrown away.

    psql, because Python would be called once a row; the time is what psql itself measures.
    """
    query = f"copy (select {columns} from usage_events where {_window(day)}) to stdout"
    clock = Stopwatch()
    printed = subprocess.run(
        [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", "-"],
        input=f"\\timing on\n\\o /dev/null\n{query} (format binary);\n",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seconds = round(float(printed.split("Time: ")[1].split()[0]) / 1000, 4)
    return {**clock.spent(), "seconds": seconds}


def prepare_aggregates(url: str) -> None:
    """Create the in-database function, or empty its table again."""
    import psycopg2

    definition = files("bench").joinpath("aggregate_usage.sql").read_text("utf-8")
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass('usage_aggregations')")
        exists = cursor.fetchone() != (None,)
        cursor.execute("truncate usage_aggregations" if exists else definition)


def aggregate(url: str, day: str) -> dict[str, Any]:
    """`aggregate_usage` of a day: inserts into an empty table, else updates all rows."""
    import psycopg2

    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        clock = Stopwatch()
        start, end = _bounds(day)
        cursor.execute("select aggregate_usage('daily', %s, %s)", (start, end))
        connection.commit()
        return clock.spent()


def aggregate_cells(url: str, cells: str) -> None:
    """What the function has made, as CSV."""
    import psycopg2

    with (
        psycopg2.connect(url) as connection,
        connection.cursor() as cursor,
        Path(cells).open("wb") as file,
    ):
        cursor.copy_expert(
            "copy (select user_id, org_id, metric_type, total_quantity, event_count "
            "from usage_aggregations) to stdout (format csv, header)",
            file,
        )


def pandas(url: str, day: str, cells: str) -> dict[str, Any]:
    """`read_sql` through ADBC into Arrow types, as pandas advises, and `groupby`.

    Postgres casts the quantity, which ADBC would hand over as text, to a whole number of
    billionths in two columns: pandas sums integers exactly and decimals not at all quickly.
    """
    import adbc_driver_postgresql.dbapi
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    query = (
        "select user_id::text as user_id, org_id::text as org_id, event_type as metric_type, "
        "trunc(q)::bigint as whole, ((q - trunc(q)) * 1000000000)::bigint as billionths "
        "from (select *, quantity::numeric(38, 9) as q from usage_events "
        f"where {_window(day)} and quantity > -{_BOUND} and quantity < {_BOUND} "
        f"and event_type in ({_types()})) as events"
    )
    clock = Stopwatch()
    with adbc_driver_postgresql.dbapi.connect(url) as connection:
        events = pd.read_sql(query, connection, dtype_backend="pyarrow")
    totals = events.groupby(
        ["user_id", "org_id", "metric_type"], dropna=False, sort=False, as_index=False
    ).agg(whole=("whole", "sum"), billionths=("billionths", "sum"), event_count=("whole", "size"))
    table = pa.Table.from_pandas(totals, preserve_index=False)
    whole = table["whole"].cast(pa.decimal128(19, 0))
    units = table["billionths"].cast(pa.decimal128(19, 0))
    billionth = pa.scalar("0.000000001").cast(pa.decimal128(10, 9))
    total = pc.add(whole, pc.multiply(units, billionth)).cast(pa.decimal128(38, 9))
    _write(table.append_column("total_quantity", total), cells)
    return clock.spent()


def polars(events: str, cells: str) -> dict[str, Any]:
    """The lazy, streaming engine over the landed Parquet."""
    import polars as pl

    clock = Stopwatch()
    (
        pl.scan_parquet(events)
        .filter(pl.col("quantity").is_not_null() & pl.col("event_type").is_in(TYPES))
        .group_by("user_id", "org_id", pl.col("event_type").alias("metric_type"))
        .agg(
            pl.col("quantity").sum().alias("total_quantity"),
            pl.len().cast(pl.Int64).alias("event_count"),
        )
        .sink_parquet(cells, engine="streaming")
    )
    return clock.spent()


def chdb(events: str, cells: str) -> dict[str, Any]:
    """ClickHouse in the process over the landed Parquet, written by `into outfile`."""
    import chdb

    clock = Stopwatch()
    chdb.query(
        "select user_id, org_id, event_type as metric_type, "
        "cast(sum(quantity) as Decimal(38, 9)) as total_quantity, "
        "toInt64(count()) as event_count "
        f"from file('{events}', Parquet) where quantity is not null and event_type in ({_types()}) "
        f"group by user_id, org_id, event_type into outfile '{cells}' format Parquet",
        "Null",
    )
    return clock.spent()


def dlt(url: str, day: str, backend: Any, directory: str) -> dict[str, Any]:
    """dlt's `sql_table` of one day into a DuckDB file, with a back-end of its choice."""
    import dlt as library
    import duckdb
    from dlt.sources.sql_database import sql_table

    bounds = _bounds(day)
    options: dict[str, dict[str, Any]] = {
        "sqlalchemy": {},
        "pyarrow": {"chunk_size": 100_000, "backend_kwargs": {"tz": "UTC"}},
        "connectorx": {"backend_kwargs": {"conn": _socket_in_authority(url)}},
    }

    def only_day(query: Any, table: Any) -> Any:
        return query.where(table.c.created_at >= bounds[0], table.c.created_at < bounds[1])

    def fixed_scale(column_type: Any) -> Any:
        from sqlalchemy import Numeric

        return Numeric(38, 9) if isinstance(column_type, Numeric) else column_type

    path = Path(directory) / "events.duckdb"
    clock = Stopwatch()
    pipeline = library.pipeline(
        "bench",
        pipelines_dir=directory,
        destination=library.destinations.duckdb(str(path)),
        dataset_name="loaded",
    )
    events = sql_table(
        credentials=url,
        table="usage_events",
        backend=backend,
        query_adapter_callback=only_day,
        type_adapter_callback=fixed_scale,
        reflection_level="full_with_precision",
        **options[backend],
    )
    pipeline.run(events, write_disposition="replace")
    spent = clock.spent()
    with duckdb.connect(str(path), read_only=True) as db:
        described = db.execute("describe loaded.usage_events").fetchall()
    types = {name: kind for name, kind, *_ in described}
    return {**spent, "quantity_type": types["quantity"], "database": path.name}


def _bounds(day: str) -> tuple[str, str]:
    first = date.fromisoformat(day)
    return f"{first} 00:00:00+00", f"{first + timedelta(days=1)} 00:00:00+00"


def _window(day: str) -> str:
    start, end = _bounds(day)
    return f"created_at >= '{start}' and created_at < '{end}'"


def _types() -> str:
    return ", ".join(f"'{name}'" for name in TYPES)


def _socket_in_authority(url: str) -> str:
    """connectorx wants the socket's directory where the host's name stands, percent-encoded."""
    base, _, host = url.partition("?host=")
    user, _, database = base.removeprefix("postgresql://").partition("@/")
    return f"postgresql://{user}@{host.replace('/', '%2F')}:5432/{database}"


def _write(table: Any, path: str) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        table.select(["user_id", "org_id", "metric_type", "total_quantity", "event_count"]), path
    )
