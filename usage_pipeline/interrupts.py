"""Ctrl-C and SIGTERM on the command line: one line, exit code 130. No knowledge of what is stopped.

The process ends at once, wherever it is, as a kill would end it: every step is safe to kill, and an
exception would travel through DuckDB, dbt and Dagster, each of which turns it into something else.
So the signals are blocked, a thread waits for them, tells whoever has to know, and exits.
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
    """Handle the signals from now on; called before threads are started and modules loaded.

    Threads inherit that the signals are blocked, and so do child processes: one that is to end by
    them calls `uninstall`.
    """
    global _installed, _terminal  # noqa: PLW0603
    if _installed:
        return
    _installed = True
    _terminal = os.dup(2)  # Dagster sends 2 into a file while a step runs
    for number in _SIGNALS:  # whoever runs a command in the background has them ignored
        signal.signal(number, _pass_on)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_wait, daemon=True).start()


def uninstall() -> None:
    """Unblock the signals in a child process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@cache
def keep_blocked() -> None:
    """Start Python's resource tracker, for dbt, in a thread of its own: whichever thread starts it,
    by its first lock, has SIGINT and SIGTERM unblocked. At a stop it removes dbt's locks, silently.
    """
    if not _installed:
        return
    from multiprocessing import resource_tracker

    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    starter = threading.Thread(target=resource_tracker.ensure_running)
    starter.start()
    starter.join()
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


def _pass_on(number: int, frame: object) -> None:
    """A signal reached a thread in which a library unblocked it: on to the thread that waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    os.kill(os.getpid(), number)


def _wait() -> None:
    signal.sigwait(_SIGNALS)
    while _event:
        _event.set()
        signal.sigwait(_SIGNALS)
    with suppress(RuntimeError):  # the process is ending anyway
        # Not a daemon thread: until it has exited, the main thread cannot end with another code.
        threading.Thread(target=_stop).start()
        signal.sigwait(_SIGNALS)
        os._exit(EXIT_CODE)


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
