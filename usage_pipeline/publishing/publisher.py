"""Publishing: what readers see, in three places that carry the same snapshot id.

The warehouse is compared with the snapshot that readers have, and only the difference moves:
into a copy of the snapshot file, into Parquet months, and into Postgres in one transaction.
Everything is staged first; then Postgres commits, the snapshot file and the readers' copy of it
are renamed, and the Parquet files are renamed. A place that a killed run left behind is
recognised by its id and made whole by the next one. Nothing here decides *whether* to publish:
checks did.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb

from usage_pipeline.days import DayRange
from usage_pipeline.infra import permissions
from usage_pipeline.infra.database_urls import publish_database_url
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import load_postgres_extension, open_duckdb, quoted
from usage_pipeline.infra.postgres import connect
from usage_pipeline.meters.meter import Meter
from usage_pipeline.meters.version import spelled_meters
from usage_pipeline.publishing import ledger, readers_copy
from usage_pipeline.publishing.changes import Delta, TableChange, compare_all, count
from usage_pipeline.publishing.history import (
    additive_metrics,
    newest,
    published_meters,
    replaced_months,
    this_publish,
)
from usage_pipeline.publishing.identity import Snapshot, recorded_snapshot
from usage_pipeline.publishing.ledger import MONTHS_DIGESTED, restated
from usage_pipeline.publishing.parquet import ParquetFiles
from usage_pipeline.publishing.postgres_tables import PostgresTables
from usage_pipeline.publishing.snapshot import (
    STATE,
    build_snapshot,
    days_published,
    ensure_snapshot,
    note_days,
)
from usage_pipeline.serving import published
from usage_pipeline.serving.tables import LEDGER
from usage_pipeline.settings import Settings

_VARIABLE = "USAGE_PUBLISH_DATABASE_URL"


@dataclass
class PublishReport:
    """Figures of one publish.

    Attributes:
        snapshot_id: what readers see now.
        changed: False when the warehouse and the previous snapshot were equal; the snapshot
            file is then the same file as before.
        tables: rows per table that differ from the previous snapshot.
        seconds: per stage: `compare`, `snapshot`, `parquet`, `postgres`, `swap`.
        snapshot_bytes: size of the snapshot file.
        parquet_bytes: size of the Parquet files written.
        restated: the ledger's newest months; see `ledger.digest`.
        publishes: the newest ones, this one first; see `history.newest`.
    """

    snapshot_id: str = ""
    changed: bool = False
    tables: dict[str, TableChange] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    snapshot_bytes: int = 0
    parquet_bytes: int = 0
    restated: list[tuple[Any, ...]] = field(default_factory=list)
    publishes: list[tuple[Any, ...]] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)


def publish(
    settings: Settings,
    ranges: Sequence[DayRange],
    run_id: str,
    built_with: str,
    *,
    meters: Sequence[Meter] = (),
    may_shrink: bool = False,
) -> PublishReport:
    """Make the warehouse's rows what readers see. The caller is the single writer.

    Args:
        settings: where the warehouse, the outputs and the publish database are.
        ranges: local days whose rows may have changed; their months are compared as well.
        run_id: recorded with the snapshot and the restatements.
        built_with: version of models and meters that built the warehouse.
        meters: that built it; recorded with the publish.
        may_shrink: whether days that only Postgres has may go; see `PostgresTables.write`.

    Raises:
        UsagePipelineError: the warehouse lacks a table, Postgres refuses, or has what another home
            or a newer release published; readers then still see the previous state everywhere.
    """
    ensure_snapshot(settings)
    report = PublishReport()
    with scratch(settings) as work:
        copy = work / settings.snapshot_path.name
        with open_duckdb(settings, ":memory:") as db:
            load_postgres_extension(db)
            db.execute(f"attach '{quoted(settings.warehouse_path)}' as warehouse (read_only)")
            published.attach(settings, db)
            base = recorded_snapshot(db)
            new = Snapshot(str(uuid4()), _now(base), run_id, settings.timezone)
            known = published_meters(db)
            with report.timed("compare"):
                deltas = compare_all(db, settings, ranges, base, new.published_at)
                additive = additive_metrics(db, meters)
                old_months = replaced_months(
                    db, settings, deltas, known or meters, new, additive=additive
                )
                ledgers = restated(
                    db, settings, deltas, base, new, built_with=built_with, additive=additive
                )
                deltas += [ledgers, old_months]
                unseen = count(
                    db,
                    f"from ({days_published(ranges)}) as days anti join"
                    " published.main.published_days using (usage_date)",
                )
            others = known is None or spelled_meters(known) != spelled_meters(meters)
            if base is None or unseen or others or not all(delta.empty for delta in deltas):
                report.changed = True
            snapshot = new if base is None or report.changed else base
            deltas.append(this_publish(db, new, meters, changed=report.changed, others=others))
            report.tables = {delta.table.name: delta.change for delta in deltas}
            if report.changed:
                with report.timed("snapshot"):
                    build_snapshot(db, settings.published_path, work / STATE, deltas, snapshot)
                    note_days(db, ranges, built_with)
                    db.execute("checkpoint serving")
                    readers_copy.stage(settings, work / STATE, copy)
            source = "serving" if report.changed else "published"
            report.publishes = newest(db, source)
            report.restated = ledger.digest(db, f"{source}.main.{LEDGER}", MONTHS_DIGESTED)
            parquet = ParquetFiles(settings, work / "parquet")
            with report.timed("parquet"):
                parquet.stage(db, source, deltas, base, snapshot)
            with report.timed("postgres"):
                url = publish_database_url(settings)
                with connect(url, _VARIABLE) as connection, connection.cursor() as cursor:
                    postgres = PostgresTables(cursor, settings.publish_schema, work / "rows.bin")
                    postgres.write(db, source, deltas, base, snapshot, may_shrink=may_shrink)
        with report.timed("swap"):
            if report.changed:
                (work / STATE).replace(settings.published_path)
            readers_copy.serve(settings, copy)
            report.parquet_bytes = parquet.swap(snapshot)
            permissions.share_all(settings)
    report.snapshot_id = snapshot.snapshot_id
    report.snapshot_bytes = settings.snapshot_path.stat().st_size
    return report


def _now(base: Snapshot | None) -> datetime:
    """The time of a publish: later than the one before, whatever was done to the clock."""
    now = datetime.now(UTC)
    return max(now, base.published_at + timedelta(microseconds=1)) if base else now


def repair(
    settings: Settings,
    db: duckdb.DuckDBPyConnection,
    work: Path,
    deltas: Mapping[str, Sequence[Delta]],
) -> None:
    """Write to each place what it lacks of what is published. The caller is the single writer.

    The snapshot keeps its id and the ledger its rows: a number that no run published is not one
    that was restated. A place that records another id is compared and written whole.

    Args:
        db: with `warehouse` and `published` attached, and the tables of the deltas' changes.
        work: scratch directory.
        deltas: of every served table, for `snapshot`, `parquet` and `postgres`.

    Raises:
        UsagePipelineError: Postgres refuses; nothing is changed then.
    """
    snapshot, source = recorded_snapshot(db), "published"
    copy = work / settings.snapshot_path.name
    assert snapshot is not None
    if not all(delta.empty for delta in deltas["snapshot"]):
        source = "serving"
        build_snapshot(db, settings.published_path, work / STATE, deltas["snapshot"], snapshot)
        db.execute("checkpoint serving")
        readers_copy.stage(settings, work / STATE, copy)
    parquet = ParquetFiles(settings, work / "parquet")
    parquet.stage(db, source, deltas["parquet"], snapshot, snapshot, repairing=True)
    url = publish_database_url(settings)
    with connect(url, _VARIABLE) as connection, connection.cursor() as cursor:
        postgres = PostgresTables(cursor, settings.publish_schema, work / "rows.bin")
        postgres.write(db, source, deltas["postgres"], snapshot, snapshot, repairing=True)
    if source == "serving":
        db.execute("detach serving")
        (work / STATE).replace(settings.published_path)
        readers_copy.serve(settings, copy)
    parquet.swap(snapshot)
    permissions.share_all(settings)
