"""CSV files for the application's users: a month's totals per user, raw events on demand.

Totals come from the published snapshot only, so a user downloads what dashboards show. DuckDB
sorts and renders the lines; Python cuts them per user, hashes them, and writes what changed.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import duckdb

from usage_pipeline.days import DayRange, next_month
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import locked, scratch
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.serving import published
from usage_pipeline.serving.landed_events import EXTRACT_AGAIN, landed_events
from usage_pipeline.settings import Settings

if TYPE_CHECKING:
    import pyarrow

_HEADER = b"usage_date,org_id,metric_type,total_quantity,event_count\n"
_EVENTS_HEADER = b"created_at,id,org_id,event_type,quantity,event_data\n"
_ROWS_PER_BATCH = 100_000
_SOME_USERS = ".some_users"  # beside a manifest of users who were exported one by one
_STATE = ".published"  # beside the manifest: what was published of the month when it was exported


@dataclass(frozen=True)
class ExportReport:
    """Figures of one export.

    Attributes:
        manifest: the file that lists every user's file.
        users: users exported.
        written: files whose content is new; the others were left alone.
        removed: files of users who have no rows in the month any more.
        rows: data rows in the users' files.
    """

    manifest: Path
    users: int
    written: int
    removed: int
    rows: int


@dataclass(frozen=True)
class _Entry:
    """One line of the manifest; `path` is relative to it."""

    user_id: str
    path: str
    rows: int
    sha256: str


def export_month(
    settings: Settings,
    month: date,
    user_id: UUID | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the users' totals of a month; equal numbers give equal bytes.

    Args:
        settings: where the snapshot and the exports are.
        month: any day of the month.
        user_id: this user only; the manifest keeps its other lines.
        progress: called after each file with the users done and the users in all.

    Raises:
        UsagePipelineError: nothing is published, or nothing for this month or user.
    """
    folder = _month_dir(settings, month)
    manifest = folder / "manifest.csv"
    with _only_export(settings, month) as work, published.reading(settings) as db:
        previous = _read_manifest(manifest)
        users = _count_users(db, month, user_id)
        if not users and not _was_published(db, month, previous, user_id):
            raise _nothing_published(
                f"No usage of {f'user {user_id}' if user_id else 'anybody'} in {month:%Y-%m}"
            )
        entries: dict[str, _Entry] = {}
        written = 0
        for user, rows, content in _users_lines(db, month, user_id):
            path = f"{user[:2]}/{user}.csv"
            entry = _Entry(user, path, rows, hashlib.sha256(content).hexdigest())
            if previous.get(user) != entry or _written_since(manifest, folder / path):
                (work / "user.csv").write_bytes(content)
                _move(work / "user.csv", folder / path)
                written += 1
            entries[user] = entry
            if progress:
                progress(len(entries), users)
        exported = sum(entry.rows for entry in entries.values())
        removed = 0
        if user_id:
            removed = _remove_others(folder, entries, f"{user_id}.*")
            others = {user: entry for user, entry in previous.items() if user != str(user_id)}
            entries = others | entries
            if not manifest.exists():
                (folder / _SOME_USERS).touch()
        else:
            removed = _remove_others(folder, entries)
        if entries != previous or written or not manifest.exists():
            _write_manifest(manifest, entries, work / "manifest.csv")
        if not user_id:
            (folder / _SOME_USERS).unlink(missing_ok=True)
            ((_, _, state),) = _months(db, settings, _days_of(month)) or [(month, 0, "")]
            (work / _STATE).write_text(state)
            _move(work / _STATE, folder / _STATE)
    return ExportReport(manifest, users, written, removed, exported)


def is_exported(settings: Settings, month: date) -> bool:
    """Whether the files of all the month's users were written before."""
    folder = _month_dir(settings, month)
    return (folder / "manifest.csv").exists() and not (folder / _SOME_USERS).exists()


def due_months(settings: Settings) -> list[date]:
    """Months whose files are not what is published: those that are over, with all their days
    published, and those that were exported before. Reads one row a day."""
    if not published.exists(settings):
        return []
    with published.reading(settings) as db:
        months = _months(db, settings)
    due = []
    for month, days, state in months:
        first, end = max(month, settings.start_date), next_month(month)
        whole = end <= settings.today() and days == (end - first).days
        exported, recorded = is_exported(settings, month), _month_dir(settings, month) / _STATE
        is_new = not exported or not recorded.exists() or recorded.read_text() != state
        if is_new and (whole or exported):
            due.append(month)
    return due


def export_user_events(settings: Settings, month: date, user_id: UUID) -> Path:
    """Write one user's landed events of a month, invalid ones included, times in UTC.

    Args:
        settings: where the landing files and the exports are.
        month: any day of the month.
        user_id: whose events.

    Raises:
        UsagePipelineError: event data is not landed, or the user has no events in the month.
    """
    _require_event_data(settings)
    target = _month_dir(settings, month) / f"{str(user_id)[:2]}/{user_id}.events.csv"
    with _only_export(settings, month) as work:
        staged = work / "events.csv"
        with staged.open("wb") as file:
            file.writelines(stream_events(settings, month, user_id=user_id))
        if staged.stat().st_size == len(_EVENTS_HEADER):
            raise UsagePipelineError(
                f"User {user_id} has no landed events in {month:%Y-%m}",
                "Check the id and the month, or land the month with `usage-pipeline rollup`",
            )
        _move(staged, target)
    return target


def stream_events(
    settings: Settings, month: date, *, user_id: UUID | None = None, org_id: UUID | None = None
) -> Iterator[bytes]:
    """Landed events of a month as lines of CSV, invalid ones included, times in UTC: of a user, of
    an organisation, or of a user within one. No more than a day of them is sorted at once.

    Args:
        settings: where the landing files are.
        month: any day of the month.
        user_id: whose events.
        org_id: in which organisation.

    Raises:
        UsagePipelineError: event data is not landed, which is said before the first line; or a
            landed day cannot be read.
    """
    _require_event_data(settings)
    first = month.replace(day=1)
    days = DayRange(max(first, settings.start_date), next_month(first)).days()
    whose = {"user_id": user_id, "org_id": org_id}
    given = {name: str(value) for name, value in whose.items() if value}
    return chain([_EVENTS_HEADER], _events_lines(settings, days, given))


def _events_lines(
    settings: Settings, days: Sequence[date], given: Mapping[str, str]
) -> Iterator[bytes]:
    cells = (
        "strftime(created_at, '%Y-%m-%dT%H:%M:%S.%fZ')",
        _cell("id"),
        "cast(org_id as varchar)",
        _cell("event_type"),
        f"coalesce({_plain('quantity')}, {_cell('quantity_raw')})",
        _cell("event_data"),
    )
    separated = ", chr(44), ".join(cells)
    line = f"concat({separated}, chr(10))"
    where = " and ".join(f"{name} = ${name}" for name in given)
    with open_duckdb(settings, ":memory:") as db:
        for day in days:
            for again in (True, False):
                folder = settings.events_dir / f"usage_date={day}"
                files = [str(path) for path in folder.glob("part-*.parquet")]
                if not files:
                    break
                try:
                    rows = db.execute(
                        f"select {line} from {landed_events('$files')} as events"
                        f" where {where} order by events.created_at, events.id",
                        {"files": files, **given},
                    )
                    batch = rows.fetchmany(_ROWS_PER_BATCH)
                    break
                except duckdb.Error as error:
                    if not again:  # else it was landed again, and these files are gone
                        raise UsagePipelineError(
                            f"Landed day {day} cannot be read", EXTRACT_AGAIN
                        ) from error
            while files and batch:
                yield "".join(text for (text,) in batch).encode()
                batch = rows.fetchmany(_ROWS_PER_BATCH)


def _require_event_data(settings: Settings) -> None:
    if not settings.land_event_data:
        raise UsagePipelineError(
            "Raw events cannot be exported without their event_data",
            "Set USAGE_LAND_EVENT_DATA=true and land the month again",
        )


def remove_user(settings: Settings, user_id: UUID) -> None:
    """Remove a user's totals and raw events of all months, and their lines of the manifests."""
    for folder in sorted(settings.exports_dir.glob("????-??")):
        month = date.fromisoformat(f"{folder.name}-01")
        with _only_export(settings, month) as work:
            for path in folder.glob(f"{str(user_id)[:2]}/{user_id}.*"):
                path.unlink()
            entries = _read_manifest(folder / "manifest.csv")
            if entries.pop(str(user_id), None):
                _write_manifest(folder / "manifest.csv", entries, work / "manifest.csv")


def _nothing_published(what: str) -> UsagePipelineError:
    return UsagePipelineError(f"{what} is published", "Publish it with `usage-pipeline rollup`")


@contextmanager
def _only_export(settings: Settings, month: date) -> Iterator[Path]:
    """A scratch directory, the month's other exports waiting."""
    folder = _month_dir(settings, month)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), scratch(settings) as work:
        yield work


def _count_users(db: duckdb.DuckDBPyConnection, month: date, user_id: UUID | None) -> int:
    try:
        query = f"select count(distinct user_id) from usage_daily where {_chosen(month, user_id)}"
        (users,) = db.execute(query).fetchall()[0]
    except duckdb.CatalogException:  # a snapshot before its first publish has no usage_daily
        users = 0
    return int(users)


def _was_published(
    db: duckdb.DuckDBPyConnection,
    month: date,
    previous: Mapping[str, _Entry],
    user_id: UUID | None,
) -> bool:
    """Whether that there is no usage is news, not a mistyped month or id."""
    if user_id:
        return str(user_id) in previous
    query = f"select count(*) from published_days where {_days_of(month)}"
    return bool(previous) or db.execute(query).fetchall() != [(0,)]


def _chosen(month: date, user_id: UUID | None) -> str:
    return f"{_days_of(month)} and user_id " + (f"= '{user_id}'" if user_id else "is not null")


def _days_of(month: date) -> str:
    first = month.replace(day=1)
    return f"usage_date >= date '{first}' and usage_date < date '{next_month(first)}'"


def _months(
    db: duckdb.DuckDBPyConnection, settings: Settings, where: str = "true"
) -> list[tuple[date, int, str]]:
    """Months with published days: how many, and a text that changes when one is landed again, or
    built with other models or meters."""
    return db.execute(
        "select cast(date_trunc('month', usage_date) as date) as month, count(*),"
        " md5(string_agg(concat_ws(' ', usage_date, epoch_us(extracted_at), built_with), ','"
        f" order by usage_date)) from published_days where usage_date >= ? and {where}"
        " group by month order by month",
        [settings.start_date],
    ).fetchall()


def _users_lines(
    db: duckdb.DuckDBPyConnection, month: date, user_id: UUID | None
) -> Iterator[tuple[str, int, bytes]]:
    """User, data rows and whole file, by user; only one batch and one file are in memory."""
    import pyarrow.compute  # half a second, which a night without exports is spared

    batches = db.execute(f"""
        select cast(user_id as varchar) as user_id,
               concat(usage_date, ',', org_id, ',', {_cell("metric_type")}, ',',
                      {_plain("total_quantity")}, ',', event_count, chr(10)) as line
        from usage_daily as days
        where {_chosen(month, user_id)}
        order by days.user_id, usage_date, org_id nulls first, metric_type
    """).to_arrow_reader(_ROWS_PER_BATCH)
    current, rows, parts = "", 0, [_HEADER]
    for batch in batches:
        text, offsets = _text(batch.column("line"))
        runs = pyarrow.compute.run_end_encode(batch.column("user_id"))
        start = 0
        for user, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if user != current:
                if rows:
                    yield current, rows, b"".join(parts)
                current, rows, parts = user, 0, [_HEADER]
            parts.append(text[offsets[start] : offsets[end]])
            rows += end - start
            start = end
    if rows:
        yield current, rows, b"".join(parts)


def _text(strings: pyarrow.StringArray) -> tuple[memoryview, memoryview]:
    """The bytes of all strings, one after the other, and where each begins and ends."""
    _, offsets, data = strings.buffers()
    return memoryview(data), memoryview(offsets).cast("B").cast("i")[strings.offset :]


def _plain(quantity: str) -> str:
    """SQL: a DECIMAL(38,9) without trailing zeros; its text always has nine digits of fraction.

    DuckDB renders a DECIMAL(18,9) six times as fast; that holds all but very large quantities.
    """
    short = f"cast(try_cast({quantity} as decimal(18, 9)) as varchar)"
    return f"rtrim(rtrim(coalesce({short}, cast({quantity} as varchar)), '0'), '.')"


def _inert(text: str) -> str:
    """SQL: text that no spreadsheet executes."""
    harmful = "'=', '+', '-', '@', chr(9), chr(13)"
    return f"case when left({text}, 1) in ({harmful}) then '''' || {text} else {text} end"


def _cell(text: str) -> str:
    """SQL: inert text as an RFC 4180 cell."""
    quoted = f"""'"' || replace({_inert(text)}, '"', '""') || '"'"""
    return f"case when regexp_matches({text}, '[\",\\r\\n]') then {quoted} else {_inert(text)} end"


def _month_dir(settings: Settings, month: date) -> Path:
    return settings.exports_dir / f"{month:%Y-%m}"


def _move(staged: Path, target: Path) -> None:
    try:
        staged.replace(target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(target)


def _written_since(manifest: Path, file: Path) -> bool:
    """Whether the manifest may not be about this file: a killed export left it, or it is gone."""
    return not file.exists() or file.stat().st_mtime_ns > manifest.stat().st_mtime_ns


def _remove_others(folder: Path, entries: dict[str, _Entry], files: str = "*.csv") -> int:
    """Remove totals and raw events of users who are not in the month (any more)."""
    others = [path for path in folder.glob(f"??/{files}") if path.name.split(".")[0] not in entries]
    for path in others:
        path.unlink()
    return len(others)


def _read_manifest(path: Path) -> dict[str, _Entry]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            line["user_id"]: _Entry(
                line["user_id"], line["path"], int(line["rows"]), line["sha256"]
            )
            for line in csv.DictReader(file)
        }


def _write_manifest(path: Path, entries: dict[str, _Entry], staged: Path) -> None:
    with staged.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("user_id", "path", "rows", "sha256"))
        writer.writerows(astuple(entries[user]) for user in sorted(entries))
    _move(staged, path)
