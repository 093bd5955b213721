"""Equal results or no time: differences between what two of the measured have made.

Runs in workers. Every comparison is of whole multisets of rows, in both directions, and a
quantity is equal only to its ninth digit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from bench.shape import TYPES

# Kept small, so that a comparison of a large history does not swap.
_MEMORY = "2GB"


def cells(ours: str, theirs: str) -> dict[str, Any]:
    """Cells of one day: keys, totals and counts.

    Args:
        ours: Parquet of `project.build`.
        theirs: Parquet or CSV of a peer.
    """
    # In no format may a total pass through a float on its way here.
    numbers = (
        "cast(total_quantity as decimal(38, 9)) as total_quantity, "
        "cast(event_count as bigint) as event_count"
    )
    if theirs.endswith(".csv"):
        reader = f"read_csv('{theirs}', header = true, all_varchar = true, nullstr = '')"
    else:
        reader = f"read_parquet('{theirs}')"
    with _memory() as db:
        kinds = {name: kind for name, kind, *_ in db.execute(f"describe from {reader}").fetchall()}
        if kinds["total_quantity"] in ("DOUBLE", "FLOAT"):
            return {"differences": -1, "why": "its totals are floats"}
        # Some peers know Parquet's UUID as 16 bytes only.
        user, org = (
            f"cast(hex({name}) as uuid)" if kinds[name] == "BLOB" else f"cast({name} as uuid)"
            for name in ("user_id", "org_id")
        )
        return _differences(
            db,
            "select cast(user_id as uuid), cast(org_id as uuid), metric_type, "
            f"{numbers} from read_parquet('{ours}')",
            f"select {user}, {org}, cast(metric_type as varchar), {numbers} from {reader}",
        )


def events(ours: str, theirs: str) -> dict[str, Any]:
    """All columns of all events of one day: landed Parquet against dlt's DuckDB file."""
    keys = "cast({0} as varchar) as {0}"
    columns = ", ".join(keys.format(n) for n in ("id", "user_id", "org_id", "event_type"))
    columns += ", cast(quantity as decimal(38, 9)) as quantity"
    columns += ", cast(created_at as timestamptz) as created_at"
    # The same document, however its keys are spaced and ordered; the benchmark's are flat.
    columns += (
        ", list_transform(list_sort(json_keys(event_data)), "
        "lambda name: name || '=' || json_extract(event_data, '$.' || name)) as event_data"
    )
    with _memory() as db:
        db.execute(f"attach '{theirs}' as theirs (read_only)")
        return _differences(
            db,
            f"select {columns} from read_parquet('{ours}')",
            f"select {columns} from theirs.loaded.usage_events",
        )


def history(url: str, ours: str, start: str, end: str) -> dict[str, Any]:
    """Totals and counts by day and metric: our cells against SQL over the source."""
    return _against_source(url, start, end, f"read_parquet('{ours}')")


def published(url: str, snapshot: str, start: str, end: str) -> dict[str, Any]:
    """The same for what readers of a snapshot see."""
    rows = f"snapshot.usage_daily where usage_date >= '{start}' and usage_date < '{end}'"
    return _against_source(url, start, end, rows, snapshot)


def landed(url: str, start: str, end: str, rows: int, total: str) -> dict[str, Any]:
    """Rows and exact sum of landed days against the source, invalid events included."""
    import psycopg2

    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select count(*), coalesce(sum(quantity::numeric(38, 9)) "
            "filter (where abs(quantity) < 1e29), 0) = %s::numeric "
            "from usage_events where created_at >= %s and created_at < %s",
            (total, f"{start} 00:00+00", f"{end} 00:00+00"),
        )
        found = cursor.fetchone()
    return {"differences": 0 if found == (rows, True) else 1}


def postgres_table(url: str, schema: str, snapshot: str) -> dict[str, Any]:
    """All usage rows that were published to Postgres against the snapshot, by a hash of each."""
    import psycopg2

    line = (
        "md5(concat_ws('|', user_id, coalesce(cast(org_id as varchar), ''), metric_type, "
        "total_quantity, {more}))"
    )
    tables = {"usage_daily": "usage_date, event_count", "usage_aggregations": "id, period_type"}
    different = 0
    with (
        psycopg2.connect(url) as connection,
        connection.cursor() as cursor,
        duckdb.connect(snapshot, read_only=True) as db,
    ):
        for table, more in tables.items():
            digits = f"left({line.format(more=more)}, 8)"
            cursor.execute(
                f"select count(*), sum(('x' || {digits})::bit(32)::bigint) from {schema}.{table}"
            )
            ours = db.execute(
                f"select count(*), sum(cast('0x' || {digits} as bigint)) from {table}"
            ).fetchone()
            different += cursor.fetchone() != ours
    return {"differences": different}


def files(folder: str, snapshot: str, month: str, end: str) -> dict[str, Any]:
    """Users and rows of the exported files against the snapshot."""
    with duckdb.connect(snapshot, read_only=True) as db:
        users, rows = db.execute(
            "select count(distinct user_id), count(*) from usage_daily "
            "where usage_date >= cast(? as date) and usage_date < cast(? as date)",
            [month, end],
        ).fetchall()[0]
        paths = list(Path(folder).glob("??/*.csv"))
        lines = sum(path.read_bytes().count(b"\n") - 1 for path in paths)
    return {"differences": int((len(paths), lines) != (users, rows))}


def _memory() -> duckdb.DuckDBPyConnection:
    db = duckdb.connect(config={"memory_limit": _MEMORY, "preserve_insertion_order": False})
    db.execute("set TimeZone = 'UTC'")
    return db


def _differences(db: duckdb.DuckDBPyConnection, ours: str, theirs: str) -> dict[str, Any]:
    (rows,) = db.execute(
        f"select count(*) from (({ours} except all {theirs}) "
        f"union all ({theirs} except all {ours})) as different"
    ).fetchall()[0]
    return {"differences": rows}


def _against_source(
    url: str, start: str, end: str, ours: str, snapshot: str | None = None
) -> dict[str, Any]:
    import psycopg2

    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
        cursor.execute(
            "select created_at::date, event_type, sum(quantity::numeric(38, 9)), count(*) "
            "from usage_events where created_at >= %s and created_at < %s "
            "and abs(quantity) < 1e29 and event_type = any(%s) group by 1, 2",
            (f"{start} 00:00+00", f"{end} 00:00+00", TYPES),
        )
        source = {row[:2]: row[2:] for row in cursor.fetchall()}
    with _memory() as db:
        if snapshot:
            db.execute(f"attach '{snapshot}' as snapshot (read_only)")
        totals = (
            "select usage_date, metric_type, sum(total_quantity), sum(event_count) "
            f"from {ours} group by usage_date, metric_type"
        )
        mine = {row[:2]: row[2:] for row in db.execute(totals).fetchall()}
    return {"differences": sum(source.get(k) != mine.get(k) for k in source.keys() | mine.keys())}
