"""How much each caller may ask for: a token bucket a caller, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_CALLERS_KEPT = 10_000


@dataclass(frozen=True)
class Rate:
    """Requests a second, and how many at once after a pause."""

    per_second: float
    burst: float


SERVICE = Rate(200, 400)
PERSON = Rate(20, 60)
STRANGER = Rate(5, 30)  # an address, each time that it does not prove who it is
HEAVY = Rate(2, 6)  # exports, and explanations, which take a second of a processor


class Rates:
    """What callers have left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, caller: str, rate: Rate, cost: float = 1) -> float:
        """Take from a caller's bucket; the seconds to wait where it has too little, else 0."""
        with self._lock:
            now = self._clock()
            left, since = self._left.pop(caller, (rate.burst, now))
            left = min(rate.burst, left + (now - since) * rate.per_second)
            missing = cost - left
            self._left[caller] = (left if missing > 0 else left - cost, now)
            if len(self._left) > _CALLERS_KEPT:  # who was here longest ago has a full one by now
                del self._left[next(iter(self._left))]
            return max(missing, 0) / rate.per_second
