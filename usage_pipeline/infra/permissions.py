"""Who may read what is below USAGE_HOME: its owner, and `serving/` the group of a setting."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings

UMASK = 0o077  # of every process of the pipeline
# What the pipeline writes into the home, up to the first dot: `warehouse` is a database, its log,
# a state and a lock.
_OWN = {
    *("landing", "warehouse", "published", "serving", "exports", "audit", "alerts", "erased_users"),
    *("writer", "up", "dagster", "dbt", "postgres", "tmp", "web"),
}
_BESIDE = {"sample"}  # which a checkout has in `data`, the default home


def keep_private(settings: Settings) -> None:
    """Close the home to others, what older releases left in it included.

    A closed folder closes what is below it. The embedded Postgres looks after its own; where root
    runs it, another user has to pass through the home, so what passing needs stays as it is. What
    others put there stays as it is, and so does a home that holds anything of theirs, such as /srv.
    """
    names = {path: path.name.partition(".")[0] for path in settings.home.iterdir()}
    mode = settings.home.stat().st_mode
    if set(names.values()) <= _OWN | _BESIDE:
        mode &= 0o711
    if settings.serving_gid is not None:
        _give(settings, settings.home, settings.serving_gid)
        mode |= 0o710
    _set_mode(settings.home, mode)
    for path, name in names.items():
        others = path in (settings.serving_dir, settings.postgres_dir) or name not in _OWN
        if not others and not path.is_symlink():
            # a temporary file that is gone, or what another user put there
            with suppress(FileNotFoundError, PermissionError):
                _set_mode(path, path.stat().st_mode & 0o700)


def share(settings: Settings, path: Path) -> None:
    """Let the serving group read a file or folder, and nobody write a file.

    Raises:
        UsagePipelineError: this user may not give files to the group.
    """
    mode = 0o750 if path.is_dir() else 0o440
    if settings.serving_gid is None:
        mode &= 0o700
    else:
        _give(settings, path, settings.serving_gid)
    _set_mode(path, mode)


def share_all(settings: Settings) -> None:
    """`share` everything below `serving/`: what was written under another setting, too."""
    for path in (settings.serving_dir, *settings.serving_dir.rglob("*")):
        share(settings, path)


def make_shared_folder(settings: Settings, folder: Path) -> None:
    """Create a folder below `serving/`, and the ones above it, for its readers to enter."""
    if not folder.exists():
        if folder != settings.serving_dir:
            make_shared_folder(settings, folder.parent)
        folder.mkdir(parents=True, exist_ok=True)
        share(settings, folder)


def _give(settings: Settings, path: Path, group: int) -> None:
    if path.stat().st_gid != group:
        try:
            os.chown(path, -1, group)
        except PermissionError:
            raise UsagePipelineError(
                f"This user may not give files to the group {settings.serving_group}",
                "Make the user that runs the pipeline a member of it",
            ) from None


def _set_mode(path: Path, mode: int) -> None:
    if path.stat().st_mode & 0o7777 != mode & 0o7777:
        path.chmod(mode & 0o7777)
