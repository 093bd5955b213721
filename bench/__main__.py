"""`python -m bench`: run the benchmark, print its table, write JSON, page and plots.

Measured is the package of the first checkout on PYTHONPATH, or of the one that holds the benchmark.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from bench.measure import ROOT, MeasurementFailed
from bench.plan import PARTS, Run
from bench.report import JSON, Report
from bench.shape import MOST_ROUNDS, Shape


def main(words: list[str] | None = None) -> int:
    """Exit code 0 when every compared result was equal, missed budgets or not; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the data; default 1")
    parser.add_argument(
        "--rounds", type=int, default=3, help=f"of each part, up to {MOST_ROUNDS}; default 3"
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="comma-separated; default %(default)s"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what the output directory has of the same code, machine and data, of all parts, "
        "and measure the rounds that are missing",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="JSON",
        help="an earlier benchmarks.json of the same scale, whose figures the table shows beside; "
        "else those that the output directory's has beside",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "data" / "bench",
        help="directory of benchmarks.md, benchmarks.json and the plots",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIRECTORY",
        help="of a filled server, made when absent, and kept for the next run; a short path",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where homes, and without --source the server, live meanwhile; 45 GB at scale 1 with "
        "all parts; a short path",
    )
    chosen = parser.parse_args(words)
    parts = tuple(part for part in PARTS if part in chosen.parts.split(","))
    if unknown := set(chosen.parts.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not 1 <= chosen.rounds <= MOST_ROUNDS or chosen.scale <= 0:
        parser.error(f"rounds must be 1 to {MOST_ROUNDS} and scale above 0")
    directory = Path(tempfile.mkdtemp(prefix="bench", dir=chosen.directory))
    try:
        run = Run(Shape(chosen.scale), directory, chosen.source)
        try:
            report = Report(run, chosen.output)
            if chosen.before:
                report.compare_with(json.loads(chosen.before.read_text("utf-8")))
            if chosen.resume:
                report.resume()
            run.everything(parts, chosen.rounds, report.save)
        finally:
            run.close()
    except MeasurementFailed as failure:
        print(f"A measurement of the pipeline failed:\n{failure}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    report.write()
    print(report.text())
    print(f"\nWritten to {chosen.output / JSON}")
    if run.unequal:
        print(f"Unequal results: {'; '.join(run.unequal)}", file=sys.stderr)
    return 1 if run.unequal else 0


if __name__ == "__main__":
    sys.exit(main())
