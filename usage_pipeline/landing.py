"""Landing: what was extracted from the application database, as Parquet.

One directory per local day of events with a manifest beside the data, one file per snapshot of the
other tables, and the calendar. Nothing here judges a business rule: a quantity that cannot be a
DECIMAL(38,9) is carried along as text, and dbt says why it is invalid.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import duckdb
import pyarrow.parquet
from psycopg2.extensions import connection as PostgresConnection

from usage_pipeline import erased_users, lost_events, warehouse
from usage_pipeline.app_db import (
    APPLICATION_NAME,
    app_database_url,
    conceal,
    connect,
    database_error,
)
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.source_schema import read_shape, record_shape
from usage_pipeline.warehouse import DayRange, quoted

SCHEMA_VERSION = 4
SNAPSHOTS = ("users", "orgs", "org_members", "subscriptions", "plan_limits")
STATEMENT_TIMEOUT = "30min"  # of one day's SELECT; a hung source must not hold a run for ever
FINGERPRINT_TIMEOUT = "5min"  # of the grouped query over the look-back window

_MANIFEST = "manifest.json"
_PARTS = ("part-0.parquet", "part-1.parquet")  # each half of a day, extracted at once
_NOBODY_ELSE: AbstractContextManager[None] = nullcontext()

_REFUSED_SHOWN = 5

_EXACT = Context(prec=60)  # more digits than any sum of quantities has

# The greatest number that still rounds to 29 integer digits. NaN and Infinity compare greater.
_LARGEST_QUANTITY = "99999999999999999999999999999.9999999995"
_FITS = f"quantity > -{_LARGEST_QUANTITY} and quantity < {_LARGEST_QUANTITY}"

# In Postgres; the second gives the arguments of `fingerprint`.
_VALID_SUM = f"coalesce(sum(round(quantity, 9)) filter (where {_FITS}), 0)"
_FINGERPRINT = f"count(*), {_VALID_SUM}, max(created_at)"
# Total, so that a day is landed alike each time: rows that tie in all of it are the same event.
_NEWEST_FIRST = (
    "id, created_at desc, quantity desc nulls last, user_id, org_id, event_type::text, "
    'event_data::text collate "C"'
)
EMPTY = "0 0 -"  # the fingerprint of a day without events


@dataclass(frozen=True)
class Manifest:
    """What was landed for one local day.

    Attributes:
        usage_date: the day as YYYY-MM-DD in `timezone`.
        event_data: whether the column was landed.
        rows: events landed, invalid ones included.
        invalid_rows: of these, the ones whose quantity is no DECIMAL(38,9).
        duplicate_rows: source rows left out because another row with their id won.
        sum_quantity: exact sum of the valid quantities, as text.
        fingerprint: of the source's rows of the day when it was extracted; see `fingerprint`.
        extracted_at: just before the source was first looked at, as ISO 8601 in UTC.
        files: size in bytes of each data file; another size means a damaged partition.
        previous_files: sizes before a person was erased from them, since a kill can come between
            the renames of manifest and data.
        refused: fingerprint of the source when it had so much less that the day was kept as it
            was; empty once the day is landed again. See `lost_events`.
    """

    usage_date: str
    timezone: str
    event_data: bool
    rows: int
    invalid_rows: int
    duplicate_rows: int
    sum_quantity: str
    max_created_at: str | None
    fingerprint: str
    extracted_at: str
    files: dict[str, int]
    previous_files: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def refused_rows(self) -> int:
        """Rows that the source had when it was refused."""
        return int(self.refused.split()[0])

    @property
    def lost(self) -> bool:
        """Whether no file holds the day's events any more."""
        return not self.files

    def fits(self, data: Iterable[Path]) -> bool:
        """Whether the data files are those that this manifest is about."""
        found = {path.name: path.stat().st_size for path in data}
        return found.keys() == self.files.keys() and all(
            size in (self.files[name], self.previous_files.get(name))
            for name, size in found.items()
        )


def fingerprint(rows: int, total: Decimal, last: datetime | None) -> str:
    """What decides whether a day of the source has changed: rows, exact sum, last created_at."""
    moment = last.astimezone(UTC).isoformat() if last else "-"
    return f"{rows} {total.normalize(_EXACT):f} {moment}"


def partition(folder: Path, day: date) -> Path:
    """The directory of a day: its data files and their manifest."""
    return folder / f"usage_date={day}"


def data_files(folder: Path, day: date) -> list[Path]:
    """The Parquet files of a day; none when it was never landed."""
    return sorted(partition(folder, day).glob("part-*.parquet"))


def check_range(settings: Settings, days: DayRange) -> None:
    """Refuse days that cannot be rolled up.

    Raises:
        UsagePipelineError: empty or reversed, not over yet, or before `USAGE_START_DATE`.
    """
    if days.start >= days.end:
        raise UsagePipelineError(
            f"The start {days.start} is not before the end {days.end}",
            "The end is exclusive; for one day give the next day as the end",
        )
    if days.end > settings.today():
        raise UsagePipelineError(
            f"{days.end - timedelta(days=1)} is not over yet in {settings.timezone}",
            f"Roll up days before {settings.today()}",
        )
    if days.start < settings.start_date:
        raise UsagePipelineError(
            f"{days.start} is before the first partition, {settings.start_date}",
            "Set USAGE_START_DATE to an earlier date, or start later",
        )


def source_query(table: str) -> str:
    """The reviewed SELECT that maps the application's table to the columns of the pipeline."""
    query = files("usage_pipeline.app_db").joinpath("queries", f"{table}.sql")
    return query.read_text("utf-8").strip().rstrip(";")


def land_events(
    settings: Settings,
    days: Iterable[date],
    progress: Callable[[Manifest], None] = lambda manifest: None,
    replacing: AbstractContextManager[None] = _NOBODY_ELSE,
    may_lose: Mapping[date, float] = MappingProxyType({}),
) -> list[Manifest]:
    """Extract whole days of `usage_events`, then replace their partitions.

    A partition is replaced by renaming finished files over it. A day that another process landed
    meanwhile, from a newer snapshot of the source, stays as it is. So does a day that would lose
    events; its manifest says so then.

    Args:
        days: local days; a day without events becomes an empty partition.
        progress: called with the manifest of each extracted day.
        replacing: entered around the renames, when the source is closed already.
        may_lose: how many events days may lose, because an operator said so or because they are
            known to have moved; of other days `lost_events` decides.

    Returns:
        The manifests that stand for these days now.

    Raises:
        UsagePipelineError: the source cannot be read as `queries/usage_events.sql` says, or lacks
            events of days that have to be cut anew for another time zone.
    """
    before = {day: _manifest(settings, day) for day in days}
    with in_use(settings), warehouse.scratch(settings) as work:
        landed = extract_events(settings, before, work, progress)
        with replacing:
            recut = {d: m for d, m in before.items() if m and m.timezone != settings.timezone}
            if not may_lose:
                _require_events_to_recut(settings, recut, landed)
            published = lost_events.published_days(settings)
            for at, (day, mine) in enumerate(zip(before, landed, strict=True)):
                other = _manifest(settings, day)
                if other and other != before[day] and other.extracted_at > mine.extracted_at:
                    landed[at] = other
                    continue
                extracted, target = partition(work, day), partition(settings.events_dir, day)
                target.mkdir(parents=True, exist_ok=True)
                known = _known(settings, day, other, published)
                if (
                    known
                    and day not in recut
                    and known.rows - mine.rows > may_lose.get(day, 0)
                    and not lost_events.is_correction(settings, day, known.rows, mine.rows)
                ):
                    landed[at] = replace(known, refused=mine.fingerprint)
                    _refuse(settings, day, landed[at], extracted / _MANIFEST)
                    continue
                for name in (*_PARTS, _MANIFEST):
                    (extracted / name).replace(target / name)
                lost_events.found_again(settings, day)
    return landed


def _known(
    settings: Settings,
    day: date,
    manifest: Manifest | None,
    published: Mapping[date, lost_events.PublishedDay],
) -> Manifest | None:
    """What the day has that could be lost: sound files, or rows that are published.

    Without sound files it is a manifest without files; None when there is nothing to lose.
    """
    if manifest and manifest.files and manifest.fits(data_files(settings.events_dir, day)):
        return manifest
    if day not in published:
        return None
    if manifest:
        return replace(manifest, files={}, previous_files={})
    found = published[day]
    last, read = (
        moment.astimezone(UTC).isoformat() if moment else None
        for moment in (found.last_event_at, found.extracted_at)
    )
    return Manifest(
        usage_date=day.isoformat(),
        timezone=settings.timezone,
        event_data=settings.land_event_data,
        rows=found.events,
        invalid_rows=0,
        duplicate_rows=0,
        sum_quantity=format(found.sum_quantity or Decimal(0), "f"),
        max_created_at=last,
        fingerprint="",
        extracted_at=read or datetime.min.replace(tzinfo=UTC).isoformat(),
        files={},
    )


def _refuse(settings: Settings, day: date, kept: Manifest, temporary: Path) -> None:
    """Write the manifest of a day that keeps what it has; set its files aside if damaged."""
    temporary.write_text(json.dumps(asdict(kept), indent=1))
    target = partition(settings.events_dir, day) / _MANIFEST
    if not kept.lost:
        temporary.replace(target)
        lost_events.found_again(settings, day)
        return
    # Killed anywhere in here, the day is damaged still, and the next run comes here again.
    damaged = lost_events.set_aside(settings, day)
    temporary.replace(target)
    for path in data_files(settings.events_dir, day):
        path.replace(damaged / path.name)


def _require_events_to_recut(
    settings: Settings, recut: Mapping[date, Manifest], extracted: Iterable[Manifest]
) -> None:
    """Days of another time zone are cut anew together, or not at all: events move between them,
    so their total is what must not shrink."""
    found = sum(m.rows for m in extracted if date.fromisoformat(m.usage_date) in recut)
    had = sum(manifest.rows for manifest in recut.values())
    if found >= had:
        return
    # What was landed of the first and last days can belong to days that are not landed now.
    for days in warehouse.ranges_of_days(recut):
        start, end = settings.day_start(days.start), settings.day_start(days.end)
        edges = {*days.days()[:2], *days.days()[-2:]}
        files = [
            str(path)
            for day in edges
            if recut[day].fits(data := data_files(settings.events_dir, day))
            for path in data
        ]
        if files:
            with warehouse.connect(settings, ":memory:") as db:
                ((outside,),) = db.execute(
                    "select count(*) from read_parquet($files)"
                    " where created_at < $start or created_at >= $end",
                    {"files": files, "start": start, "end": end},
                ).fetchall()
            had -= outside
    if found < had:
        zones = ", ".join(sorted({manifest.timezone for manifest in recut.values()}))
        raise UsagePipelineError(
            f"USAGE_TIMEZONE was {zones} and is {settings.timezone}, so all days are cut anew, but "
            f"the source has {found:,} of their {had:,} events",
            f"Set it to {zones} again, or take what the source has: usage-pipeline rollup "
            "--allow-fewer-events",
        )


def refused_days(settings: Settings) -> dict[date, Manifest]:
    """Days that keep more events than the source has, oldest first."""
    return {day: m for day, m in landed_manifests(settings).items() if m.refused}


def refusal(refused: Iterable[Manifest]) -> UsagePipelineError:
    """What to tell an operator of refused days, and what to do."""
    days = {date.fromisoformat(manifest.usage_date): manifest for manifest in refused}
    shown = [
        f"{day} (has {m.rows:,}, source {m.refused_rows:,}{', files damaged' if m.lost else ''})"
        for day, m in list(days.items())[:_REFUSED_SHOWN]
    ]
    more = f" and {len(days) - len(shown)} more days" if len(days) > len(shown) else ""
    return UsagePipelineError(
        f"The source has fewer events than landed or published, so nothing was changed for "
        f"{', '.join(shown)}{more}",
        "Bring the events back into the source and roll the days up, or take what it has: "
        + lost_events.allowing(min(days), max(days) + timedelta(days=1)),
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
    manifests = []
    with _source(settings, ("usage_events",)) as source:
        for day in days:
            manifests.append(_extract_day(settings, source, day, folder))
            progress(manifests[-1])
    return manifests


def land_snapshots(
    settings: Settings, replacing: AbstractContextManager[None] = _NOBODY_ELSE
) -> dict[str, int]:
    """Replace the snapshots of the other source tables, all from one state.

    Args:
        replacing: entered around the renames, when the source is closed already.

    Returns:
        Rows by table.
    """
    rows = {}
    with in_use(settings), warehouse.scratch(settings) as work:
        with _source(settings, SNAPSHOTS) as source:
            for table in SNAPSHOTS:
                columns = source.columns[table]
                ids = [c for c in columns if c == "id" or c[-3:] == "_id"]
                texts = [f"cast({c} as varchar) as {c}" for c in ids]
                dates = [
                    f"cast(timezone('{settings.timezone}', {c}) as date) as {c[:-3]}_date"
                    for c in columns
                    if c.endswith("_at")
                ]
                remote = ", ".join(_usable(column) for column in columns)
                others = [c for c in columns if c not in ids]
                query = f"select {remote} from ({source_query(table)}) as source"
                select = f"select {', '.join([*texts, *others, *dates])} from {_scan(query)}"
                path = work / f"{table}.parquet"
                _copy(source.db, f"({select})", path)
                _leave_out_erased(settings, table, path)
                rows[table] = pyarrow.parquet.read_metadata(path).num_rows
        with replacing:
            for table in SNAPSHOTS:
                name = f"{table}.parquet"
                (work / name).replace(settings.landing_dir / name)
    return rows


def _usable(column: str) -> str:
    """A column of an account, judged in Postgres: what no table can hold is landed as null, an
    instant as unknown and a limit as none."""
    if column == "limit_quantity":
        fits = _FITS.replace("quantity", column)
        return f"(case when {fits} then {column} end)::numeric(38,9) as {column}"
    if column.endswith("_at"):
        return f"case when isfinite({column}) then {column} end as {column}"
    return column


@contextmanager
def in_use(settings: Settings, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Whoever lands shares landing, from the extraction on; who erases a person has it alone.

    So nobody puts an extracted file in place that was made when the person was not erased yet.
    Taken before the writer's lock, never after it.
    """
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    with warehouse.locked(settings.landing_dir, how):
        yield


def invalid_events_known(settings: Settings, days: Iterable[date]) -> dict[date, float]:
    """How many invalid events that are landed in one of `days` the warehouse has, by its day.

    The caller is the single writer.
    """
    files = [str(file) for day in days for file in data_files(settings.events_dir, day)]
    if not files:
        return {}
    with warehouse.connect(settings, settings.warehouse_path, read_only=True) as db:
        try:
            rows = db.execute(
                "select invalid.usage_date, count(distinct invalid.event_id)"
                " from read_parquet(?, hive_partitioning = false)"
                " as landed inner join invalid_usage_events as invalid"
                " on landed.id = invalid.event_id group by invalid.usage_date",
                [files],
            ).fetchall()
        except duckdb.CatalogException:  # nothing was built yet
            return {}
    return dict(rows)


def days_of_user(settings: Settings, user_id: UUID) -> list[date]:
    """Landed days with an event that names a person, as its user or in its event_data.

    Raises:
        UsagePipelineError: a landed file cannot be read.
    """
    files = [file for day in partitions(settings) for file in data_files(settings.events_dir, day)]
    if not files:
        return []
    with warehouse.connect(settings, ":memory:") as db:
        try:
            rows = db.execute(
                "select distinct cast(usage_date as date) from read_parquet($1, hive_partitioning ="
                f" true) where {erased_users.events_that_name(user_id)} order by 1",
                [list(map(str, files))],
            ).fetchall()
        except duckdb.Error as error:
            raise UsagePipelineError(
                f"Landing cannot be read ({str(error).splitlines()[0]})",
                "Run `usage-pipeline rollup`, which extracts damaged days again",
            ) from error
    return [day for (day,) in rows]


def erase_user(
    settings: Settings,
    user_id: UUID,
    days: Iterable[date],
    progress: Callable[[date], None] = lambda day: None,
) -> None:
    """Take a person out of what is landed, without asking the source, which may have deleted it.

    The caller has landing alone, and is the single writer.

    Args:
        days: the person's, see `days_of_user`.
        progress: called with each rewritten day.
    """
    with warehouse.scratch(settings) as work:
        for table in SNAPSHOTS:
            path, staged = settings.landing_dir / f"{table}.parquet", work / f"{table}.parquet"
            if path.exists() and table in erased_users.PERSON_COLUMNS:
                erased_users.rewrite(settings, table, path, [user_id], staged)
                staged.replace(path)
        for day in days:
            data, manifest = data_files(settings.events_dir, day), _manifest(settings, day)
            without = [work / path.name for path in data]
            for path, rewritten in zip(data, without, strict=True):
                erased_users.rewrite(settings, "usage_events", path, [user_id], rewritten)
            # The manifest first, with both sizes: a kill after it leaves no day that looks
            # damaged. One that is damaged must go on looking so.
            if manifest and manifest.fits(data):
                old, new = (_sizes(files) for files in (data, without))
                manifest = replace(manifest, files=new, previous_files=old)
                (work / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
                (work / _MANIFEST).replace(data[0].with_name(_MANIFEST))
            for path, rewritten in zip(data, without, strict=True):
                rewritten.replace(path)
            progress(day)


def land_calendar(settings: Settings) -> None:
    """Write the local days from the first partition's month on, with their instants.

    Python's time zone data is the only judge of when a day begins; SQL joins to this table.
    """
    first, last = settings.start_date.replace(day=1), settings.today() + timedelta(days=400)
    days = DayRange(first, last).days()
    starts = [settings.day_start(day) for day in [*days, last]]
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    with warehouse.scratch(settings) as work, warehouse.connect(settings, ":memory:") as db:
        db.execute(
            "create table calendar as select unnest(?::date[]) as calendar_date, "
            "unnest(?::timestamptz[]) as starts_at, unnest(?::timestamptz[]) as ends_at",
            [days, starts[:-1], starts[1:]],
        )
        _copy(db, "calendar", work / "calendar.parquet")
        (work / "calendar.parquet").replace(settings.landing_dir / "calendar.parquet")


def landed_manifests(settings: Settings) -> dict[date, Manifest]:
    """The manifests of the landed days that count, unreadable ones left out.

    Raises:
        UsagePipelineError: a newer release landed a day.
    """
    found = {day: _manifest(settings, day) for day in _landed_days(settings)}
    return {day: manifest for day, manifest in found.items() if manifest}


def _manifest(settings: Settings, day: date) -> Manifest | None:
    """A day's manifest; None when there is none that can be read."""
    path = partition(settings.events_dir, day) / _MANIFEST
    try:
        return _current(json.loads(path.read_text()))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _current(recorded: dict[str, Any]) -> Manifest:
    """A manifest of any release up to this one, in this one's shape."""
    version = recorded["schema_version"]
    if version > SCHEMA_VERSION:
        raise UsagePipelineError(
            f"The day {recorded['usage_date']} was landed by a newer release (schema {version}; "
            f"this one knows {SCHEMA_VERSION})",
            "Update the checkout to that release",
        )
    if version < 2:  # without fingerprints; what duplicates were is not known any more
        last = recorded["max_created_at"]
        known = fingerprint(
            recorded["rows"],
            Decimal(recorded["sum_quantity"]),
            datetime.fromisoformat(last) if last else None,
        )
        recorded["fingerprint"] = "" if recorded["duplicate_rows"] else known
    if version < 3:  # with one data file
        recorded["files"] = {_PARTS[0]: recorded.pop("bytes")}
        if previous := recorded.pop("previous_bytes", None):
            recorded["previous_files"] = {_PARTS[0]: previous}
    return Manifest(**{**recorded, "schema_version": SCHEMA_VERSION})


def changed_days(settings: Settings, days: DayRange) -> dict[date, str]:
    """Landed days whose source differs from what was landed, with a text that tells the difference
    from any other: when the day was landed, and the source's fingerprint now.

    One grouped query over the range in Postgres, whatever the number of days.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    landed = {d: m for d, m in landed_manifests(settings).items() if days.start <= d < days.end}
    now = source_fingerprints(settings, days)
    return {
        day: f"{manifest.extracted_at} {now[day]}"
        for day, manifest in landed.items()
        if now[day] != (manifest.refused or manifest.fingerprint)
    }


def source_fingerprints(settings: Settings, days: DayRange) -> dict[date, str]:
    """The fingerprint of each day of the range in the source, empty days included."""
    with connect(app_database_url(settings)) as postgres:
        found = {
            day: fingerprint(*figures)
            for day, *figures in _by_day(settings, postgres, days, _FINGERPRINT)
        }
    return {day: found.get(day, EMPTY) for day in days.days()}


def source_totals(
    settings: Settings, ranges: Iterable[DayRange]
) -> dict[date, dict[str, tuple[int, Decimal]]]:
    """Valid events and their exact sum in the source, per day and event type, by Postgres's sums.

    Without days where ids may be duplicates: which of them count takes more than a grouped query.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    found: dict[date, dict[str, tuple[int, Decimal]]] = {}
    figures = f"event_type::text, count(*) filter (where {_FITS}), {_VALID_SUM}"
    with connect(app_database_url(settings)) as postgres:
        if not _ids_are_unique(postgres, source_query("usage_events")):
            return {}
        for days in ranges:
            found |= {day: {} for day in days.days()}
            for day, event_type, events, total in _by_day(
                settings, postgres, days, figures, "event_type"
            ):
                found[day][event_type] = events, total
    return found


def _by_day(
    settings: Settings,
    postgres: PostgresConnection,
    days: DayRange,
    figures: str,
    *also_by: str,
) -> list[tuple[Any, ...]]:
    """Figures of the source's events by day: one grouped query over one index range."""
    every = days.days()
    # The bounds come from here, so that Postgres's time zone data has no say in what a day is.
    bounds = [settings.day_start(day) for day in [*every, days.end]]
    with postgres.cursor() as cursor:
        cursor.execute(
            f"set transaction read only; set local statement_timeout = '{FINGERPRINT_TIMEOUT}'"
        )
        cursor.execute(
            f"select width_bucket(created_at, %(bounds)s::timestamptz[]) - 1 as day, {figures} "
            f"from ({source_query('usage_events')}) as events "
            "where created_at >= %(start)s and created_at < %(end)s "
            f"group by {', '.join(['day', *also_by])}",
            {"bounds": bounds, "start": bounds[0], "end": bounds[-1]},
        )
        return [(every[at], *row) for at, *row in cursor.fetchall()]


def days_to_repair(settings: Settings, needs_event_data: bool) -> list[date]:
    """Landed days that have to be extracted again before anything reads landing.

    A file is missing or has another size than its manifest says, the manifest is unreadable, the
    day was cut in another time zone or by another release, `event_data` is needed and absent, or a
    published day is not landed at all. A day that was refused is not tried again for that.
    """
    manifests = landed_manifests(settings)
    days = []
    for day in sorted({*_landed_days(settings), *lost_events.published_days(settings)}):
        manifest = manifests.get(day)
        if (
            manifest is None
            or not manifest.fits(data_files(settings.events_dir, day))
            or manifest.timezone != settings.timezone
            or (needs_event_data and not manifest.event_data and not manifest.refused)
        ):
            days.append(day)
    return days


def _landed_days(settings: Settings) -> list[date]:
    """From `USAGE_START_DATE` on; what was landed before it enters no table."""
    return [day for day in partitions(settings) if day >= settings.start_date]


def partitions(settings: Settings) -> dict[date, Path]:
    """The directories of all landed days, oldest first, those before `USAGE_START_DATE` too."""
    return warehouse.partitions_in(settings.events_dir)


@dataclass
class _Source:
    """The source attached to an in-memory DuckDB: read-only transactions of one snapshot.

    Attributes:
        transactions: connections to the DuckDB, each of them in a transaction of its own with a
            connection of its own to the source; for one half of a day each.
    """

    transactions: list[duckdb.DuckDBPyConnection]
    columns: dict[str, list[str]]
    unique_ids: bool
    opened_at: datetime

    @property
    def db(self) -> duckdb.DuckDBPyConnection:
        return self.transactions[0]


def _scan(query: str) -> str:
    """A table function that runs the query in Postgres, casts and all."""
    escaped = query.replace("'", "''")
    return f"postgres_query('app', '{escaped}')"


def _begin(transactions: Sequence[duckdb.DuckDBPyConnection]) -> None:
    """Begin in every connection, with the snapshot of the first one."""
    snapshot = None
    for db in transactions:

        def execute(statement: str, db: duckdb.DuckDBPyConnection = db) -> None:
            # Not as a parameter: binding the first one costs the import of pandas.
            escaped = statement.replace("'", "''")
            db.execute(f"call postgres_execute('app', '{escaped}')")

        db.execute("begin")
        if snapshot:
            execute(f"set transaction snapshot '{snapshot}'")
        execute(f"set local application_name = '{APPLICATION_NAME}'")
        execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")
        if not snapshot:
            exported = _scan("select pg_export_snapshot() as snapshot")
            ((snapshot,),) = db.execute(f"from {exported}").fetchall()


@contextmanager
def _source(settings: Settings, tables: tuple[str, ...]) -> Iterator[_Source]:
    url = app_database_url(settings)
    # psycopg2 first: its errors name what is wrong, DuckDB's wrap them.
    with connect(url) as postgres:
        described = {table: _describe(postgres, source_query(table)) for table in tables}
        columns = {table: [column.name for column in described[table]] for table in tables}
        oids = {column.table_oid for table in tables for column in described[table]}
        record_shape(settings, read_shape(postgres, oids - {None}))
        unique = "usage_events" in tables and _ids_are_unique(
            postgres, source_query("usage_events")
        )
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    opened_at = datetime.now(UTC)  # before the snapshot is taken, which the first query does
    with warehouse.connect(settings, ":memory:") as db:
        warehouse.load_postgres_extension(db)
        try:
            escaped = url.replace("'", "''")
            db.execute(f"attach '{escaped}' as app (type postgres, read_only)")
            transactions = [db, *(db.cursor() for _ in _PARTS[1:])]
            try:
                _begin(transactions)
                yield _Source(transactions, columns, unique, opened_at)
            finally:
                # Not left to closing, which ends the process when the connection is lost.
                for transaction in transactions:
                    with suppress(duckdb.Error):
                        transaction.rollback()
        except duckdb.Error as error:
            conceal(error)
            if warehouse.disk_is_full(error):
                raise
            raise database_error(error, url, "USAGE_APP_DATABASE_URL") from error


def _describe(postgres: PostgresConnection, query: str) -> tuple[Any, ...]:
    """The query's columns; each knows its table, unless it is an expression."""
    with postgres.cursor() as cursor:
        cursor.execute(f"select * from ({query}) as source limit 0")
        return tuple(cursor.description or ())


def _ids_are_unique(postgres: PostgresConnection, query: str) -> bool:
    """Whether a unique index of one table vouches for the ids, so that none can be duplicates."""
    (column,) = _describe(postgres, f"select id from ({query}) as events")
    with postgres.cursor() as cursor:
        cursor.execute(
            "select 1 from pg_index where indrelid = %s and indisunique and indisvalid "
            "and indnkeyatts = 1 and indkey[0] = %s and indpred is null",
            (column.table_oid, column.table_column),
        )
        if cursor.fetchone() is None:
            return False
        cursor.execute(f"explain (format json) {query}")
        ((plan,),) = cursor.fetchall()
    return _scans_one_table(plan[0]["Plan"])


def _scans_one_table(plan: dict[str, Any]) -> bool:
    """Whether a plan is the scan of one table, so that no row of it comes out twice.

    Every other node is taken for one that could repeat a row: joins, sets, functions, partitions.
    """
    beside = ("InitPlan", "SubPlan")  # scalar subqueries
    children = [c for c in plan.get("Plans", []) if c["Parent Relationship"] not in beside]
    if plan["Node Type"] in ("Gather", "Result") and len(children) == 1:
        return _scans_one_table(children[0])
    scans = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan")
    return plan["Node Type"] in scans and all(
        child["Node Type"].startswith("Bitmap") for child in children
    )


def _extract_day(settings: Settings, source: _Source, day: date, folder: Path) -> Manifest:
    start, end = settings.day_bounds(day)
    raw = None
    if not source.unique_ids:
        figures = _scan(
            f"select n, total::text as total, last from (select {_FINGERPRINT} from "
            f"({source_query('usage_events')}) as events where {_between(start, end)}) "
            "as figures (n, total, last)"
        )
        raw = source.db.execute(f"select n, total, last from {figures}").fetchall()[0]
    noon = start + (end - start) / 2
    halves = (_between(start, noon), _between(noon, end))
    target = partition(folder, day)
    target.mkdir(parents=True)
    data = [target / name for name in _PARTS]

    def extract(db: duckdb.DuckDBPyConnection, window: str, path: Path) -> None:
        _copy(db, f"({_landed_events(settings, source, window)})", path)
        _leave_out_erased(settings, "usage_events", path)

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
    total = _EXACT.add(small, _EXACT.add(whole, fraction))
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
        files=_sizes(data),
    )
    (target / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
    return manifest


def _sizes(data: Iterable[Path]) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in data}


def _between(start: datetime, end: datetime) -> str:
    return f"created_at >= '{start.isoformat()}' and created_at < '{end.isoformat()}'"


def _landed_events(settings: Settings, source: _Source, window: str) -> str:
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
    query = (
        f"select id, user_id, org_id, event_type::text as event_type, {event_data} as event_data, "
        f"(case when {_FITS} then quantity end)::numeric(38,9) as quantity, "
        f"case when not ({_FITS}) then quantity::text end as quantity_raw, "
        f"created_at from ({winners}) as winners"
    )
    return (
        "select cast(id as varchar) as id, cast(user_id::uuid as varchar) as user_id, "
        "cast(org_id::uuid as varchar) as org_id, event_type, event_data, quantity, quantity_raw, "
        f"created_at from {_scan(query)}"
    )


def _copy(db: duckdb.DuckDBPyConnection, relation: str, path: Path) -> None:
    # This level takes a fifth less work than the usual one, for a twentieth more bytes.
    how = "format parquet, compression zstd, compression_level 1"
    db.execute(f"copy {relation} to '{quoted(path)}' ({how})")


def _leave_out_erased(settings: Settings, table: str, file: Path) -> None:
    """Rewrite a file that was just extracted when it names an erased person."""
    people = erased_users.read(settings).named_in(settings, table, file)
    if people:
        without = file.with_suffix(".without")
        erased_users.rewrite(settings, table, file, people, without)
        without.replace(file)
