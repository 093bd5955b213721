"""Extracted days in the place of the landed ones: which are replaced, which stay, which are
extracted once more, and when.

Whether a day would lose events is decided in `lost_events`, and whether an event moved is found by
`moved_events`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from types import MappingProxyType

from usage_pipeline.app_db.session import Source, open_source
from usage_pipeline.infra.disk import scratch
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.extraction import extract
from usage_pipeline.landing.landed_days import (
    MANIFEST,
    PARTS,
    Manifest,
    data_files,
    in_use,
    landed_manifests,
    manifest_of,
    partition,
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
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

# Days that were never landed are put in place together when they have so many events.
EVENTS_AT_ONCE = 2_500_000
Replacing = Callable[[set[date]], AbstractContextManager[None]]
NOBODY_ELSE: AbstractContextManager[None] = nullcontext()


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
    run.landed |= extract(run.settings, source, rest, run.work, progress)
    newest = [day for day in asked if day not in run.done]
    while newest:
        extracted = [run.landed[day] for day in newest]
        found = {*holders(run.settings, extracted, run.work, apart_from=run.before)}
        if not source.unique_ids:
            found |= _where_vanished_ids_stand(run, source, newest)
        newest = sorted((found | claim(found)) - run.before.keys()) if found else []
        run.before |= {day: run.seen.get(day) for day in newest}
        run.landed |= extract(run.settings, source, newest, run.work, progress)


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
        coming |= extract(run.settings, source, [day], run.work, progress)
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
        lost_events.require_events_to_recut(
            settings, {day: m for day, m in recut.items() if day not in run.may_lose}
        )
        newer, again = _overtaken(run, moved)
        settled -= again
        rest = settled - newer.keys() - run.done
        kept, refused = _decide(run, rest, moved)
        for day in sorted(rest - kept.keys()):
            _put_in_place(run, day)
        for day in refused:
            lost_events.refuse(settings, day, kept[day], partition(run.work, day) / MANIFEST)
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
        if (stake := lost_events.at_stake(settings, day, manifest_of(settings, day), published))
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
