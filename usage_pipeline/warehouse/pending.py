"""Which days are pending.

The warehouse can be thrown away: it is rebuilt from landing. So a day is *pending* from when it
is landed until it is published, and a new warehouse starts with every landed day pending. A run
always covers the pending days, and the extractions that others left undone, as well as its own;
that is how a killed, failed or lost run is repaired by the next one.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date

from usage_pipeline.days import DayRange, merge_ranges, ranges_of_days
from usage_pipeline.infra.disk import room_on_disk
from usage_pipeline.infra.processes import lives, this_process
from usage_pipeline.settings import Settings


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
        """Landing was replaced: days that this process asked for, or accounts.
        The caller is the single writer."""
        with self._changing() as state:
            self._discard_untrusted(state)
            mine = [e for e in state.extracting if e.by == this_process()]
            state.extracting = [e for e in state.extracting if e not in mine]
            left = _without([e.days for e in mine], ranges)
            state.extracting += [Extraction(days, this_process()) for days in left]
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
        with room_on_disk(self._path.parent), lock_path.open("w") as lock:
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
