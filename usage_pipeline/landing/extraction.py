"""Days of usage events, from the source into landing.

Nothing here judges a business rule: the text of a quantity that is no DECIMAL(38,9), or becomes
one by rounding only, is carried along, and dbt says why it is invalid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import duckdb

from usage_pipeline.app_db.fingerprints import EXACT, FINGERPRINT, FITS, fingerprint
from usage_pipeline.app_db.session import Source, open_source, scan, source_query
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import quoted, write_parquet
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.erased_users import leave_out_erased
from usage_pipeline.landing.landed_days import (
    MANIFEST,
    PARTS,
    Manifest,
    in_use,
    manifest_of,
    partition,
    sizes,
)
from usage_pipeline.landing.repairs import (
    NOT_MOVED,
    Moved,
    at_stake,
    moved_from,
    refuse,
    require_events_to_recut,
)
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

_PEOPLE = ("user_id", "org_id")
# Days that were never landed are put in place together when they have so many events.
EVENTS_AT_ONCE = 2_500_000
Replacing = Callable[[Collection[date]], AbstractContextManager[None]]
NOBODY_ELSE: AbstractContextManager[None] = nullcontext()
# Total, so that a day is landed alike each time: rows that tie in all of it are the same event.
_NEWEST_FIRST = (
    "id, created_at desc, quantity desc nulls last, user_id, org_id, event_type::text, "
    'event_data::text collate "C"'
)


def land_events(
    settings: Settings,
    days: Iterable[date],
    *,
    progress: Callable[[Manifest], None] = lambda manifest: None,
    replacing: Replacing = lambda days: nullcontext(),
    may_lose: Mapping[date, float] = MappingProxyType({}),
    claim: Callable[[set[date]], set[date]] = lambda days: days,
) -> list[Manifest]:
    """Extract whole days of `usage_events`, then replace their partitions.

    Days that hold an event which stands in one of these days now are extracted as well, from the
    same state of the source, so that an event that moved is one row in landing.

    A partition is replaced by renaming finished files over it. A day that another process landed
    meanwhile, from a newer snapshot of the source, stays as it is. So does a day that would lose
    events; its manifest says so then. Days that were never landed come first, and are put in place
    as they come: what a long run that is killed has landed stays landed.

    Args:
        days: local days; a day without events becomes an empty partition.
        progress: called with the manifest of each extracted day.
        replacing: entered around the renames of the days that it is given.
        may_lose: how many events days may lose, because an operator said so; of other days
            `lost_events` decides.
        claim: called with days to extract as well, before they are replaced; gives these and
            others that have to be.

    Returns:
        The manifests that stand for these days now, and for those extracted as well.

    Raises:
        UsagePipelineError: the source cannot be read as `queries/usage_events.sql` says, or lacks
            events of days that have to be cut anew for another time zone.
    """
    before = {day: manifest_of(settings, day) for day in days}
    moved: dict[date, Moved] = {}
    with in_use(settings), scratch(settings) as work:
        with open_source(settings, ("usage_events",), len(PARTS)) as source:
            landed, done = _land_new(
                settings, source, before, work, progress=progress, replacing=replacing
            )
            rest = [day for day in before if day not in landed]
            landed |= _extract(settings, source, rest, work, progress)
            newest = {day: landed[day] for day in before if day not in done}
            while found := moved_from(settings, [*newest.values()], work, apart_from=before):
                also = sorted(claim(set(found)))
                moved |= found
                before |= {day: manifest_of(settings, day) for day in also}
                newest = _extract(settings, source, also, work, progress)
                landed |= newest
        with replacing(before.keys()):
            kept: set[date] = set()
            recut = _cut_differently(settings, before)
            require_events_to_recut(
                settings, {day: m for day, m in recut.items() if day not in may_lose}
            )
            published = lost_events.published_days(settings)
            for day in [day for day in before if day not in done]:
                mine, other = landed[day], manifest_of(settings, day)
                if other and other != before[day] and other.extracted_at > mine.extracted_at:
                    landed[day] = other
                    continue
                known = at_stake(settings, day, other, published)
                left = moved.get(day, NOT_MOVED)
                if known and left.to & kept:  # where the event went, it was not taken over
                    landed[day] = known
                    kept.add(day)
                    continue
                if (
                    known
                    and day not in recut
                    and known.rows - mine.rows > may_lose.get(day, left.events)
                    and not lost_events.is_correction(settings, day, known.rows, mine.rows)
                ):
                    kept.add(day)
                    landed[day] = replace(known, refused=mine.fingerprint)
                    refuse(settings, day, landed[day], partition(work, day) / MANIFEST)
                    continue
                _put_in_place(settings, work, day)
    return [landed[day] for day in before]


def _land_new(
    settings: Settings,
    source: Source,
    before: Mapping[date, Manifest | None],
    work: Path,
    *,
    progress: Callable[[Manifest], None],
    replacing: Replacing,
) -> tuple[dict[date, Manifest], set[date]]:
    """Extract the days that have nothing to lose, and put them in place whenever they are many.

    Gives the manifests, and the days that are in place. Others wait for the end: the last ones,
    and those with an event that a landed day holds, since both days change at once. While another
    run is busy nobody waits for it, because the source's transaction is open.
    """
    published = lost_events.published_days(settings)
    new = [day for day, manifest in before.items() if not manifest and day not in published]
    if _cut_differently(settings, before):
        new = []
    landed: dict[date, Manifest] = {}
    coming: dict[date, Manifest] = {}
    done: set[date] = set()
    for day in new:
        coming |= _extract(settings, source, [day], work, progress)
        landed |= coming
        if sum(m.rows for m in coming.values()) < EVENTS_AT_ONCE or writer.holder(settings):
            continue
        found = moved_from(
            settings, [*coming.values()], work, apart_from=done, whatever_size=before
        )
        ready = coming.keys() - {to for moved in found.values() for to in moved.to}
        with replacing(ready):
            for each in ready:
                if manifest_of(settings, each) is None:
                    _put_in_place(settings, work, each)
                    done.add(each)
        coming.clear()
    return landed, done


def _cut_differently(
    settings: Settings, days: Mapping[date, Manifest | None]
) -> dict[date, Manifest]:
    return {day: m for day, m in days.items() if m and m.timezone != settings.timezone}


def _put_in_place(settings: Settings, work: Path, day: date) -> None:
    extracted, target = partition(work, day), partition(settings.events_dir, day)
    target.mkdir(parents=True, exist_ok=True)
    for name in (*PARTS, MANIFEST):
        (extracted / name).replace(target / name)
    lost_events.found_again(settings, day)


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
        return [*_extract(settings, source, days, folder, progress).values()]


def _extract(
    settings: Settings,
    source: Source,
    days: Iterable[date],
    folder: Path,
    progress: Callable[[Manifest], None],
) -> dict[date, Manifest]:
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

    def extract(db: duckdb.DuckDBPyConnection, window: str, path: Path) -> None:
        write_parquet(db, f"({_landed_events(settings, source, window)})", path)
        leave_out_erased(settings, "usage_events", path)

    with ThreadPoolExecutor(len(data)) as threads:
        try:
            list(threads.map(extract, source.transactions, halves, data))
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
