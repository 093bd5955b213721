"""Where the DuckDB files are, how they are opened, who may write, and which days are pending.

The warehouse can be thrown away: it is rebuilt from landing. So a day is *pending* from when it
is landed until it is published, and a new warehouse starts with every landed day pending. A run
always covers the pending days, and the extractions that others left undone, as well as its own;
that is how a killed, failed or lost run is repaired by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import duckdb
import psutil

from usage_pipeline import permissions
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings

MEMORY_LIMIT = "1GB"
LOCK_TIMEOUT_SECONDS = 3600.0


class DayRange(NamedTuple):
    """Local days `[start, end)`."""

    start: date
    end: date

    def days(self) -> list[date]:
        return [self.start + timedelta(days=i) for i in range((self.end - self.start).days)]

    def whole_months(self) -> DayRange:
        """The range widened to whole calendar months."""
        return DayRange(self.start.replace(day=1), next_month(self.end - timedelta(days=1)))

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


def next_month(day: date) -> date:
    """First day of the month after the one that holds `day`."""
    return (day.replace(day=1) + timedelta(days=31)).replace(day=1)


def merge_ranges(ranges: Iterable[DayRange]) -> list[DayRange]:
    """The same days as sorted, disjoint, non-adjacent ranges."""
    merged: list[DayRange] = []
    for current in sorted(r for r in ranges if r.start < r.end):
        if merged and current.start <= merged[-1].end:
            merged[-1] = DayRange(merged[-1].start, max(merged[-1].end, current.end))
        else:
            merged.append(current)
    return merged


def ranges_of_days(days: Iterable[date]) -> list[DayRange]:
    """Contiguous days as ranges."""
    return merge_ranges(DayRange(day, day + timedelta(days=1)) for day in days)


def partitions_in(folder: Path) -> dict[date, Path]:
    """The directories `usage_date=YYYY-MM-DD` of a folder, oldest first; nothing else counts."""
    found = {}
    for path in sorted(folder.glob("usage_date=*")):
        with suppress(ValueError):
            day = date.fromisoformat(path.name.removeprefix("usage_date="))
            if path.name == f"usage_date={day}" and path.is_dir():
                found[day] = path
    return found


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A new directory for temporary files, removed when the block ends.

    It is locked as long as its process lives. So what killed processes left behind can be told
    from what others are using, and is removed first.

    Raises:
        UsagePipelineError: the block, or what made the directory, met a full disk.
    """
    with _room_on_disk(settings.home):
        settings.scratch_dir.mkdir(parents=True, exist_ok=True)
        with locked(settings.scratch_dir):  # nobody finds the new directory before it is locked
            for left in settings.scratch_dir.iterdir():
                with (
                    suppress(BlockingIOError, FileNotFoundError),
                    locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            work = Path(tempfile.mkdtemp(dir=settings.scratch_dir))
            lock = os.open(work, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)


def replace_text(settings: Settings, path: Path, text: str) -> None:
    """Write a file below USAGE_HOME whole: a reader, or a kill, meets the old text or the new."""
    with scratch(settings) as work:
        (work / path.name).write_text(text)
        (work / path.name).replace(path)


def disk_is_full(error: Exception) -> bool:
    """Whether this failure, of Python or of DuckDB, comes from a full disk, quota or file limit."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in full
    return any(os.strerror(number) in str(error) for number in full)


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, duckdb.IOException) as error:
        if not disk_is_full(error):
            raise
        raise UsagePipelineError(
            f"The disk of {folder} is full", "Free space and run again"
        ) from error


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


@contextmanager
def connect(
    settings: Settings, path: Path | str, *, read_only: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB file (or `:memory:`) with bounded memory, spilling below USAGE_HOME, in UTC."""
    with scratch(settings) as spilled:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(spilled),
            "preserve_insertion_order": False,
        }
        with duckdb.connect(str(path), read_only=read_only, config=config) as db:
            db.execute("set TimeZone = 'UTC'")
            yield db


def exact_sum(value: str) -> str:
    """SQL that adds up a DECIMAL(38,9); NULL when the sum, or one of its parts, cannot be held.

    As `total_of` in the dbt project's `totals.sql` does, which says how.
    """
    ordinary = f"{value} between -10000000000000000000 and 10000000000000000000"
    small = f"sum(case when {ordinary} then {value} else {value} - trunc({value}) end)"
    great = f"coalesce(sum(case when not {ordinary} then trunc({value}) end), 0)"
    whole, fraction = f"({great} + trunc({small}))", f"({small} - trunc({small}))"
    carry = f"case when sign({whole}) * sign({fraction}) < 0 then sign({whole}) else 0 end"
    return (
        f"case when count({value}) = count(*) then try_cast({whole} - {carry} as decimal(38, 9))"
        f" + cast({fraction} + {carry} as decimal(10, 9)) end"
    )


def quoted(path: Path) -> str:
    """A path as the inside of an SQL string: `attach` and `copy` take no parameters."""
    return str(path).replace("'", "''")


def compact(settings: Settings, path: Path) -> None:
    """Rewrite a DuckDB file, so that nothing of its deleted rows stays in its free blocks.

    The caller is the single writer; readers keep the old file until they reopen.
    """
    with scratch(settings) as work:
        with connect(settings, ":memory:") as db:
            # Read-only is refused by no reader, but leaves the log of a killed writer as it is.
            log = path.with_name(f"{path.name}.wal")
            db.execute(f"attach '{quoted(path)}' as old{'' if log.exists() else ' (read_only)'}")
            if log.exists():
                db.execute("checkpoint old")
            db.execute(f"attach '{quoted(work / path.name)}' as new")
            db.execute("copy from database old to new; checkpoint new")
        (work / path.name).replace(path)


@contextmanager
def exclusive(
    settings: Settings, purpose: str, on_wait: Callable[[str], None] = lambda holder: None
) -> Iterator[None]:
    """Be the only writer of the warehouse; the kernel frees the lock when the process dies.

    Args:
        purpose: what the holder is doing, shown to whoever waits.
        on_wait: called once with a description of the holder when the lock is taken.

    Raises:
        UsagePipelineError: the lock stays taken for `LOCK_TIMEOUT_SECONDS`, or was another host's.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    permissions.keep_private(settings)
    lock_path = settings.home / "writer.lock"
    with lock_path.open("a+") as lock:
        deadline, told = time.monotonic() + LOCK_TIMEOUT_SECONDS, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                who = lock_path.read_text() or "another process"
                if not told:
                    on_wait(who)
                    told = True
                if time.monotonic() > deadline:
                    raise UsagePipelineError(
                        f"The warehouse is held by {who}",
                        "Wait for it to end, or stop that process, and run again",
                    ) from None
                time.sleep(0.2)
        left, _, host = lock_path.read_text().rpartition(") on ")
        if left and host != platform.node():  # killed, or its lock does not reach this host
            raise _another_host(f"A {left}) on {host}")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} ({purpose}) on {platform.node()}")
        lock.flush()
        # What a killed writer spilled: dbt has DuckDB's default place for it.
        shutil.rmtree(f"{settings.warehouse_path}.tmp", ignore_errors=True)
        try:
            yield
        finally:
            lock.truncate(0)


def holder(settings: Settings) -> str | None:
    """Who is writing the warehouse now, in words; None when nobody is."""
    path = settings.home / "writer.lock"
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return path.read_text() or "another process"
        return None


def process(pid: int) -> str | None:
    """A process as one of a kind: pids are used again. None when it has ended."""
    try:
        return f"{platform.node()} {pid} {psutil.Process(pid).create_time()}"
    except psutil.NoSuchProcess:
        return None


def lives(known: str) -> bool:
    """Whether the process that `process` described still runs.

    Raises:
        UsagePipelineError: it is another host's, of which this one cannot tell.
    """
    host, pid, _ = known.split()
    if host != platform.node():
        raise _another_host(f"Process {pid} on {host}")
    return process(int(pid)) == known


def _another_host(who: str) -> UsagePipelineError:
    return UsagePipelineError(
        f"{who} has not finished its work, and this is {platform.node()}; one host writes",
        "Let it end there; if that host is gone, see docs/operations.md, One host writes",
    )


def this_process() -> str:
    """`process` of the caller."""
    return str(process(os.getpid()))


@dataclass(frozen=True)
class Extraction:
    """Days that the process `by` is extracting, or was when it ended."""

    days: DayRange
    by: str


class PendingDays:
    """The days whose warehouse rows are not published yet, in `warehouse.json`.

    A day is `pending` while its rows are missing or may be half built, then `built`, and gone from
    here once published. The rows of built days agree with what is landed: when that changes, they
    are pending again. Only built days are audited and published, so that another run's
    extraction, which goes on meanwhile, cannot get in between.

    Args:
        settings: where the file is.
        version: identifies what the rows were built with (models and meters); when it differs
            from the recorded one, or the warehouse file is gone, every landed day is pending.
        landed: the landed days, asked for only in that case.
        lost: days that cannot be built, which are never pending.
    """

    def __init__(
        self,
        settings: Settings,
        version: str,
        landed: Callable[[], Iterable[date]],
        lost: Callable[[], Iterable[date]] = tuple,
    ) -> None:
        self._path = settings.home / "warehouse.json"
        self._warehouse = settings.warehouse_path
        self._version = version
        self._landed = landed
        self._lost = lost

    def ranges(self) -> list[DayRange]:
        """All days that are not published, as disjoint ranges, oldest first."""
        state = self._read()
        wanted = [extraction.days for extraction in state.extracting]
        return merge_ranges([*wanted, *state.pending, *state.built])

    def unbuilt(self) -> list[DayRange]:
        """Landed days whose rows are missing or may be half built."""
        return self._read().pending

    def built(self) -> list[DayRange]:
        """Days whose rows are complete and wait to be audited and published."""
        return self._read().built

    def revision(self) -> int:
        """Grows with every landing and build; equal revisions mean equal rows."""
        return self._read().revision

    def add(self, days: set[date]) -> set[date]:
        """Days are about to be extracted; gives them and those whose extraction was cut short.

        A run that died or failed between asking for days and landing them is completed by the
        next one; days that another living process extracts meanwhile are left to it.
        """
        with self._changing() as state:  # without the writer's lock: the warehouse may be in use
            abandoned = [e for e in state.extracting if e.by == this_process() or not lives(e.by)]
            days = days | {day for extraction in abandoned for day in extraction.days.days()}
            state.extracting = [e for e in state.extracting if e not in abandoned]
            state.extracting += [Extraction(r, this_process()) for r in ranges_of_days(days)]
        return days

    def landed(self, ranges: Iterable[DayRange]) -> None:
        """Landing was replaced: days that this process asked for, or snapshots of other tables.
        The caller is the single writer."""
        with self._changing() as state:
            self._discard_untrusted(state)
            if ranges:
                state.extracting = [e for e in state.extracting if e.by != this_process()]
            state.pending = merge_ranges([*state.pending, *state.built, *ranges])
            state.built = []
            state.revision += 1

    def begin(self, ranges: Iterable[DayRange]) -> list[DayRange]:
        """A build begins; gives what it has to cover: the given days and all unpublished ones.
        The caller is the single writer."""
        with self._changing() as state:
            self._discard_untrusted(state)
            state.pending = merge_ranges([*state.pending, *state.built, *ranges])
            state.built = []
            state.revision += 1
        return state.pending

    def finish(self, ranges: Iterable[DayRange]) -> None:
        """These days are built."""
        with self._changing() as state:
            if state.revision == 0:  # another version of the project began meanwhile
                return
            state.pending = _without(state.pending, ranges)
            state.built = merge_ranges([*state.built, *ranges])
            state.revision += 1

    def remove(self, ranges: Iterable[DayRange]) -> None:
        """These built days are published."""
        with self._changing() as state:
            state.built = _without(state.built, ranges)

    def _read(self) -> _State:
        try:
            recorded = json.loads(self._path.read_text())
            state = _State(
                version=recorded["version"],
                revision=recorded["revision"],
                fresh=recorded["fresh"],
                pending=[_range(pair) for pair in recorded["pending"]],
                built=[_range(pair) for pair in recorded["built"]],
                extracting=[Extraction(_range(e["days"]), e["by"]) for e in recorded["extracting"]],
            )
        except (FileNotFoundError, json.JSONDecodeError, KeyError):
            state = None
        if state and state.version == self._version and (state.fresh or self._warehouse.exists()):
            return state
        # Built with other models or meters, or lost: nothing that may be there can be trusted.
        extracting = state.extracting if state else []
        days = ranges_of_days(set(self._landed()) - set(self._lost()))
        return _State(self._version, 0, True, days, [], extracting)

    def _discard_untrusted(self, state: _State) -> None:
        if state.revision == 0:
            self._warehouse.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[_State]:
        """The state, written back when the block ends. It has a lock of its own, because one run
        extracts while another builds."""
        lock_path = self._path.with_suffix(".lock")
        with _room_on_disk(self._path.parent), lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._read()
            yield state
            lost = ranges_of_days(self._lost())
            state.pending = _without(state.pending, lost)
            state.built = _without(state.built, lost)
            # Once the file was there, its absence means that it was lost.
            state.fresh = not self._warehouse.exists()
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(state), default=str))
            temporary.replace(self._path)


@dataclass
class _State:
    """The content of `warehouse.json`; `fresh` until the warehouse file is first seen.

    At revision 0 what the warehouse file holds cannot be trusted, and the next writer removes it.
    """

    version: str
    revision: int
    fresh: bool
    pending: list[DayRange]
    built: list[DayRange]
    extracting: list[Extraction]


def _range(pair: list[str]) -> DayRange:
    return DayRange(date.fromisoformat(pair[0]), date.fromisoformat(pair[1]))


def _without(ranges: Iterable[DayRange], gone: Iterable[DayRange]) -> list[DayRange]:
    left = {day for days in ranges for day in days.days()}
    return ranges_of_days(left - {day for days in gone for day in days.days()})


def load_postgres_extension(db: duckdb.DuckDBPyConnection) -> None:
    """Load DuckDB's Postgres extension from its wheel: no download at run time."""
    wheel = files("duckdb_extension_postgres_scanner").joinpath(
        "extensions", f"v{duckdb.__version__}", "postgres_scanner.duckdb_extension"
    )
    if wheel.is_file():
        db.execute(f"load '{wheel}'")
    else:  # a platform without a wheel
        db.execute("install postgres")
        db.execute("load postgres")
