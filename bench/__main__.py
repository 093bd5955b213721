"""`python -m bench`: run the benchmark, print its table, write JSON, page and plots."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench.measure import ROOT, MeasurementFailed
from bench.plan import PARTS, Run
from bench.report import Report
from bench.shape import MOST_REPEATS, Shape


def main(words: list[str] | None = None) -> int:
    """Exit code 0 when every compared result was equal, missed budgets or not; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the data; default 1")
    parser.add_argument(
        "--repeats", type=int, default=3, help=f"of each measurement, up to {MOST_REPEATS}"
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="comma-separated; default %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "data" / "bench",
        help="directory of benchmarks.md, benchmarks.json and the plots",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where Postgres and homes live meanwhile, 15 GB at scale 1; a short path",
    )
    chosen = parser.parse_args(words)
    parts = tuple(part for part in PARTS if part in chosen.parts.split(","))
    if unknown := set(chosen.parts.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not 1 <= chosen.repeats <= MOST_REPEATS or chosen.scale <= 0:
        parser.error(f"repeats must be 1 to {MOST_REPEATS} and scale above 0")
    directory = Path(tempfile.mkdtemp(prefix="bench", dir=chosen.directory))
    try:
        run = Run(Shape(chosen.scale, chosen.repeats), directory)
        try:
            run.everything(parts)
        finally:
            run.server.stop()
    except MeasurementFailed as failure:
        print(f"A measurement of the pipeline failed:\n{failure}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    report = Report(run, parts)
    report.write(chosen.output)
    print(report.text())
    print(f"\nWritten to {chosen.output}")
    if run.unequal:
        print(f"Unequal results: {'; '.join(run.unequal)}", file=sys.stderr)
    return 1 if run.unequal else 0


if __name__ == "__main__":
    sys.exit(main())
