"""What is published, and the only code that opens it.

The pipeline builds on a file of its own, `published.duckdb`; `serving/usage.duckdb` is a copy of
it for readers. DuckDB's lock is on the file, under whatever name: whoever opens the copy for
writing, or changes it, can refuse the pipeline nothing and takes no part in the next publish.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.settings import Settings


def exists(settings: Settings) -> bool:
    """Whether there is a published file; before the first publish it holds bookkeeping only."""
    return own_path(settings).exists()


def own_path(settings: Settings) -> Path:
    """The pipeline's file; made from the readers' copy when only that was restored or kept."""
    path = settings.published_path
    if not path.exists() and settings.snapshot_path.exists():
        with scratch(settings) as work:
            clone(settings.snapshot_path, work / path.name)
            (work / path.name).chmod(0o600)
            with suppress(FileExistsError):  # published meanwhile, and newer
                os.link(work / path.name, path)
    return path


@contextmanager
def reading(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """Read what is published.

    Raises:
        UsagePipelineError: nothing is.
    """
    if not exists(settings):
        raise UsagePipelineError("Nothing is published", "Publish it with `usage-pipeline rollup`")
    with open_duckdb(settings, own_path(settings), read_only=True) as db:
        yield db


def attach(settings: Settings, db: duckdb.DuckDBPyConnection, name: str = "published") -> None:
    """Attach what is published, read-only."""
    db.execute(f"attach '{quoted(own_path(settings))}' as {name} (read_only)")


@contextmanager
def as_served(settings: Settings) -> Iterator[Path]:
    """A private copy of the very file that readers have, for proofs of what it holds.

    Raises:
        UsagePipelineError: it is lost.
    """
    if not settings.snapshot_path.exists():
        raise UsagePipelineError(
            f"{settings.snapshot_path} is lost", "Make it again with `usage-pipeline rollup`"
        )
    with scratch(settings) as work:
        copy = work / settings.snapshot_path.name
        clone(settings.snapshot_path, copy)
        yield copy


def readers_log(settings: Settings) -> Path | None:
    """DuckDB's log beside the readers' copy, if somebody who writes left one: whoever opens the
    copy reads what it says as well, also of another copy that was there before."""
    log = settings.snapshot_path.with_name(f"{settings.snapshot_path.name}.wal")
    return log if log.exists() else None


def clone(source: Path, target: Path) -> None:
    """Copy a file inside the kernel; file systems that can share the blocks."""
    with source.open("rb") as read, target.open("wb") as write:
        if not hasattr(os, "copy_file_range"):  # macOS
            shutil.copyfileobj(read, write)
            return
        while os.copy_file_range(read.fileno(), write.fileno(), 1 << 30):
            pass
