"""Events that are landed in one day and stand in another: which days they concern.

What follows from that is decided in `replacement`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import duckdb

from usage_pipeline.app_db.session import Source, count_changes, scan, source_query
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.landed_days import Manifest, data_files, landed_manifests
from usage_pipeline.serving import published
from usage_pipeline.serving.landed_events import EXTRACT_AGAIN, is_unreadable, landed_events
from usage_pipeline.settings import Settings

EVENTS_SEARCHED = 10_000_000  # of landed days, for events that moved; takes about a second
_IDS_ASKED = 100_000  # of the source, in one query

Extracted = Sequence[tuple[Manifest, Sequence[Path]]]


class Moved(NamedTuple):
    """Events that a landed day has no longer, and the days where they stand now."""

    events: int
    to: frozenset[date]


NOT_MOVED = Moved(0, frozenset())


def holders(
    settings: Settings,
    extracted: Sequence[Manifest],
    folder: Path,
    *,
    apart_from: Collection[date],
    whatever_size: Collection[date] = (),
) -> dict[date, Moved]:
    """Landed days that hold events which stand in newly extracted days now.

    All other days are searched while they have few events; beyond that those of the look-back
    window since whose landing rows were changed, as Postgres counts, and the published invalid
    events, which are few always.

    Args:
        extracted: the manifests of the new days.
        folder: where their partitions are.
        apart_from: days that are extracted already.
        whatever_size: days that are searched in any case.

    Raises:
        UsagePipelineError: a landed file is damaged; names it.
    """
    known = {
        day: manifest
        for day, manifest in landed_manifests(settings).items()
        if day not in apart_from and manifest.fits(data_files(settings.events_dir, day))
    }
    searched = known
    if sum(manifest.rows for manifest in known.values()) > EVENTS_SEARCHED:
        first, now = settings.today() - timedelta(settings.lookback_days), count_changes(settings)
        searched = {
            day: manifest
            for day, manifest in known.items()
            if day in whatever_size or (day >= first and manifest.rows_changed not in ("", now))
        }
    new = _files(folder, extracted)
    found = moved_events(settings, searched, new, invalid=True)
    return {day: moved for day, moved in found.items() if day in known}


def moved_within(
    settings: Settings,
    before: Mapping[date, Manifest | None],
    extracted: Mapping[date, Manifest],
    files: Callable[[date], Sequence[Path]],
) -> dict[date, Moved]:
    """What moved between extracted days, as landed before and as they are now.

    Where many events are landed, days are not read when Postgres counts no changed row since, and
    they have no fewer events.

    Args:
        files: of an extracted day.
    """
    known = {
        day: manifest
        for day, manifest in before.items()
        if manifest
        and manifest.timezone == settings.timezone
        and manifest.fits(data_files(settings.events_dir, day))
    }
    if sum(m.rows for m in landed_manifests(settings).values()) > EVENTS_SEARCHED:
        now = count_changes(settings)
        known = {
            day: manifest
            for day, manifest in known.items()
            if not now or manifest.rows_changed != now or extracted[day].rows < manifest.rows
        }
    new = [(m, files(day)) for day, m in extracted.items() if m.rows]
    return moved_events(settings, known, new)


def moved_events(
    settings: Settings,
    landed: Mapping[date, Manifest],
    extracted: Extracted,
    *,
    invalid: bool = False,
) -> dict[date, Moved]:
    """Events of landed days that stand in other, extracted days now.

    Args:
        extracted: manifests of days with events, each with the day's files.
        invalid: whether to search the published invalid events as well.

    Raises:
        UsagePipelineError: a landed file is damaged; names it.
    """
    if not extracted:
        return {}
    kind = "uuid" if all("id" in manifest.uuids for manifest, _ in extracted) else "varchar"
    searched = _all_ids(_files(settings.events_dir, landed.values()), kind)
    with open_duckdb(settings, ":memory:") as db, _naming_damaged_files():
        if invalid and lost_events.published_days(settings):
            published.attach(settings, db)
            searched.append(
                f"select try_cast(event_id as {kind}), usage_date"
                " from published.main.invalid_usage_events"
            )
        if not searched:
            return {}
        rows = db.execute(
            "select old.usage_date, count(distinct id), list(distinct new.usage_date)"
            f" from ({' union all '.join(searched)}) as old (id, usage_date)"
            f" inner join ({' union all '.join(_all_ids(extracted, kind))}) as new using (id)"
            " where old.usage_date <> new.usage_date group by old.usage_date"
        ).fetchall()
    return {day: Moved(events, frozenset(to)) for day, events, to in rows}


def vanished_ids(settings: Settings, landed: Manifest, extracted: Sequence[Path]) -> list[str]:
    """Ids that a landed day has, and that are not in the files which were extracted for it.

    Raises:
        UsagePipelineError: a landed file is damaged; names it.
    """
    old = _all_ids(_files(settings.events_dir, [landed]), "varchar")
    if not old:
        return []
    with open_duckdb(settings, ":memory:") as db, _naming_damaged_files():
        rows = db.execute(
            f"select distinct id from ({old[0]}) where id is not null and id not in"
            f" (select id from ({_ids(extracted, 'varchar', 'varchar')}) where id is not null)"
        ).fetchall()
    return [event_id for (event_id,) in rows]


def days_of_ids(settings: Settings, source: Source, ids: Sequence[str]) -> set[date]:
    """The days where the source has these ids now."""
    days = set()
    for start in range(0, len(ids), _IDS_ASKED):
        some = (re.sub(r'(["\\\\])', r"\\\1", one) for one in ids[start : start + _IDS_ASKED])
        array = ",".join(f'"{one}"' for one in some).replace("'", "''")
        # Without a type it takes that of the column, so that an index serves.
        query = (
            f"select distinct created_at from ({source_query('usage_events')}) as events"
            f" where id = any('{{{array}}}')"
        )
        found = source.db.execute(f"select created_at from {scan(query)}").fetchall()
        days |= {moment.astimezone(settings.zone).date() for (moment,) in found if moment}
    return days


def _files(folder: Path, manifests: Iterable[Manifest]) -> Extracted:
    """The files of days with events; a lost day has none."""
    return [
        (manifest, files)
        for manifest in manifests
        if manifest.rows and (files := data_files(folder, date.fromisoformat(manifest.usage_date)))
    ]


def _all_ids(days: Extracted, kind: str) -> list[str]:
    """SQL for the ids of days, and their days: one query for each type of landed ids."""
    files: dict[str, list[Path]] = {}
    for manifest, paths in days:
        files.setdefault("uuid" if "id" in manifest.uuids else "varchar", []).extend(paths)
    return [_ids(paths, stored, kind) for stored, paths in files.items()]


def _ids(files: Sequence[Path], stored: str, kind: str) -> str:
    """SQL: ids as one type; text that is no UUID cannot be one of them."""
    listed = ", ".join(f"'{quoted(path)}'" for path in files)
    events = landed_events(f"[{listed}]", stored)
    return f"select try_cast(id as {kind}) as id, usage_date from {events}"


@contextmanager
def _naming_damaged_files() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        if not is_unreadable(str(error)):
            raise
        raise UsagePipelineError(
            f"What is landed cannot be read: {str(error).splitlines()[0]}", EXTRACT_AGAIN
        ) from error
