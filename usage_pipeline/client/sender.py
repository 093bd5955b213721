"""The queue of events and the thread that empties it."""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from usage_pipeline.client.events import Event
from usage_pipeline.client.pending_file import PendingFile, take_lost
from usage_pipeline.client.transport import SendError, Transport

BATCH_EVENTS = 100
BATCH_BYTES = 1_000_000  # the API takes 1 MiB
BATCH_SECONDS = 1.0  # that an event waits for others
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 60.0  # seconds between attempts
_LONGEST_WAIT = 3600.0  # seconds, whatever the other side asks for
_STRIKES = 60  # failures of one event by itself, each while others passed: about an hour

_REJECTED = "A usage event was rejected: %s. Further ones are counted only"
_log = logging.getLogger("usage_pipeline.client")


class Sender:
    """Events on their way, in batches and again until they are taken.

    Nothing of it waits but `flush` and `close`. One lock guards everything; whoever holds it waits
    for nobody, and it may be taken again by a signal's handler in the same thread.

    Args:
        transport: where batches go; None counts all events as dropped.
        capacity: events that may be on their way at once; further ones are dropped.
        exit_timeout: seconds that the end of the process may be put off for.
        directory: keeps the number of pending events beyond a kill.

    Attributes:
        sent: events that were taken, now or in an earlier attempt.
        rejected: events that are not usable, here or to the other side.
        dropped: events that found no room, or came after `close`.
        lost: events that killed processes of the same directory had not sent, at most.
    """

    def __init__(
        self,
        transport: Transport | None,
        *,
        capacity: int,
        exit_timeout: float,
        directory: Path | None,
    ) -> None:
        self._transport = transport
        self._capacity = capacity
        self._exit_timeout = exit_timeout
        self._directory = directory
        self._closes_at: float | None = None  # once it is to be closed
        self._closed = False
        self._begin()
        if directory:
            with suppress(OSError, ImportError):  # `_keep_running` meets it again
                self.lost = take_lost(directory)
        if self.lost:
            _log.warning("Processes that were killed lost up to %d usage events", self.lost)
        _ALL.add(self)

    def _begin(self) -> None:
        """Everything of this process; nothing of one that it was forked from."""
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # for the thread: there are events
        self._urgent = threading.Condition(self._lock)  # for the thread: somebody waits for it
        self._settled = threading.Condition(self._lock)  # for those who wait
        self._thread: threading.Thread | None = None
        self._starting = False
        self._events: deque[Event] = deque()
        self._in_hand: list[Event] = []
        self._suspects: list[Event] = []  # failed by themselves, and nothing was taken since
        self._aside: list[Event] = []  # so did these, but others passed: until they are due again
        self._number = 0
        self._size = BATCH_EVENTS
        self._failures = 0  # pauses since something was taken
        self._troubled = False
        self._hurry = 0  # flushes and closings that began
        self._wanted = 0  # number of the newest event that a flush has asked for
        self._flushing = 0
        self._said: set[str] = set()
        self._file: PendingFile | None = None
        self._file_problem: Exception | None = None
        self.sent = self.rejected = self.dropped = self.lost = 0

    @property
    def pending(self) -> int:
        """Events on their way."""
        with self._lock:
            suspects = len(self._suspects) + len(self._aside)
            return len(self._events) + len(self._in_hand) + suspects

    def put(self, event: Event) -> bool:
        """Take an event, or drop it."""
        with self._lock:
            closed = self._closes_at is not None
            taken = bool(self._transport) and not closed and self.pending < self._capacity
            if taken:
                self._keep_running()
                self._number += 1
                event.number = self._number
                self._events.append(event)
                self._note()
                if len(self._events) == 1 or len(self._events) >= self._size:
                    self._work.notify()
            else:
                self.dropped += 1
        if not taken and not self._transport:
            self._say("address", "Usage events are dropped: no address; set USAGE_API_URL")
        elif not taken and closed:
            self._say("closed", "Usage events are dropped: the client is closed")
        elif not taken:
            self._say("full", "Usage events are dropped: %d are waiting", self._capacity)
        return taken

    def reject(self, why: str) -> None:
        """Count an event that cannot be used."""
        with self._lock:
            self.rejected += 1
        self._say("rejected", _REJECTED, why)

    def flush(self, timeout: float | None) -> bool:
        """Wait until what was put before is sent or rejected.

        Returns:
            Whether it is; False after `timeout` seconds.
        """
        with self._lock:
            newest = self._wanted = self._number
            if self.pending and self._closes_at is None:
                self._keep_running()
            self._flushing += 1
            self._be_urgent()
            try:
                self._settled.wait_for(lambda: not self._waits(newest) or not self._runs(), timeout)
            finally:
                self._flushing -= 1
            return not self._waits(newest)

    def close(self, timeout: float | None = None) -> None:
        """Send what is there, in `timeout` seconds (`exit_timeout` unless given), and stop."""
        with self._lock:
            if self._closes_at is None:
                seconds = self._exit_timeout if timeout is None else timeout
                self._closes_at = time.monotonic() + seconds
            self._be_urgent()
            thread = self._thread if self._runs() else None
        if thread:
            thread.join(max(0.0, self._closes_at - time.monotonic()))
        elif self._transport:
            self._run()  # at the end of the interpreter no thread can be started any more
        with self._lock:
            first, self._closed = not self._closed, True
            pending = self.pending
        if pending and first:
            _log.warning("%d usage events were not sent before the end", pending)

    def forget(self) -> None:
        """Begin anew in a forked process: the parent sends what it has itself."""
        if self._transport:
            self._transport.forget()
        if self._file:
            self._file.forget()
        self._begin()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _keep_running(self) -> None:
        """Start the thread: the first time, and should it ever have died."""
        if self._runs() or self._starting:  # starting: in a signal's handler, within this
            return
        if self._directory and not self._file:
            try:
                self._file = PendingFile(self._directory)
            except (OSError, ImportError) as error:
                self._file_problem = error
        # A forked child of multiprocessing ends without `atexit`.
        process = sys.modules.get("multiprocessing.process")
        if process and process.parent_process():
            from multiprocessing.util import Finalize

            Finalize(None, self.close, exitpriority=10)
        self._thread = threading.Thread(target=self._run, name="usage-client", daemon=True)
        self._starting = True
        with suppress(RuntimeError):  # the interpreter is about to end: `close` sends
            self._thread.start()
        self._starting = False

    def _run(self) -> None:
        assert self._transport
        if self._file_problem:
            self._say("directory", "Pending usage events are not noted: %s", self._file_problem)
        while batch := self._next_batch():
            try:
                verdicts = self._transport.send(batch)
            except SendError as error:
                self._failed(error)
            except Exception as error:  # whatever happens, the thread goes on
                self._failed(SendError(type(error).__name__, answered=True))
            else:
                self._taken(verdicts)
        self._transport.close()
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None
            self._thread = None
            self._settled.notify_all()

    def _next_batch(self) -> Sequence[Event]:
        """Wait for events, and for others to go with them; nothing when it is time to stop."""
        with self._lock:
            self._bring_back()
            while not self._events:
                if self._suspects:
                    self._events.extend(self._suspects)
                    self._suspects.clear()
                elif self._closes_at is not None:
                    return ()
                else:
                    due = min((event.due for event in self._aside), default=None)
                    self._work.wait(due and max(0.0, due - time.monotonic()))
                    self._bring_back()
            until = time.monotonic() + BATCH_SECONDS
            while len(self._events) < self._size and not self._in_a_hurry():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._work.wait(left)
            if self._closes_at is not None and time.monotonic() >= self._closes_at:
                return ()
            size = 0
            while self._events and len(self._in_hand) < self._size:
                size += len(self._events[0].body) + 1
                if self._in_hand and size > BATCH_BYTES:
                    break
                self._in_hand.append(self._events.popleft())
            return self._in_hand

    def _bring_back(self) -> None:
        """Put events that are due behind the others, or all when somebody waits for them."""
        wanted = self._wanted if self._flushing else 0
        now = time.monotonic() if self._closes_at is None else float("inf")
        back = [event for event in self._aside if event.due <= now or event.number <= wanted]
        self._events += back
        self._aside = [event for event in self._aside if event not in back]

    def _in_a_hurry(self) -> bool:
        wanted = self._events[0].number <= self._wanted
        return wanted or self._troubled or self._closes_at is not None

    def _taken(self, verdicts: Sequence[str | None]) -> None:
        rejected = [verdict for verdict in verdicts if verdict is not None]
        if rejected:
            self._say("rejected", _REJECTED, rejected[0])
        with self._lock:
            self.sent += len(verdicts) - len(rejected)
            self.rejected += len(rejected)
            self._in_hand.clear()
            self._size = min(2 * self._size, BATCH_EVENTS)
            now = time.monotonic()
            for event in self._suspects:
                event.strikes += event.blamed
                event.due = now + min(2.0**event.strikes, _LONGEST_DELAY)
            self._aside += [event for event in self._suspects if event.strikes < _STRIKES]
            hopeless = len([event for event in self._suspects if event.strikes >= _STRIKES])
            self._suspects.clear()
            self.rejected += hopeless
            recovered, self._troubled, self._failures = self._troubled, False, 0
            self._note()
            self._settled.notify_all()
        if hopeless:
            self._say("rejected", _REJECTED, "the other side fails at it, and at no other")
        if recovered and not self._aside:
            self._said.discard("failed")  # the next outage is told again

    def _failed(self, error: SendError) -> None:
        alone = len(self._in_hand) == 1
        if alone and error.refused:
            self._say("rejected", _REJECTED, error)
        with self._lock:
            if error.wait is None:
                self._size = max(1, len(self._in_hand) // 2)
            if alone and error.refused:
                self.rejected += 1
            elif alone and error.wait is None:
                self._in_hand[0].blamed = error.answered
                self._suspects += self._in_hand
            else:
                self._events.extendleft(reversed(self._in_hand))
            self._in_hand.clear()
            self._troubled = True
            self._note()
            self._settled.notify_all()
        if error.refused:
            return
        self._say("failed", "Usage events wait, and are sent again: %s", error)
        if error.wait is not None:
            self._pause(min(error.wait, _LONGEST_WAIT), asked_for=True)
        elif alone or not error.answered:
            longest = min(_FIRST_DELAY * 2**self._failures, _LONGEST_DELAY)
            self._failures += 1
            self._pause(longest * random.uniform(0.5, 1), asked_for=False)

    def _pause(self, seconds: float, asked_for: bool) -> None:
        """Wait; for less when somebody is in a hurry, unless the other side asked for it."""
        with self._lock:
            until, hurry = time.monotonic() + seconds, self._hurry
            while (left := until - time.monotonic()) > 0:
                if self._closes_at is not None:
                    if asked_for and until > self._closes_at:
                        self._closes_at = min(self._closes_at, time.monotonic())  # in vain
                    left = min(left, self._closes_at - time.monotonic())
                    if left <= 0:
                        return
                if self._hurry != hurry and not asked_for:
                    return
                self._urgent.wait(left)

    def _be_urgent(self) -> None:
        self._hurry += 1
        self._failures = 0
        self._urgent.notify_all()
        self._work.notify_all()

    def _waits(self, newest: int) -> bool:
        there = (*self._in_hand, *self._suspects, *self._aside, *self._events)
        return any(event.number <= newest for event in there)

    def _note(self) -> None:
        if self._file:
            self._file.note(self.pending)

    def _say(self, kind: str, message: str, *values: object) -> None:
        """Log the first of a kind. Never with the lock held: a handler may do anything."""
        if kind not in self._said:
            self._said.add(kind)
            _log.warning(message, *values)


_ALL: weakref.WeakSet[Sender] = weakref.WeakSet()
_held: list[Sender] = []  # between the two sides of a fork


def _before_fork() -> None:
    _held.extend(_ALL)
    for sender in _held:
        sender._lock.acquire()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop().forget()


@atexit.register
def _close_all() -> None:
    for sender in list(_ALL):
        sender.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
