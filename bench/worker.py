"""The process of one measurement: `python -m bench.worker MODULE:FUNCTION '{"argument": 1}'`.

The function's figures are the last line of its output, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module


class Stopwatch:
    """Starts now. Called, it gives the seconds since."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._cpu = _cpu_seconds()

    def __call__(self) -> float:
        return round(time.perf_counter() - self._started, 4)

    def spent(self) -> dict[str, float]:
        """The seconds since, and the CPU seconds of this process and its ended children."""
        return {"seconds": self(), "cpu_seconds": self.cpu()}

    def cpu(self) -> float:
        return round(_cpu_seconds() - self._cpu, 3)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in used)


def main() -> None:
    target, arguments = sys.argv[1:]
    module, function = target.split(":")
    figures = getattr(import_module(f"bench.{module}"), function)(**json.loads(arguments))
    print(f"\n{json.dumps(figures or {})}")


if __name__ == "__main__":
    main()
