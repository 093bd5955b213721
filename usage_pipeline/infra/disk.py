"""Files below USAGE_HOME: scratch directories, locks, whole replacement, a full disk in words."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A new directory for temporary files, removed when the block ends.

    It is locked as long as its process lives. So what killed processes left behind can be told
    from what others are using, and is removed first.

    Raises:
        UsagePipelineError: the block, or what made the directory, met a full disk.
    """
    with room_on_disk(settings.home):
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
    return no_room(str(error), Path()) is not None


def no_room(words: str, folder: Path) -> UsagePipelineError | None:
    """A full disk, quota or file limit behind what Python, DuckDB or dbt say of a failure."""
    if os.strerror(errno.EFBIG) in words:
        return UsagePipelineError(
            f"A file below {folder} would be larger than this process may write",
            "Raise its file-size limit (`ulimit -f` shows it) and run again",
        )
    if any(os.strerror(number) in words for number in (errno.ENOSPC, errno.EDQUOT)):
        return UsagePipelineError(f"The disk of {folder} is full", "Free space and run again")
    return None


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, duckdb.IOException) as error:
        failure = no_room(str(error), folder)
        if failure is None:
            raise
        raise failure from error


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)
