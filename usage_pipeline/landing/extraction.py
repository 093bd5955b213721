"""Days of usage events, from the source into files of landing's shape.

Nothing here judges a business rule: the text of a quantity that is no DECIMAL(38,9), or becomes
one by rounding only, is carried along, and dbt says why it is invalid. Of rows with the same id the
newest is landed. Which files take the place of which is decided in `replacement`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb

from usage_pipeline.app_db.fingerprints import EXACT, FINGERPRINT, FITS, fingerprint
from usage_pipeline.app_db.session import Source, open_source, scan, source_query
from usage_pipeline.infra.duckdb_files import quoted, write_parquet
from usage_pipeline.landing.erased_users import leave_out_erased
from usage_pipeline.landing.landed_days import MANIFEST, PARTS, Manifest, partition, sizes
from usage_pipeline.settings import Settings

_PEOPLE = ("user_id", "org_id")
# Total, so that a day is landed alike each time: rows that tie in all of it are the same event.
_NEWEST_FIRST = (
    "id, created_at desc, quantity desc nulls last, user_id, org_id, event_type::text, "
    'event_data::text collate "C"'
)


def extract_events(
    settings: Settings,
    days: Iterable[date],
    folder: Path,
    progress: Callable[[Manifest], None] = lambda manifest: None,
) -> list[Manifest]:
    """Write partitions of `usage_events`, each read once, all from one snapshot of the source.

    Args:
        days: local days.
        folder: where the partitions go.
        progress: called with the manifest of each day, while the source is open.

    Raises:
        UsagePipelineError: the source cannot be read as `queries/usage_events.sql` says.
    """
    with open_source(settings, ("usage_events",), len(PARTS)) as source:
        return [*extract(settings, source, days, folder, progress).values()]


def extract(
    settings: Settings,
    source: Source,
    days: Iterable[date],
    folder: Path,
    progress: Callable[[Manifest], None],
) -> dict[date, Manifest]:
    """The same from a source that is open; gives the manifests by day."""
    manifests = {}
    for day in days:
        manifests[day] = _extract_day(settings, source, day, folder)
        progress(manifests[day])
    return manifests


def _extract_day(settings: Settings, source: Source, day: date, folder: Path) -> Manifest:
    start, end = settings.day_bounds(day)
    raw = None
    if not source.unique_ids:
        figures = scan(
            f"select n, total::text as total, last from (select {FINGERPRINT} from "
            f"({source_query('usage_events')}) as events where {_between(start, end)}) "
            "as figures (n, total, last)"
        )
        raw = source.db.execute(f"select n, total, last from {figures}").fetchall()[0]
    noon = start + (end - start) / 2
    halves = (_between(start, noon), _between(noon, end))
    target = partition(folder, day)
    target.mkdir(parents=True)
    data = [target / name for name in PARTS]

    def write(db: duckdb.DuckDBPyConnection, window: str, path: Path) -> None:
        write_parquet(db, f"({_landed_events(settings, source, window)})", path)
        leave_out_erased(settings, "usage_events", path)

    with ThreadPoolExecutor(len(data)) as threads:
        try:
            list(threads.map(write, source.transactions, halves, data))
        except BaseException:
            for db in source.transactions:  # so that nobody waits for the other half
                db.interrupt()
            raise
    # Over all event types the sum may leave DECIMAL(38,9); so quantities that are great, which
    # are few, are added up as whole parts and fractions.
    great = "case when abs(quantity) >= 1000000000000000000 then quantity end"
    rows, invalid, small, whole, fraction, last = source.db.execute(
        "select count(*), count(*) - count(quantity), "
        "coalesce(sum(quantity) filter (where abs(quantity) < 1000000000000000000), 0), "
        f"coalesce(sum(cast(trunc({great}) as decimal(38, 0))), 0), "
        f"coalesce(sum(cast({great} - trunc({great}) as decimal(18, 9))), 0), max(created_at) "
        f"from read_parquet('{quoted(target)}/*.parquet')"
    ).fetchall()[0]
    total = EXACT.add(small, EXACT.add(whole, fraction))
    manifest = Manifest(
        usage_date=day.isoformat(),
        timezone=settings.timezone,
        event_data=settings.land_event_data,
        rows=rows,
        invalid_rows=invalid,
        duplicate_rows=raw[0] - rows if raw else 0,
        sum_quantity=format(total, "f"),
        max_created_at=last.astimezone(UTC).isoformat() if last else None,
        fingerprint=(
            fingerprint(raw[0], Decimal(raw[1]), raw[2]) if raw else fingerprint(rows, total, last)
        ),
        extracted_at=source.opened_at.isoformat(),
        rows_changed=source.rows_changed,
        uuids=["id", *_PEOPLE] if _uuid_ids(source) else list(_PEOPLE),
        files=sizes(data),
    )
    (target / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
    return manifest


def _between(start: datetime, end: datetime) -> str:
    return f"created_at >= '{start.isoformat()}' and created_at < '{end.isoformat()}'"


def _landed_events(settings: Settings, source: Source, window: str) -> str:
    """The events of a window that count, in the columns of landing, judged and cast in Postgres."""
    events = f"({source_query('usage_events')}) as events"
    winners = f"select * from {events} where {window}"
    if not source.unique_ids:
        # The same id may stand elsewhere too; the newest row wins wherever it stands.
        winners = (
            f"select * from (select distinct on (id) * from {events} where id in "
            f"(select id from {events} where {window}) "
            f"order by {_NEWEST_FIRST}) as newest where {window} "
            f"union all select * from {events} where {window} and id is null"
        )
    event_data = "event_data::text" if settings.land_event_data else "null::text"
    # Without the offset Postgres would compare each quantity once for every column made of it.
    judged = (
        f"select *, (case when {FITS} then quantity end)::numeric(38,9) as landed_quantity "
        f"from ({winners}) as winners offset 0"
    )
    query = (
        f"select id, user_id, org_id, event_type::text as event_type, {event_data} as event_data, "
        "landed_quantity as quantity, case when landed_quantity is null or scale(quantity) > 9 "
        f"then quantity::text end as quantity_raw, created_at from ({judged}) as judged"
    )
    event_id = "id" if _uuid_ids(source) else "cast(id as varchar)"
    return (
        f"select {event_id} as id, user_id::uuid as user_id, org_id::uuid as org_id, event_type, "
        f"event_data, quantity, quantity_raw, created_at from {scan(query)}"
    )


def _uuid_ids(source: Source) -> bool:
    return "id" in source.uuids["usage_events"]
