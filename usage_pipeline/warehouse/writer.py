"""The single writer of the warehouse: who it is, and how others wait for it."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import permissions
from usage_pipeline.infra.processes import another_host
from usage_pipeline.settings import Settings

LOCK_TIMEOUT_SECONDS = 3600.0


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
            raise another_host(f"A {left}) on {host}")
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
