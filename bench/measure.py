"""One measurement in a process of its own, with its peak memory.

This process must stay small and import no data library: Linux hands the parent's peak memory to
its children, so a large parent would hide a small child.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The checkout that is measured: the first one on PYTHONPATH, or the one that holds this file.
_PATHS = map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
PRODUCT = next((p.resolve() for p in _PATHS if (p / "usage_pipeline").is_dir()), ROOT)
STOP_SECONDS = 30
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
# A row of what `--timings` prints: stage, seconds, share.
_STAGE = re.compile(r"^\W+([a-zA-Z][\w' ]*?)\s*[│|]\s*([\d.]+)\s*[│|]\s*\d+%", re.MULTILINE)


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
        cpu_seconds: of the work, or of the whole process with its children.
        peak_bytes: the greatest resident set of the process or any of its children.
        figures: what the worker returned beside.
        source_cpu_seconds: of the server's backends meanwhile.
        source_buffers: that they touched.
        part, round: of the benchmark that it belongs to.
        commit, made_at: what was measured, and when.
    """

    seconds: float
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    figures: dict[str, Any] = field(default_factory=dict)
    source_cpu_seconds: float = 0.0
    source_buffers: int = 0
    part: str = ""
    round: int = 0
    commit: str = ""
    made_at: str = ""

    def value(self, name: str) -> float:
        """An attribute or a figure."""
        return float(self.figures[name] if name in self.figures else getattr(self, name))

    @property
    def all_cpu_seconds(self) -> float:
        """Of the work and of the server for it."""
        return self.cpu_seconds + self.source_cpu_seconds


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
    words = ["bench.worker", target, json.dumps(arguments, default=str)]
    whole, printed = _process(words, environment)
    found = json.loads(printed.splitlines()[-1])
    return Measurement(
        seconds=found.pop("seconds", whole.seconds),
        wall_seconds=whole.seconds,
        cpu_seconds=found.pop("cpu_seconds", whole.cpu_seconds),
        peak_bytes=found.pop("peak_bytes", whole.peak_bytes),
        figures=found,
    )


def command(environment: Mapping[str, str], *words: str) -> Measurement:
    """Run a command of the pipeline. Where it prints `--timings`, the figures have its `stages`.

    Raises:
        MeasurementFailed: it failed.
    """
    measured, printed = _process(["usage_pipeline", *words], environment)
    if stages := {name: float(seconds) for name, seconds in _STAGE.findall(printed)}:
        measured.figures["stages"] = stages
    return measured


def _process(words: list[str], environment: Mapping[str, str]) -> tuple[Measurement, str]:
    """`python -m` with these words, measured as a whole, and what it printed."""
    # None of the developer's settings, and no `.env`: another directory than the repository.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("USAGE_", "DAGSTER_"))}
    kept |= {"DAGSTER_DISABLE_TELEMETRY": "1", "COLUMNS": "200", "PYTHONUTF8": "1", **environment}
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        # This benchmark, but the package of the checkout that is measured.
        (Path(directory) / "bench").symlink_to(ROOT / "bench")
        kept["PYTHONPATH"] = os.pathsep.join((directory, str(PRODUCT)))
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env=kept, cwd=directory, stdout=out, stderr=err
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.send_signal(signal.SIGINT)  # it stops what it has started, then itself
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        wall = round(time.perf_counter() - started, 4)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        printed = out.read().decode(errors="replace").strip()
        said = err.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        last = (said or printed.splitlines() or ["no message"])[-1]
        missing = last.startswith(("ModuleNotFoundError", "ImportError"))
        kind = PackageMissing if missing else MeasurementFailed
        raise kind("\n".join(said[-15:]) if not missing else last)
    cpu = round(usage.ru_utime + usage.ru_stime, 3)
    return Measurement(wall, wall, cpu, usage.ru_maxrss * _RSS_UNIT), printed
