"""What a run has shown: one table, the same as JSON, a page and plots. No measuring here."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import budgets
from bench.budgets import GIB, Budget
from bench.plan import CHANGES, DLT_BACKENDS, PARTS, Run
from bench.server import SETTINGS
from bench.shape import GROWTH, HISTORY_DAYS

PACKAGES = (
    "duckdb",
    "dbt-core",
    "dagster",
    "dlt",
    "connectorx",
    "pandas",
    "adbc-driver-postgresql",
    "polars",
    "chdb",
)
BEGIN, END = "<!-- made by make bench: begin -->", "<!-- made by make bench: end -->"
HEADINGS = (
    "what",
    "who",
    "median",
    "ratio",
    "peak memory",
    "source CPU",
    "source buffers",
    "budget",
    "verdict",
)


@dataclass(frozen=True)
class Row:
    """A line of the table; every cell is text, empty where it does not apply."""

    what: str
    who: str
    median: str = ""
    ratio: str = ""
    memory: str = ""
    source_cpu: str = ""
    source_buffers: str = ""
    budget: str = ""
    verdict: str = ""

    def cells(self) -> tuple[str, ...]:
        return tuple(asdict(self).values())


class Report:
    """The table of a run.

    Args:
        run: with all its measurements.
        parts: what was run; the budgets of other parts are left out.
    """

    def __init__(self, run: Run, parts: tuple[str, ...]) -> None:
        self._run = run
        self._parts = parts
        self.rows = [row for part in PARTS if part in parts for row in getattr(self, f"_{part}")()]
        self.rows += self._memory()

    def text(self) -> str:
        """The table for a terminal."""
        lines = [HEADINGS, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join(line.rstrip() for line in padded)

    def write(self, directory: Path) -> None:
        """`benchmarks.json`, the plots, and the block between the marks in `benchmarks.md`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "benchmarks.json").write_text(json.dumps(self._everything(), indent=1) + "\n")
        images = self._plot(directory)
        page = directory / "benchmarks.md"
        known = page.read_text("utf-8") if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
        before, _, rest = known.partition(BEGIN)
        page.write_text(
            f"{before}{BEGIN}\n{self._markdown(images)}\n{END}{rest.partition(END)[2]}", "utf-8"
        )

    # --- rows by part -------------------------------------------------------------------------

    def _landing(self) -> Iterator[Row]:
        for kind, what, budget in (
            ("narrow", "landing a day without event_data", budgets.LANDING_NARROW),
            ("full", "landing a day with event_data", budgets.LANDING_FULL),
        ):
            land, copy = f"land_{kind}", f"copy_{kind}"
            yield self._row(what, "COPY, binary, discarded", copy)
            yield self._row(what, "usage-pipeline", land, against=copy, budget=budget)
        locks = self._run.locks
        others = [mode for mode in locks["modes"] if mode != "AccessShareLock"]
        yield self._judged(
            "locks on usage_events, longest transaction",
            f"usage-pipeline: {', '.join(locks['modes'])}",
            budgets.SOURCE_LOCKS,
            len(others),
            median=f"{locks['longest']:.2f} s",
        )

    def _rollup(self) -> Iterator[Row]:
        function = "aggregate_insert"
        daily = "daily rollup of a landed day"
        yield self._row(daily, "function in Postgres, new rows", function)
        yield self._row(daily, "function in Postgres, same rows", "aggregate_update")
        yield self._row(
            daily,
            "usage-pipeline, engine",
            "rollup",
            "daily_engine",
            against=function,
            budget=budgets.DAILY_ENGINE,
        )
        yield self._row(
            daily, "usage-pipeline, wall, all models", "rollup", "daily_wall", against=function
        )
        for peer, who in (
            ("polars", "Polars from Parquet"),
            ("chdb", "chDB from Parquet"),
            ("pandas", "pandas from Postgres"),
        ):
            yield self._row(daily, who, peer, against=function)
        yield self._row(
            "monthly rollup of the day's month", "usage-pipeline, wall", "rollup", "monthly_wall"
        )
        for kind, what, budget in (
            ("narrow", "without", budgets.TOGETHER_NARROW),
            ("full", "with", budgets.TOGETHER_FULL),
        ):
            yield self._row(
                f"landing, daily and monthly, {what} event_data",
                "usage-pipeline, wall",
                f"together_{kind}",
                against=function,
                budget=budget,
            )

    def _small(self) -> Iterator[Row]:
        what = f"landing a day of {self._run.shape.small_day_events:,} events"
        yield self._row(what, "COPY, binary, discarded", "copy_small")
        yield self._row(what, "usage-pipeline", "land_small", against="copy_small")
        for backend in DLT_BACKENDS:
            key = f"dlt_{backend}"
            yield self._row(what, f"dlt, {backend}", key)
            ratio = self._ratio("land_small", key)
            yield self._judged(what, f"usage-pipeline / {backend}", budgets.DLT[backend], ratio)

    def _history(self) -> Iterator[Row]:
        events = self._run.shape.history_events
        what = f"re-rollup of {HISTORY_DAYS} days, {events:,} events"
        engine = statistics.median(
            m.value("daily_engine") + m.value("monthly_engine")
            for m in self._run.measurements["history"]
        )
        yield self._row(what, "usage-pipeline, wall, all models", "history")
        yield self._judged(
            what,
            "usage-pipeline, engine",
            budgets.HISTORY_ENGINE,
            events / engine,
            median=f"{engine:.2f} s",
        )

    def _nights(self) -> Iterator[Row]:
        yield self._row(
            "a near-empty night, whole process",
            "usage-pipeline",
            "empty_night",
            "wall_seconds",
            budget=budgets.FIXED_OVERHEAD,
        )
        events = self._run.shape.big_day_events
        yield self._row(
            f"a night of {events:,} events, whole process",
            "usage-pipeline",
            "big_night",
            "wall_seconds",
        )
        yield self._row("checks of that night", "usage-pipeline", "audit")
        for figure, kind in (("source_cpu_seconds", "CPU"), ("source_buffers", "buffers")):
            what = f"work of that night on the source, {kind}"
            land, audit, copy, function = (
                self._run.median(key, figure)
                for key in ("land_full", "audit", "copy_full", "aggregate_insert")
            )
            night = land + audit if land is not None and audit is not None else None
            yield self._judged(
                what,
                "landing and checks / COPY",
                budgets.SOURCE_WORK,
                night / copy if night is not None and copy else None,
            )
            if night is not None and function:
                yield Row(what, "landing and checks / function", ratio=_times(night / function))

    def _growth(self) -> Iterator[Row]:
        for multiple, days in GROWTH.items():
            key = f"night_{multiple}"
            what = f"a night after {multiple}× history ({days} days)"
            budget = budgets.GROWTH if multiple == max(GROWTH) else None
            yield self._row(
                what, "usage-pipeline", key, "wall_seconds", against="night_1", budget=budget
            )
        seconds = self._run.median("backfill_30", "wall_seconds") or 0.0
        events = self._run.shape.history_events
        rate = events / seconds
        single = self._run.median("big_night", "wall_seconds")
        share = rate / (self._run.shape.big_day_events / single) if single else None
        yield self._row(
            f"backfill of {HISTORY_DAYS} days in one run, {rate:,.0f} events/s",
            "usage-pipeline",
            "backfill_30",
            "wall_seconds",
            ratio=f"{share:.2f}× a single day's events/s" if share else "",
        )

    def _exports(self) -> Iterator[Row]:
        (files,) = {m.figures["files"] for m in self._run.measurements["exports"]}
        seconds = self._run.median("exports") or 0.0
        yield self._row(f"exports of a month, {files:,} users", "usage-pipeline", "exports")
        yield self._judged(
            f"exports of a month, {files:,} users",
            "usage-pipeline",
            budgets.EXPORTS,
            files / seconds,
        )

    def _publish(self) -> Iterator[Row]:
        rates = {"new": budgets.PUBLISH_NEW, "changed": budgets.PUBLISH_CHANGED}
        for change in CHANGES:
            key, what = f"publish_{change}", f"publishing {change} rows"
            yield self._row(f"{what}, all three places", "usage-pipeline", key)
            measured = self._run.measurements[key]
            if change in rates:
                rate = statistics.median(
                    m.figures["rows"] / m.figures["postgres"] for m in measured
                )
                seconds = f"{self._run.median(key, 'postgres') or 0:.2f} s"
                rows = f"{measured[0].figures['rows']:,}"
                yield self._judged(
                    f"{what}, Postgres", f"{rows} rows", rates[change], rate, median=seconds
                )
            else:
                written = max(m.figures["rows_written"] for m in measured)
                yield self._judged(
                    f"{what}, Postgres", "usage-pipeline", budgets.PUBLISH_UNCHANGED, written
                )

    def _demo(self) -> Iterator[Row]:
        yield self._row(
            "make demo, installed", "usage-pipeline", "demo", "wall_seconds", budget=budgets.DEMO
        )

    def _memory(self) -> Iterator[Row]:
        peers = ("copy_", "aggregate_", "dlt_", "pandas", "polars", "chdb", "generate")
        peaks = {
            key: max(m.peak_bytes for m in measured) / GIB
            for key, measured in self._run.measurements.items()
            if not key.startswith(peers)
        }
        greatest = max(peaks, key=lambda key: peaks[key])
        yield self._judged(
            "peak memory of any process",
            f"usage-pipeline: {greatest}",
            budgets.PEAK_MEMORY,
            peaks[greatest],
        )

    # --- cells --------------------------------------------------------------------------------

    def _row(
        self,
        what: str,
        who: str,
        key: str,
        figure: str = "seconds",
        *,
        against: str | None = None,
        budget: Budget | None = None,
        ratio: str = "",
    ) -> Row:
        """A measurement in seconds. A budget judges its ratio, or its seconds without one."""
        measured = self._run.measurements.get(key)
        if not measured:
            problem = self._run.problems.get(key, "not measured")
            return Row(what, who, median=problem, **_verdict(budget, None))
        values = [m.value(figure) for m in measured]
        against_it = self._ratio(key, against, figure) if against else None
        judged = against_it if against else statistics.median(values)
        return Row(
            what,
            who,
            f"{statistics.median(values):.2f} s ({min(values):.2f}–{max(values):.2f})",
            ratio or _times(against_it),
            f"{max(m.peak_bytes for m in measured) / (1 << 20):,.0f} MiB",
            f"{statistics.median(m.source_cpu_seconds for m in measured):.2f} s",
            f"{statistics.median(m.source_buffers for m in measured):,.0f}",
            **_verdict(budget, judged),
        )

    def _judged(
        self, what: str, who: str, budget: Budget, figure: float | None, *, median: str = ""
    ) -> Row:
        """A figure that is no time of its own against its budget."""
        if figure is None:
            shown = ""
        elif budget.unit == "×":
            shown = _times(figure)
        else:
            shown = f"{figure:,.2f}" if figure < 10 and figure % 1 else f"{figure:,.0f}"
            shown += f" {budget.unit}"
        return Row(what, who, median, shown, **_verdict(budget, figure))

    def _ratio(self, ours: str, theirs: str, figure: str = "seconds") -> float | None:
        """Medians; a figure that the other does not have is compared with its seconds."""
        mine = self._run.median(ours, figure)
        shared = figure.startswith(("source_", "wall_"))
        other = self._run.median(theirs, figure if shared else "seconds")
        return mine / other if mine is not None and other else None

    # --- outputs ------------------------------------------------------------------------------

    def _everything(self) -> dict[str, Any]:
        run = self._run
        return {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": self._machine(),
            "data": self._data(),
            "postgres_settings": SETTINGS,
            "parts": self._parts,
            "rows": [asdict(row) for row in self.rows],
            "budgets": {
                name: value.sentence
                for name, value in vars(budgets).items()
                if isinstance(value, Budget)
            }
            | {f"DLT_{name.upper()}": budget.sentence for name, budget in budgets.DLT.items()},
            "locks": run.locks,
            "problems": run.problems,
            "unequal": run.unequal,
            "measurements": {k: [asdict(m) for m in v] for k, v in run.measurements.items()},
        }

    def _machine(self) -> dict[str, str]:
        installed = {}
        for package in PACKAGES:
            try:
                installed[package] = version(package)
            except PackageNotFoundError:
                installed[package] = "not installed"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return {
            "processor": _processor(),
            "cores": str(os.cpu_count()),
            "memory": f"{memory:.0f} GiB",
            "system": platform.platform(terse=True),
            "Python": platform.python_version(),
            "Postgres": self._run.postgres_version,
            **installed,
        }

    def _data(self) -> dict[str, Any]:
        shape = self._run.shape
        return {
            "scale": shape.scale,
            "repeats": shape.repeats,
            "day": f"{shape.big_day_events:,} events, {self._run.cells:,} user-org-metric cells",
            "history": f"{shape.history_events:,} events over {HISTORY_DAYS} days",
            "night": f"{shape.night_events:,} events",
            "users": f"{shape.users:,}",
            "organisations": f"{shape.orgs:,}",
            "event_data": f"{self._run.event_data[0]} to {self._run.event_data[1]} bytes as text",
        }

    def _markdown(self, images: list[Path]) -> str:
        def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
            lines = [headings, ("---",) * len(headings), *rows]
            return [f"| {' | '.join(line)} |" for line in lines]

        facts = [(k, str(v)) for k, v in {**self._machine(), **self._data()}.items()]
        settings = ", ".join(f"`{name} = {value}`" for name, value in SETTINGS.items())
        unequal = "; ".join(self._run.unequal) or "none"
        lines = [
            *table(HEADINGS, [row.cells() for row in self.rows]),
            "",
            f"Unequal results: {unequal}.",
            "",
            *table(("machine and data", ""), facts),
            "",
            f"Postgres: {settings}.",
        ]
        for image in images:
            lines += ["", f"![{image.stem}]({image.name})"]
        return "\n".join(lines)

    def _plot(self, directory: Path) -> list[Path]:
        """The growth of a night and where nights spend their time; none without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return []
        made = []
        run = self._run
        if all(f"night_{multiple}" in run.measurements for multiple in GROWTH):
            figure = Figure(figsize=(7, 4), layout="constrained")
            axes = figure.subplots()
            points = [[m.wall_seconds for m in run.measurements[f"night_{x}"]] for x in GROWTH]
            for multiple, seconds in zip(GROWTH, points, strict=True):
                axes.plot([multiple] * len(seconds), seconds, "o", color="tab:blue", alpha=0.4)
            medians = [run.median(f"night_{m}", "wall_seconds") for m in GROWTH]
            axes.plot(list(GROWTH), medians, color="tab:blue")
            axes.set(
                xscale="log",
                xticks=list(GROWTH),
                xticklabels=[f"{m}×\n{days} days" for m, days in GROWTH.items()],
                xlabel="history before the night",
                ylabel="seconds, whole process",
                title=f"A night of {run.shape.night_events:,} events as history grows",
                ylim=(0, 1.1 * max(map(max, points))),
            )
            axes.minorticks_off()
            made.append(directory / "benchmarks-growth.png")
            figure.savefig(made[-1], dpi=120)
        nights = {
            "near-empty day": "empty_night",
            **{f"after {multiple}× history": f"night_{multiple}" for multiple in GROWTH},
            f"{run.shape.big_day_events:,} events": "big_night",
        }
        split = {name: self._stages(key) for name, key in nights.items() if run.median(key)}
        if split:
            figure = Figure(figsize=(9, 4), layout="constrained")
            axes = figure.subplots()
            left = dict.fromkeys(split, 0.0)
            for stage in next(iter(split.values())):
                seconds = [stages[stage] for stages in split.values()]
                axes.barh(list(split), seconds, left=list(left.values()), label=stage)
                left = {name: left[name] + split[name][stage] for name in split}
            axes.set(xlabel="seconds", title="Where a night's time goes")
            axes.invert_yaxis()
            figure.legend(loc="outside lower center", ncols=4)
            made.append(directory / "benchmarks-time.png")
            figure.savefig(made[-1], dpi=120)
        return made

    def _stages(self, key: str) -> dict[str, float]:
        """Median seconds by stage; the process's own start and end are the rest."""
        measured = self._run.measurements[key]
        stages = {
            stage: statistics.median(m.figures["stages"][stage] for m in measured)
            for stage in measured[0].figures["stages"]
        }
        stages["process start and end"] = statistics.median(
            m.wall_seconds - m.seconds for m in measured
        )
        return stages


def _verdict(budget: Budget | None, figure: float | None) -> dict[str, str]:
    if budget is None:
        return {}
    if figure is None:
        return {"budget": str(budget), "verdict": "not measured"}
    return {"budget": str(budget), "verdict": "met" if budget.met(figure) else "MISSED"}


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}×"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
