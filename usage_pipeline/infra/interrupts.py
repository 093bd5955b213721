"""Ctrl-C and SIGTERM on the command line: one line, exit code 130. No knowledge of what is stopped.

The process ends at once, wherever it is, as a kill would end it: every step is safe to kill, and an
exception would travel through DuckDB, dbt and Dagster, each of which turns it into something else.
So a thread waits for the signals, tells whoever has to know, and exits.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

EXIT_CODE = 130
STOPPED = "Stopped. Run the same command again to complete it."
DEADLINE_SECONDS = 4.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLEAR_LINE = b"\r\x1b[2K\x1b[?25h"  # of the progress display, which hides the cursor as well

Act = Callable[[], str | None]

_acts: list[Act] = []
_event: threading.Event | None = None
_installed = False
_terminal = 2

# How the process ends, given its exit code; replaced by whoever has to do something after it.
last_act: Callable[[int], Any] = os._exit


def install() -> None:
    """Handle the signals from now on; called in the main thread before modules are loaded.

    By Python's wake-up descriptor, which is written at once, whatever the main thread is doing and
    whoever replaced the handlers since. Child processes inherit nothing of it.
    """
    global _installed, _terminal  # noqa: PLW0603
    if _installed:
        return
    _installed = True
    _terminal = os.dup(2)  # Dagster sends 2 into a file while a step runs
    arrivals, wake_up = os.pipe()
    os.set_blocking(wake_up, False)
    for number in _SIGNALS:  # whoever runs a command in the background has them ignored
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=[arrivals], daemon=True).start()


@cache
def quiet_tracker() -> None:
    """Start Python's resource tracker, which dbt's locks need, so that it is silent about those
    that a stop leaves to it."""
    if not _installed:
        return
    from multiprocessing import resource_tracker

    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    resource_tracker.ensure_running()
    del os.environ["PYTHONWARNINGS"]
    if filters is not None:
        os.environ["PYTHONWARNINGS"] = filters


@contextmanager
def stopping(act: Act) -> Iterator[None]:
    """Within the block, a stop calls `act`, the innermost first; what one returns is the line that
    is printed. Acts run beside the main thread, which goes on meanwhile; they may fail."""
    _acts.append(act)
    try:
        yield
    finally:
        _acts.remove(act)


@contextmanager
def awaited() -> Iterator[threading.Event]:
    """Within the block a stop only sets the event."""
    global _event  # noqa: PLW0603
    _event = threading.Event()
    try:
        yield _event
    finally:
        _event = None


def _wait(arrivals: int) -> None:
    _next_signal(arrivals)
    while _event:
        _event.set()
        _next_signal(arrivals)
    with suppress(RuntimeError):  # the process is ending anyway
        # Not a daemon thread: until it has exited, the main thread cannot end with another code.
        threading.Thread(target=_stop).start()
        _next_signal(arrivals)
        os._exit(EXIT_CODE)


def _next_signal(arrivals: int) -> None:
    while os.read(arrivals, 1)[0] not in _SIGNALS:  # others, such as SIGCHLD, are told too
        pass


def _stop() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):  # of the main thread
        os.dup2(null, output)
    late = threading.Timer(DEADLINE_SECONDS, _say_and_exit, [STOPPED, os._exit])
    late.daemon = True
    late.start()
    said = None
    for act in reversed(_acts):
        with suppress(Exception):
            said = act() or said
    with suppress(Exception):
        _kill_children()
    late.cancel()
    _say_and_exit(said or STOPPED, last_act)


def _kill_children() -> None:
    """Dagster copies a step's output by a `tail`. The resource tracker ends by itself."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(child.cmdline()):
                child.kill()


def _say_and_exit(words: str, leave: Callable[[int], Any]) -> None:
    with suppress(OSError):
        os.write(_terminal, (_CLEAR_LINE if os.isatty(_terminal) else b"") + f"{words}\n".encode())
    leave(EXIT_CODE)
