"""What is landed: one directory per local day of events, with a manifest beside the data."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from usage_pipeline.app_db.fingerprints import fingerprint
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import locked
from usage_pipeline.settings import Settings


def partitions_in(folder: Path) -> dict[date, Path]:
    """The directories `usage_date=YYYY-MM-DD` of a folder, oldest first; nothing else counts."""
    found = {}
    for path in sorted(folder.glob("usage_date=*")):
        with suppress(ValueError):
            day = date.fromisoformat(path.name.removeprefix("usage_date="))
            if path.name == f"usage_date={day}" and path.is_dir():
                found[day] = path
    return found


SCHEMA_VERSION = 5
MANIFEST = "manifest.json"
PARTS = ("part-0.parquet", "part-1.parquet")  # each half of a day, extracted at once


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
        twice: whether events of a refused day are landed in other days as well, because
            they moved there and were taken over.
        rows_changed: see `session.count_changes`, when the day was extracted.
        uuids: the columns that are Parquet's UUID; other ids are text, as all of older releases.
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
    twice: bool = False
    rows_changed: str = ""
    uuids: list[str] = field(default_factory=list)
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


def partition(folder: Path, day: date) -> Path:
    """The directory of a day: its data files and their manifest."""
    return folder / f"usage_date={day}"


def data_files(folder: Path, day: date) -> list[Path]:
    """The Parquet files of a day; none when it was never landed."""
    return sorted(partition(folder, day).glob("part-*.parquet"))


@contextmanager
def in_use(settings: Settings, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Whoever lands shares landing, from the extraction on; who erases a person has it alone.

    So nobody puts an extracted file in place that was made when the person was not erased yet.
    Taken before the writer's lock, never after it.
    """
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    with locked(settings.landing_dir, how):
        yield


def landed_manifests(settings: Settings) -> dict[date, Manifest]:
    """The manifests of the landed days that count, unreadable ones left out.

    Raises:
        UsagePipelineError: a newer release landed a day.
    """
    found = {day: manifest_of(settings, day) for day in landed_days(settings)}
    return {day: manifest for day, manifest in found.items() if manifest}


def manifest_of(settings: Settings, day: date) -> Manifest | None:
    """A day's manifest; None when there is none that can be read."""
    path = partition(settings.events_dir, day) / MANIFEST
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
        recorded["files"] = {PARTS[0]: recorded.pop("bytes")}
        if previous := recorded.pop("previous_bytes", None):
            recorded["previous_files"] = {PARTS[0]: previous}
    return Manifest(**{**recorded, "schema_version": SCHEMA_VERSION})


def landed_days(settings: Settings) -> list[date]:
    """From `USAGE_START_DATE` on; what was landed before it enters no table."""
    return [day for day in partitions(settings) if day >= settings.start_date]


def partitions(settings: Settings) -> dict[date, Path]:
    """The directories of all landed days, oldest first, those before `USAGE_START_DATE` too."""
    return partitions_in(settings.events_dir)


def sizes(data: Iterable[Path]) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in data}
