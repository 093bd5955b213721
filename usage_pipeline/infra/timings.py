"""Where the time of a run goes: seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds by stage. What a stage spends in another one counts for that one only.

    Attributes:
        seconds: by stage, in the order in which the stages were first met.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.seconds.setdefault(name, 0.0)
        self._open.append(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] += elapsed
            self._open.pop()
            if self._open:
                self.seconds[self._open[-1]] -= elapsed

    def hand_up(self, seconds: float) -> None:
        """These seconds of the innermost stage belong to the one around it."""
        *_, outer, inner = self._open
        self.seconds[inner] -= seconds
        self.seconds[outer] += seconds
