"""The process of one measurement: `python -m bench.worker MODULE:FUNCTION '{"argument": 1}'`.

The function's figures are the last line of its output, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module


def stopwatch() -> Callable[[], float]:
    """Starts now; each call gives the seconds since."""
    started = time.perf_counter()
    return lambda: round(time.perf_counter() - started, 4)


def main() -> None:
    target, arguments = sys.argv[1:]
    module, function = target.split(":")
    figures = getattr(import_module(f"bench.{module}"), function)(**json.loads(arguments))
    print(f"\n{json.dumps(figures or {})}")


if __name__ == "__main__":
    main()
