"""Days of usage events, from the source into landing.

Nothing here judges a business rule: the text of a quantity that is no DECIMAL(38,9), or becomes
one by rounding only, is carried along, and dbt says why it is invalid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
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
    data_files,
    in_use,
    landed_manifests,
    manifest_of,
    partition,
    sizes,
)
from usage_pipeline.landing.moved_events import (
    NOT_MOVED,
    Moved,
    days_of_ids,
    holders,
    moved_events,
    moved_within,
    vanished_ids,
)
from usage_pipeline.landing.repairs import at_stake, refuse, require_events_to_recut
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

_PEOPLE = ("user_id", "org_id")
# Days that were never landed are put in place together when they have so many events.
EVENTS_AT_ONCE = 2_500_000
Replacing = Callable[[set[date]], AbstractContextManager[None]]
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
    meanwhile, from a newer snapshot of the source, stays as it is; days that have an event in
    common with what it landed are extracted once more. A day that would lose events stays, too,
    and its manifest says so then; so do the days that still have an event of such a day. Days that
    were never landed come first, and are put in place as they come: what a long run that is
    killed has landed stays landed.

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
    landed: dict[date, Manifest] = {}
    wanted = list(days)
    while True:
        with in_use(settings), scratch(settings) as work:
            run = _Run(settings, work, replacing, may_lose, landed_manifests(settings))
            run.before = {day: manifest_of(settings, day) for day in wanted}
            with open_source(settings, ("usage_events",), len(PARTS)) as source:
                _extract_all(run, source, progress, claim)
            wanted = sorted(_replace(run))
        landed |= run.landed
        if not wanted:
            return [*landed.values()]


@dataclass
class _Run:
    """Days as one snapshot of the source has them.

    Attributes:
        work: where the extracted partitions are.
        seen: the manifests of all landed days before the source was opened, and of `done`.
        before: of the days, those that they had then.
        landed: of the days, the extracted ones; in the end those that stand.
        done: days that are in place already.
    """

    settings: Settings
    work: Path
    replacing: Replacing
    may_lose: Mapping[date, float]
    seen: dict[date, Manifest]
    before: dict[date, Manifest | None] = field(default_factory=dict)
    landed: dict[date, Manifest] = field(default_factory=dict)
    done: set[date] = field(default_factory=set)

    def files(self, day: date) -> list[Path]:
        """The extracted files of a day, wherever they are now."""
        return data_files(self.settings.events_dir if day in self.done else self.work, day)

    def landed_meanwhile(self) -> dict[date, Manifest]:
        """Days that another process has landed since this run began."""
        now = landed_manifests(self.settings)
        return {day: m for day, m in now.items() if m != self.seen.get(day)}


def _extract_all(
    run: _Run,
    source: Source,
    progress: Callable[[Manifest], None],
    claim: Callable[[set[date]], set[date]],
) -> None:
    """Extract the run's days, and those that hold an event of one of them."""
    asked = [*run.before]
    _land_new(run, source, progress)
    rest = [day for day in asked if day not in run.landed]
    run.landed |= _extract(run.settings, source, rest, run.work, progress)
    newest = [day for day in asked if day not in run.done]
    while newest:
        extracted = [run.landed[day] for day in newest]
        found = {*holders(run.settings, extracted, run.work, apart_from=run.before)}
        if not source.unique_ids:
            found |= _where_vanished_ids_stand(run, source, newest)
        newest = sorted((found | claim(found)) - run.before.keys()) if found else []
        run.before |= {day: run.seen.get(day) for day in newest}
        run.landed |= _extract(run.settings, source, newest, run.work, progress)


def _where_vanished_ids_stand(run: _Run, source: Source, days: Iterable[date]) -> set[date]:
    """Landed days with rows that had lost against a row of these days, which is gone."""
    found: set[date] = set()
    for day in days:
        known = run.before[day]
        if (
            known
            and known.timezone == run.settings.timezone
            and known.fits(data_files(run.settings.events_dir, day))
        ):
            gone = vanished_ids(run.settings, known, run.files(day))
            found |= days_of_ids(run.settings, source, gone)
    return (found & run.seen.keys()) - run.before.keys()


def _land_new(run: _Run, source: Source, progress: Callable[[Manifest], None]) -> None:
    """Extract the days that have nothing to lose, and put them in place whenever they are many.

    Others wait for the end: the last ones, and those with an event that a landed day holds, since
    both days change at once. While another run is busy nobody waits for it, because the source's
    transaction is open.
    """
    published = lost_events.published_days(run.settings)
    new = [day for day, manifest in run.before.items() if not manifest and day not in published]
    if _cut_differently(run):
        return
    coming: dict[date, Manifest] = {}
    for day in new:
        coming |= _extract(run.settings, source, [day], run.work, progress)
        run.landed |= coming
        if sum(m.rows for m in coming.values()) < EVENTS_AT_ONCE or writer.holder(run.settings):
            continue
        with run.replacing(ready := {*coming}):
            found = holders(
                run.settings,
                [*coming.values()],
                run.work,
                apart_from=run.done,
                whatever_size=run.before.keys() | run.landed_meanwhile().keys(),
            )
            ready -= {to for moved in found.values() for to in moved.to}
            ready -= {each for each in coming if manifest_of(run.settings, each)}
            for each in sorted(ready):
                _put_in_place(run, each)
                run.seen[each] = coming[each]
            run.done |= ready
        coming.clear()


def _replace(run: _Run) -> set[date]:
    """Replace what is landed by what was extracted, or say why not; gives the days to extract
    again, because what another process landed meanwhile does not go with them."""
    settings = run.settings
    moved = moved_within(settings, run.before, run.landed, run.files)
    with run.replacing(settled := {*run.before}):
        recut = _cut_differently(run)
        require_events_to_recut(
            settings, {day: m for day, m in recut.items() if day not in run.may_lose}
        )
        newer, again = _overtaken(run, moved)
        settled -= again
        rest = settled - newer.keys() - run.done
        kept, refused = _decide(run, rest, moved)
        for day in sorted(rest - kept.keys()):
            _put_in_place(run, day)
        for day in refused:
            refuse(settings, day, kept[day], partition(run.work, day) / MANIFEST)
        stand = run.landed | newer | kept
        run.landed = {day: stand[day] for day in run.before if day in settled}
    return again


def _overtaken(run: _Run, moved: Mapping[date, Moved]) -> tuple[dict[date, Manifest], set[date]]:
    """Days that another process landed meanwhile from a newer snapshot, and those that have to be
    extracted again: the others that it landed, and whatever shares an event with one of them."""
    meanwhile = run.landed_meanwhile()
    mine = {day: run.landed[day] for day in run.before if day not in run.done}
    newer = {
        day: meanwhile[day]
        for day in mine.keys() & meanwhile.keys()
        if meanwhile[day].extracted_at > mine[day].extracted_at
    }
    again = mine.keys() & meanwhile.keys() - newer.keys()
    new = [(m, run.files(day)) for day, m in mine.items() if m.rows and day not in newer]
    if meanwhile:
        shared = moved_events(run.settings, meanwhile, new)
        again |= {to for found in shared.values() for to in found.to}
    again = _with_senders(again | newer.keys(), moved) - newer.keys()
    # Days of another time zone are cut anew together.
    return newer, {*mine} if again and _cut_differently(run) else again


def _decide(
    run: _Run, days: Collection[date], moved: Mapping[date, Moved]
) -> tuple[dict[date, Manifest], set[date]]:
    """The days that keep what they have, because they would lose events, or because the events
    that they lost went to such a day; and which of them are refused."""
    settings = run.settings
    published = lost_events.published_days(settings)
    recut = _cut_differently(run)
    known = {
        day: stake
        for day in days
        if (stake := at_stake(settings, day, manifest_of(settings, day), published))
    }
    refused = {
        day
        for day, had in known.items()
        if day not in recut
        and had.rows - run.landed[day].rows
        > run.may_lose.get(day, moved.get(day, NOT_MOVED).events)
        and not lost_events.is_correction(settings, day, had.rows, run.landed[day].rows)
    }
    kept = {day: known[day] for day in _with_senders(refused, moved) & known.keys()}
    for day in refused:
        left = moved.get(day, NOT_MOVED)
        twice = kept[day].twice or bool(left.to - kept.keys())
        kept[day] = replace(kept[day], refused=run.landed[day].fingerprint, twice=twice)
    return kept, refused


def _with_senders(days: Collection[date], moved: Mapping[date, Moved]) -> set[date]:
    """The days, those that sent events to them, those that sent events to these, and so on."""
    found = set(days)
    while more := {day for day, events in moved.items() if events.to & found} - found:
        found |= more
    return found


def _cut_differently(run: _Run) -> dict[date, Manifest]:
    return {d: m for d, m in run.before.items() if m and m.timezone != run.settings.timezone}


def _put_in_place(run: _Run, day: date) -> None:
    extracted, target = partition(run.work, day), partition(run.settings.events_dir, day)
    target.mkdir(parents=True, exist_ok=True)
    for name in (*PARTS, MANIFEST):
        (extracted / name).replace(target / name)
    lost_events.found_again(run.settings, day)


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
