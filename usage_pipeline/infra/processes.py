"""Which process lives, and on which host; and how often this one looks for garbage."""

from __future__ import annotations

import atexit
import gc
import os
import platform

import psutil

from usage_pipeline.errors import UsagePipelineError


def collect_rarely() -> None:
    """Look for garbage seldom from now on, and not at the end.

    Dagster and dbt are half a million objects that live to the end. Searching them at Python's
    default pace, and once more at the end, takes a tenth of a night without events.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)


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
        raise another_host(f"Process {pid} on {host}")
    return process(int(pid)) == known


def another_host(who: str) -> UsagePipelineError:
    return UsagePipelineError(
        f"{who} has not finished its work, and this is {platform.node()}; one host writes",
        "Let it end there; if that host is gone, see docs/operations.md, One host writes",
    )


def this_process() -> str:
    """`process` of the caller."""
    return str(process(os.getpid()))
