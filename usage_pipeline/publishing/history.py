"""What publishing adds to the history that `serving.as_of` reads, beside the ledger: a row for the
publish itself, and the months that it replaces where days do not add up to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import duckdb

from usage_pipeline.landing import erased_users
from usage_pipeline.meters.meter import Meter
from usage_pipeline.meters.version import meters_version, read_meters, spelled_meters
from usage_pipeline.publishing.changes import Delta, TableChange, columns_of, count, same
from usage_pipeline.publishing.identity import Snapshot
from usage_pipeline.serving.tables import LEDGER, OLD_MONTHS, PUBLISHES, served
from usage_pipeline.settings import Settings

_NUMBERS = ("total_quantity", "event_count", "active_days")
_MONTH = ("month", "org_id", "metric_type")  # of all persons


def published_meters(db: duckdb.DuckDBPyConnection) -> list[Meter] | None:
    """The meters that what is published was made with; None before publishes were recorded."""
    row = db.execute(
        f"select arg_max(meters, published_at) from published.main.{PUBLISHES}"
    ).fetchone()
    return read_meters(row[0]) if row and row[0] else None


def additive_metrics(db: duckdb.DuckDBPyConnection, meters: Sequence[Meter]) -> list[str]:
    """The metrics that have always added up, as far as publishes were recorded."""
    recorded = db.execute(
        f"select distinct meters from published.main.{PUBLISHES} where meters is not null"
    ).fetchall()
    versions = [list(meters), *(read_meters(spelled) for (spelled,) in recorded)]
    never = {meter.key for version in versions for meter in version if not meter.adds_up}
    return sorted({meter.key for version in versions for meter in version} - never)


def this_publish(
    db: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,
    meters: Sequence[Meter],
    *,
    changed: bool,
    others: bool,
) -> Delta:
    """The row of this publish; none when it changes nothing.

    Args:
        others: whether the meters, prose included, are others than those of the publish before;
            only then are they in the row.
    """
    known = f"published.main.{PUBLISHES}"
    delta = Delta(served(PUBLISHES), columns_of(db, known))
    if not changed:
        return delta
    db.execute(f"create temp table {delta.changes} as select 1 as side, * from {known} limit 0")
    db.execute(
        f"insert into {delta.changes} values (1, ?, ?, ?, ?, ?, ?)",
        [
            snapshot.snapshot_id,
            snapshot.published_at,
            snapshot.run_id,
            snapshot.timezone,
            meters_version(list(meters)),
            spelled_meters(meters) if others else None,
        ],
    )
    return replace(delta, change=TableChange(inserted=1))


def newest(db: duckdb.DuckDBPyConnection, source: str) -> list[tuple[Any, ...]]:
    """The last publishes: id, time in UTC, run, zone and version of the meters."""
    return db.execute(
        "select snapshot_id, timezone('UTC', published_at), run_id, timezone, meters_version"
        f" from {source}.main.{PUBLISHES} order by published_at desc limit 5"
    ).fetchall()


def replaced_months(
    db: duckdb.DuckDBPyConnection,
    settings: Settings,
    deltas: Sequence[Delta],
    meters: Sequence[Meter],
    snapshot: Snapshot,
    *,
    additive: Sequence[str],
) -> Delta:
    """The numbers of months that these deltas replace, of meters that do not add up.

    Those of erased persons become nobody's and unknown, since they do not add up to the others of
    nobody. So do months that do add up and stay as they are, while days of the person went.

    Args:
        meters: that the months to be replaced were made with.
        additive: metrics that have always added up.
    """
    (months,) = (delta for delta in deltas if delta.table.name == "usage_monthly")
    delta = Delta(served(OLD_MONTHS), columns_of(db, _OLD_MONTHS))
    if not columns_of(db, "published.main.usage_monthly"):  # the first publish
        return delta
    if months.whole:  # taken over as it is, without a comparison
        gone, come = "published.main.usage_monthly", "warehouse.main.usage_monthly"
    else:
        gone, come = (f"(from {months.changes} where side {sign} 0)" for sign in "<>")
    key = ("user_id", *_MONTH)
    others = ", ".join(f"'{meter.key}'" for meter in meters if not meter.adds_up)
    kept = f"metric_type in ({others})" if others else "false"  # which compares nothing
    db.execute(
        f"""
        create temp table {delta.changes} as
        select 1 as side, {", ".join((*key, *_NUMBERS))},
               $1::timestamptz as replaced_at, updated_at as published_at
        from {gone} as gone
        anti join {come} as come on {same((*key, *_NUMBERS), "gone", "come")}
        where {kept}
        """,
        [snapshot.published_at],
    )
    people = " union ".join(
        f"select user_id as person from {rows}" for rows in (gone, _OLD_MONTHS, _LEDGER)
    )
    if erased := erased_users.read(settings).among(db, people):
        db.execute(_ERASED, [erased])
        db.execute(_UNKNOWN.format(gone=gone), [snapshot.published_at, list(additive)])
        db.execute(_FORGET.format(changes=delta.changes))
    added, removed = (count(db, f"from {delta.changes} where side {sign} 0") for sign in "><")
    updated = min(added, removed)
    return replace(delta, change=TableChange(added - updated, updated, removed - updated))


_OLD_MONTHS, _LEDGER = f"published.main.{OLD_MONTHS}", f"published.main.{LEDGER}"
_CELL = ", ".join((*_MONTH, "replaced_at"))
_ERASED = "create temp table erased as select unnest($1::uuid[]) as user_id"
# Spans of months of nobody that were published without the persons', and are not made of days.
_UNKNOWN = f"""
    create temp table unknown as
    select theirs.*
    from (
        select cast(date_trunc('month', usage_date) as date) as month, org_id, metric_type,
               max(restated_at) as replaced_at, min(old_published_at) as published_at
        from {_LEDGER} semi join erased using (user_id)
        where old_published_at is not null
        group by all
        union all
        select month, org_id, metric_type, $1::timestamptz, min(created_at)
        from {{gone}} semi join erased using (user_id)
        group by all
    ) as theirs
    where not list_contains($2::varchar[], metric_type)
        or not exists (
            from {{gone}} as gone where user_id is null and {same(_MONTH, "gone", "theirs")}
        )
"""
_FORGET = f"""
    create temp table touched as
    with known as (
        select -1 as side, * from {_OLD_MONTHS}
        union all by name
        from {{changes}}
    ),
    theirs as (
        select {_CELL} from known semi join erased using (user_id)
        union
        select {_CELL} from unknown
    )
    select known.*
    from known inner join theirs on {same((*_MONTH, "replaced_at"), "known", "theirs")}
    where user_id is null or user_id in (select user_id from erased);

    delete from {{changes}} as new using touched
    where touched.side > 0 and {same(("user_id", *_MONTH), "new", "touched")};

    insert into {{changes}} by name
    select * from touched where side < 0
    union all by name
    select 1 as side, {_CELL}, min(published_at) as published_at
    from (select {_CELL}, published_at from touched union all by name from unknown)
    group by {_CELL};

    drop table touched; drop table unknown; drop table erased
"""
