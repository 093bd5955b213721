"""The file that readers open: `serving/usage.duckdb`, put there whole, and only here."""

from __future__ import annotations

import os
from pathlib import Path

from usage_pipeline.infra import permissions
from usage_pipeline.infra.disk import scratch
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings


def stage(settings: Settings, state: Path, copy: Path) -> None:
    """Prepare the readers' copy of a state that is about to be published."""
    published.clone(state, copy)
    permissions.share(settings, copy)


def serve(settings: Settings, copy: Path) -> None:
    """Give readers what is published, when they have anything else or lost it.

    Args:
        settings: where the files are.
        copy: as staged; made here when absent.
    """
    served, own = settings.snapshot_path, published.own_path(settings)
    if not copy.exists():
        if _is_copy(served, own) and not published.readers_log(settings):
            return
        stage(settings, own, copy)
    times = own.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    permissions.make_shared_folder(settings, served.parent)
    # A log that a writing reader left would be replayed into the new file, or forbid opening it.
    # One who has the old file open can still make one: the next publish finds it.
    _remove_log(settings)
    copy.replace(served)
    _remove_log(settings)


def _remove_log(settings: Settings) -> None:
    if log := published.readers_log(settings):
        log.unlink(missing_ok=True)


def serve_again(settings: Settings) -> None:
    """Give readers what is published, whatever lies there."""
    with scratch(settings) as work:
        copy = work / settings.snapshot_path.name
        stage(settings, published.own_path(settings), copy)
        serve(settings, copy)


def _is_copy(served: Path, own: Path) -> bool:
    """Whether nobody touched the readers' copy: size and time of change tell, as for rsync."""
    try:
        left, right = served.stat(), own.stat()
    except FileNotFoundError:
        return False
    return (left.st_size, left.st_mtime_ns) == (right.st_size, right.st_mtime_ns)
