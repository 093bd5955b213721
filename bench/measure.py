"""One measurement in a process of its own, with its peak memory.

This process must stay small and import no data library: Linux hands the parent's peak memory to
its children, so a large parent would hide a small child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class MeasurementFailed(Exception):
    """A measured process ended with an error; carries its last words."""


class PackageMissing(MeasurementFailed):
    """A peer is not installed."""


@dataclass(frozen=True)
class Measurement:
    """One run of one piece of work.

    Attributes:
        seconds: of the work itself.
        wall_seconds: of the whole process, imports included.
        cpu_seconds: of the process and its children.
        peak_bytes: the greatest resident set of the process or any of its children.
        figures: what the worker returned beside.
        source_cpu_seconds: of the server's backends meanwhile.
        source_buffers: that they touched.
    """

    seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    figures: dict[str, Any] = field(default_factory=dict)
    source_cpu_seconds: float = 0.0
    source_buffers: int = 0

    def value(self, name: str) -> float:
        """An attribute or a figure."""
        return float(self.figures[name] if name in self.figures else getattr(self, name))


def work(target: str, environment: Mapping[str, str], **arguments: Any) -> Measurement:
    """Run `bench.MODULE:FUNCTION` in a worker.

    Args:
        target: the function; its dates and paths are given as text.
        environment: settings of the pipeline, beside what this process has.
        arguments: of the function.

    Raises:
        PackageMissing: it needs a package that is not installed.
        MeasurementFailed: it failed.
    """
    words = [sys.executable, "-m", "bench.worker", target, json.dumps(arguments, default=str)]
    # None of the developer's settings, and no `.env`: another directory than the repository.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("USAGE_", "DAGSTER_"))}
    kept |= {"PYTHONPATH": str(ROOT), "DAGSTER_DISABLE_TELEMETRY": "1", **environment}
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        started = time.perf_counter()
        process = subprocess.Popen(words, env=kept, cwd=directory, stdout=out, stderr=err)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        wall = round(time.perf_counter() - started, 4)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        printed = out.read().decode(errors="replace").strip().splitlines()
        said = err.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        last = (said or printed or ["no message"])[-1]
        missing = last.startswith(("ModuleNotFoundError", "ImportError"))
        kind = PackageMissing if missing else MeasurementFailed
        raise kind("\n".join(said[-15:]) if not missing else last)
    found = json.loads(printed[-1])
    return Measurement(
        seconds=found.pop("seconds", wall),
        wall_seconds=wall,
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
        peak_bytes=usage.ru_maxrss * _RSS_UNIT,
        figures=found,
    )
