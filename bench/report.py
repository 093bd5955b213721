"""What a run has shown: one table, the same as JSON, a page and plots. No measuring here."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import budgets
from bench.budgets import GIB, Budget
from bench.measure import MeasurementFailed
from bench.plan import CHANGES, DLT_BACKENDS, PARTS, PLACES, Run
from bench.server import SETTINGS
from bench.shape import READERS, SHORT_HISTORY

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
JSON = "benchmarks.json"
BEGIN, END = "<!-- made by make bench: begin -->", "<!-- made by make bench: end -->"
# A column of the table and the attribute of a row.
COLUMNS = {
    "what": "what",
    "who": "who",
    "median": "median",
    "ratio": "ratio",
    "before": "before",
    "budget": "budget",
    "verdict": "verdict",
    "aim": "aim",
    "CPU, own + Postgres": "cpu",
    "CPU ratio": "cpu_ratio",
    "peak memory": "memory",
    "Postgres buffers": "source_buffers",
    "rounds": "rounds",
}
MIB = 1 << 20
FUNCTION = "aggregate_insert"  # its faster run; budgets are held against it


@dataclass(frozen=True)
class Row:
    """A line of the table; every cell is text, empty where it does not apply.

    `measured` and `commit` say when and of what; only the JSON has them.
    """

    what: str
    who: str
    median: str = ""
    ratio: str = ""
    before: str = ""
    budget: str = ""
    verdict: str = ""
    aim: str = ""
    cpu: str = ""
    cpu_ratio: str = ""
    memory: str = ""
    source_buffers: str = ""
    rounds: str = ""
    measured: str = ""
    commit: str = ""

    def cells(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in COLUMNS.values())

    def figure(self) -> str:
        """What the row shows, in one cell of another table."""
        median = self.median.partition(" (")[0]
        cpu = f"CPU {self.cpu}" if self.cpu else ""
        return ", ".join(filter(None, (median, self.ratio, cpu)))


class Report:
    """The table of a run.

    Args:
        run: with its measurements, now or later.
        directory: of the outputs; absent, or with those of an earlier run.

    Attributes:
        before: of an earlier run, what its JSON has; empty without one.
    """

    def __init__(self, run: Run, directory: Path) -> None:
        self._run = run
        self._directory = directory
        self.before: dict[str, Any] = {}
        self.compare_with(self._known().get("before", {}))

    def rows(self) -> list[Row]:
        parts = {m.part for measured in self._run.measurements.values() for m in measured}
        parts |= {*self._run.rounds}
        rows = [row for part in PARTS if part in parts for row in getattr(self, f"_{part}")()]
        rows += self._memory()
        before = {
            (row["what"], row["who"]): Row(
                row["what"], row["who"], row["median"], row["ratio"], cpu=row.get("cpu", "")
            )
            for row in self.before.get("rows", [])
        }
        return [
            replace(row, before=before[row.what, row.who].figure())
            if (row.what, row.who) in before
            else row
            for row in rows
        ]

    def text(self) -> str:
        """The table for a terminal."""
        lines = [tuple(COLUMNS), *(row.cells() for row in self.rows())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join(line.rstrip() for line in padded)

    def compare_with(self, before: dict[str, Any]) -> None:
        """Show the figures of an earlier run beside, unless they are of another scale."""
        if before and before["data"]["scale"] == self._run.shape.scale:
            self.before = before

    def resume(self) -> None:
        """Let the run go on from what the directory has.

        Raises:
            MeasurementFailed: it is of other code, another machine or other data.
        """
        if not (known := self._known()):
            return
        for name, ours in self._sameness().items():
            if known.get(name) != ours:
                raise MeasurementFailed(
                    f"{self._directory / JSON} is of another {name}: {known.get(name)}, not {ours}"
                )
        self._run.resume(known)

    def save(self) -> None:
        """`benchmarks.json`: all that was measured so far."""
        self._directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._everything(), indent=1) + "\n"
        path = self._directory / JSON
        path.with_suffix(".new").write_text(text, "utf-8")
        path.with_suffix(".new").replace(path)

    def write(self) -> None:
        """`benchmarks.json`, the plots, and the block between the marks in `benchmarks.md`."""
        self.save()
        images = self._plot()
        page = self._directory / "benchmarks.md"
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
        if locks := self._run.locks:
            others = [mode for mode in locks["modes"] if mode != "AccessShareLock"]
            yield self._judged(
                "locks on usage_events, longest transaction",
                f"usage-pipeline: {', '.join(locks['modes'])}",
                budgets.SOURCE_LOCKS,
                len(others),
                median=f"{locks['longest']:.2f} s",
            )

    def _rollup(self) -> Iterator[Row]:
        daily = "daily rollup of a landed day"
        yield from self._functions(daily, "")
        yield self._row(
            daily,
            "usage-pipeline, engine",
            "rollup",
            "daily_engine",
            against=FUNCTION,
            budget=budgets.DAILY_ENGINE,
        )
        yield self._row(
            daily, "usage-pipeline, wall, all models", "rollup", "daily_wall", against=FUNCTION
        )
        for peer, who in (
            ("polars", "Polars from Parquet"),
            ("chdb", "chDB from Parquet"),
            ("pandas", "pandas from Postgres"),
        ):
            yield self._row(daily, who, peer, against=FUNCTION)
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
                against=FUNCTION,
                budget=budget,
            )

    def _functions(self, what: str, prefix: str) -> Iterator[Row]:
        for kind, rows in (("insert", "new"), ("update", "same")):
            who = f"function in Postgres, {rows} rows"
            yield self._row(what, who, f"{prefix}aggregate_{kind}")

    def _small(self) -> Iterator[Row]:
        what = f"landing a day of {self._run.shape.small_day_events:,} events"
        yield self._row(what, "COPY, binary, discarded", "copy_small")
        yield self._row(what, "usage-pipeline", "land_small", against="copy_small")
        for backend in DLT_BACKENDS:
            key = f"dlt_{backend}"
            yield self._row(what, f"dlt, {backend}", key)
            ratio = self._ratio("land_small", key)
            yield self._judged(what, f"usage-pipeline / {backend}", budgets.DLT[backend], ratio)

    def _rebuild(self) -> Iterator[Row]:
        shape = self._run.shape
        what = f"re-rollup of {shape.history_days} days, {shape.history_events:,} events"
        yield self._row(what, "usage-pipeline, wall, all models", "rebuild")
        measured = self._run.measurements.get("rebuild", [])
        seconds = [m.value("daily_engine") + m.value("monthly_engine") for m in measured]
        engine = statistics.median(seconds) if seconds else None
        yield self._judged(
            what,
            "usage-pipeline, engine",
            budgets.HISTORY_ENGINE,
            shape.history_events / engine if engine else None,
            median=f"{engine:.2f} s" if engine else "",
        )

    def _night(self) -> Iterator[Row]:
        what = f"a night of {self._run.shape.big_day_events:,} events, whole process"
        yield self._whole(what, "big_night", FUNCTION, budgets.NIGHT_FRESH)
        yield self._row("checks of that night", "usage-pipeline", "audit")
        for figure, kind in (("source_cpu_seconds", "CPU"), ("source_buffers", "buffers")):
            what = f"work of that night on the source, {kind}"
            land, audit, copy, function = (
                self._run.median(key, figure)
                for key in ("land_full", "audit", "copy_full", FUNCTION)
            )
            night = land + audit if land is not None and audit is not None else None
            yield self._judged(
                what,
                "landing and checks / COPY",
                budgets.SOURCE_WORK if kind == "CPU" else None,
                night / copy if night is not None and copy else None,
            )
            if night is not None and function:
                yield Row(what, "landing and checks / function", ratio=_times(night / function))

    def _empty(self) -> Iterator[Row]:
        yield self._whole(
            "a near-empty night, whole process", "empty_night", budget=budgets.FIXED_OVERHEAD
        )

    def _scheduled(self) -> Iterator[Row]:
        yield self._row(
            "a near-empty night, scheduled: both runs from the queue to the end",
            "usage-pipeline",
            "scheduled_night",
            budget=budgets.FIXED_OVERHEAD,
        )
        yield self._row(
            "a near-empty night, scheduled: with the wait of the sensor between the runs",
            "usage-pipeline",
            "scheduled_night",
            "passed",
        )

    def _growth(self) -> Iterator[Row]:
        shape = self._run.shape
        yield from self._grown("", shape.history_days, shape.big_day_events, budgets.GROWTH)
        key = f"big_night_after_{shape.history_days}"
        what = f"a night of {shape.big_day_events:,} events after {shape.history_days} days"
        ratio = self._ratio(key, FUNCTION, "wall_seconds", "seconds")
        row = self._judged(what, "usage-pipeline / function", budgets.NIGHT_GROWN, ratio)
        yield replace(row, cpu_ratio=_times(self._cpu_ratio(key, FUNCTION)))
        backfill = f"backfill_after_{shape.history_days}"
        seconds = self._run.median(backfill, "wall_seconds")
        single = self._run.median("big_night", "wall_seconds")
        rate = shape.history_events / seconds if seconds else 0.0
        yield self._whole(
            f"backfill of {shape.history_days} days in one run", backfill, budget=budgets.BACKFILL
        )
        if rate and single:
            yield Row(
                f"backfill of {shape.history_days} days in one run",
                "usage-pipeline, a single night's events/s = 1",
                f"{rate:,.0f} events/s",
                _times(rate / (shape.big_day_events / single)),
            )

    def _grown(
        self, prefix: str, days: int, events: int, budget: Budget | None = None
    ) -> Iterator[Row]:
        """Nights of the same day, after a short and a long history."""
        short = f"{prefix or 'big_'}night_after_{SHORT_HISTORY}"
        for length in (SHORT_HISTORY, days):
            what = f"a night of {events:,} events after {length} days"
            key = f"{prefix or 'big_'}night_after_{length}"
            longest = length == days
            yield self._whole(what, key, short if longest else None, budget if longest else None)

    def _tenth(self) -> Iterator[Row]:
        events = self._run.shape.tenth().big_day_events
        what = f"a night of {events:,} events, whole process"
        yield from self._functions(f"daily rollup of {events:,} events", "tenth_")
        yield self._whole(what, "tenth_night", f"tenth_{FUNCTION}")

    def _year(self) -> Iterator[Row]:
        tenth = self._run.shape.tenth()
        yield from self._grown("tenth_", self._run.shape.year, tenth.big_day_events)
        nights = self._run.measurements.get("row_night", [])
        if not nights:
            return
        few = max(1, len(nights) // 6)
        what = f"{len(nights)} nights of {tenth.night_events:,} events in a row"
        named = ((f"the first {few}", nights[:few]), (f"the last {few}", nights[-few:]))
        for who, some in named:
            wall = [m.wall_seconds for m in some]
            against = statistics.median(m.wall_seconds for m in nights[:few])
            cpu_against = statistics.median(m.all_cpu_seconds for m in nights[:few])
            cpu = statistics.median(m.all_cpu_seconds for m in some)
            yield replace(
                _cells(what, who, some, wall),
                ratio=_times(statistics.median(wall) / against),
                cpu_ratio=_times(cpu / cpu_against),
            )
        for place in PLACES:
            sizes = [m.figures["bytes"][place] for m in nights]
            grown = (sizes[-1] - sizes[0]) / max(1, len(sizes) - 1) / MIB
            shown = f"{sizes[0] / MIB:,.0f} to {sizes[-1] / MIB:,.0f} MiB"
            yield Row(what, f"bytes: {place}", shown, f"{grown:+,.2f} MiB a night")

    def _on_top(self) -> Iterator[Row]:
        shape = self._run.shape
        for key, of, days in (
            (f"on_top_after_{shape.history_days}", shape, shape.history_days),
            (f"on_top_tenth_after_{shape.year}", shape.tenth(), shape.year),
        ):
            what = (
                f"on top of a night of {of.big_day_events:,} events, {of.users:,} users, "
                f"after {days} days"
            )
            measured = self._run.measurements.get(key, [])
            together = []
            for m in measured:
                on_top = sum(m.figures["on_top"].values())
                together.append(100 * on_top / (m.seconds - on_top))
            for part in measured[0].figures["on_top"] if measured else ():
                seconds = statistics.median(m.figures["on_top"][part] for m in measured)
                rows = measured[0].figures["rows_on_top"].get(part)
                written = "" if rows is None else f"{rows:,} rows written"
                yield Row(what, part, f"{seconds:.2f} s", written)
            yield self._judged(
                what,
                "together, of the rest of the night",
                budgets.ON_TOP,
                statistics.median(together) if together else None,
            )

    def _pages(self) -> Iterator[Row]:
        shape = self._run.shape
        what = (
            f"usage page of one of {shape.users:,} users, {READERS} readers during a night of "
            f"{shape.big_day_events:,} events"
        )
        row = self._row(what, "95 of 100 pages within", "pages", budget=budgets.PAGES)
        yield replace(row, cpu="")
        for who, figure in (("half of the pages within", "median"), ("the slowest", "worst")):
            yield replace(self._row(what, who, "pages", figure), cpu="", memory="")
        for m in self._run.measurements.get("pages", [])[:1]:
            rate = f"{m.figures['pages_a_second']:.0f} pages a second, of which each takes CPU"
            size = f"{m.figures['page_bytes'] / 1000:.0f} kB the largest"
            yield Row(what, rate, f"{1000 * m.cpu_seconds:.1f} ms", size)

    def _exports(self) -> Iterator[Row]:
        measured = self._run.measurements.get("exports", [])
        files = measured[0].figures["files"] if measured else 0
        seconds = self._run.median("exports")
        what = f"exports of a month, {files:,} users"
        yield self._row(what, "usage-pipeline", "exports")
        yield self._judged(
            what, "usage-pipeline", budgets.EXPORTS, files / seconds if seconds else None
        )

    def _publish(self) -> Iterator[Row]:
        rates = {"new": budgets.PUBLISH_NEW, "changed": budgets.PUBLISH_CHANGED}
        for change in CHANGES:
            key, what = f"publish_{change}", f"publishing {change} rows of usage_aggregations"
            yield self._row(f"{what}, all three places", "usage-pipeline", key)
            measured = self._run.measurements.get(key)
            if not measured:
                continue
            written = max(m.figures["rows_written"] for m in measured)
            if change not in rates:
                yield self._judged(
                    f"{what}, Postgres", "usage-pipeline", budgets.PUBLISH_UNCHANGED, written
                )
                continue
            rows = measured[0].figures["rows"]
            rate = statistics.median(m.figures["rows"] / m.figures["postgres"] for m in measured)
            median = f"{self._run.median(key, 'postgres') or 0:.2f} s"
            yield self._judged(
                f"{what}, Postgres",
                f"{rows:,} rows that a reader sees",
                rates[change],
                rate,
                median=median,
            )
            rate = statistics.median(
                m.figures["rows_written"] / m.figures["postgres"] for m in measured
            )
            yield Row(
                f"{what}, Postgres",
                f"{written:,} rows written, of all tables",
                median,
                f"{rate:,.0f} rows/s",
            )

    def _demo(self) -> Iterator[Row]:
        yield self._whole("make demo, installed", "demo", budget=budgets.DEMO)

    def _memory(self) -> Iterator[Row]:
        peers = ("copy_", "aggregate_", "tenth_aggregate_", "dlt_", "pandas", "polars", "chdb")
        peaks = {
            key: max(m.peak_bytes for m in measured) / GIB
            for key, measured in self._run.measurements.items()
            if not key.startswith(peers)
        }
        if peaks:
            greatest = max(peaks, key=lambda key: peaks[key])
            yield self._judged(
                "peak memory of any process",
                f"usage-pipeline: {greatest}",
                budgets.PEAK_MEMORY,
                peaks[greatest],
            )

    # --- cells --------------------------------------------------------------------------------

    def _whole(
        self, what: str, key: str, against: str | None = None, budget: Budget | None = None
    ) -> Row:
        """A whole process of the pipeline. A function's seconds are its own."""
        other = "seconds" if against and FUNCTION in against else "wall_seconds"
        return self._row(
            what, "usage-pipeline", key, "wall_seconds", against=against, other=other, budget=budget
        )

    def _row(
        self,
        what: str,
        who: str,
        key: str,
        figure: str = "seconds",
        *,
        against: str | None = None,
        other: str = "seconds",
        budget: Budget | None = None,
    ) -> Row:
        """A measurement in seconds. A budget judges its ratio, or its seconds without one.

        Args:
            figure, other: what is compared, of the key and of what it is held against.
        """
        measured = self._run.measurements.get(key)
        if not measured:
            problem = self._run.problems.get(key, "not measured")
            return Row(what, who, median=problem, **_verdict(budget, None))
        values = [m.value(figure) for m in measured]
        ratio = self._ratio(key, against, figure, other) if against else None
        judged = ratio if against else statistics.median(values)
        row = _cells(what, who, measured, values)
        # dbt says no CPU seconds of a model; of days and months alone the server has no share.
        part = {"daily_wall": "daily_cpu", "monthly_wall": "monthly_cpu"}.get(figure)
        if part:
            row = replace(row, cpu=f"{self._run.median(key, part):.2f} s")
        if figure == "daily_engine":
            row = replace(row, cpu="")
        elif against:
            row = replace(row, cpu_ratio=_times(self._cpu_ratio(key, against, part)))
        return replace(row, ratio=_times(ratio), **_verdict(budget, judged))

    def _judged(
        self, what: str, who: str, budget: Budget | None, figure: float | None, *, median: str = ""
    ) -> Row:
        """A figure that is no time of its own against its budget; a ratio without one."""
        if figure is None:
            shown = ""
        elif budget is None or budget.unit == "×":
            shown = _times(figure)
        else:
            shown = f"{figure:,.2f}" if figure < 10 and figure % 1 else f"{figure:,.0f}"
            shown += f" {budget.unit}"
        return Row(what, who, median, shown, **_verdict(budget, figure))

    def _ratio(
        self, ours: str, theirs: str, figure: str = "seconds", other: str = "seconds"
    ) -> float | None:
        """Of medians."""
        mine, others = self._run.median(ours, figure), self._run.median(theirs, other)
        return mine / others if mine is not None and others else None

    def _cpu_ratio(self, ours: str, theirs: str, part: str | None = None) -> float | None:
        """Of medians, the server's CPU seconds included; of a part of ours where it is named."""
        mine = self._run.median(ours, part or "all_cpu_seconds")
        others = self._run.median(theirs, "all_cpu_seconds")
        return mine / others if mine is not None and others else None

    # --- outputs ------------------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        path = self._directory / JSON
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def _sameness(self) -> dict[str, Any]:
        """What has to be the same for measurements to stand in one table."""
        return {
            "product": self._run.product,
            "machine": self._machine(),
            "scale": self._run.shape.scale,
            "postgres_settings": SETTINGS,
        }

    def _everything(self) -> dict[str, Any]:
        before = {
            name: self.before[name]
            for name in ("made_at", "commit", "machine", "data", "rows")
            if name in self.before
        }
        return {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self._run.commit,
            **self._sameness(),
            "data": self._data(),
            "rows": [asdict(row) for row in self.rows()],
            "budgets": {
                name: value.sentence
                for name, value in vars(budgets).items()
                if isinstance(value, Budget)
            }
            | {f"DLT_{name.upper()}": budget.sentence for name, budget in budgets.DLT.items()},
            **self._run.state(),
            "before": before,
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
            **installed,
        }

    def _data(self) -> dict[str, Any]:
        shape, facts = self._run.shape, self._run.facts
        tenth = shape.tenth()
        shortest, longest = facts.get("event_data", (0, 0))
        return {
            "Postgres": facts.get("postgres", ""),
            "scale": shape.scale,
            "day": f"{shape.big_day_events:,} events, {facts.get('cells', 0):,} user-org-metric "
            "cells",
            "history": f"{shape.history_events:,} events over {shape.history_days} days",
            "users": f"{shape.users:,}",
            "organisations": f"{shape.orgs:,}",
            "event_data": f"{shortest} to {longest} bytes as text",
            "a tenth": f"{tenth.big_day_events:,} events a day, {tenth.history_events:,} events "
            f"over {tenth.history_days} days, {tenth.users:,} users",
        }

    def _markdown(self, images: list[Path]) -> str:
        def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
            lines = [headings, ("---",) * len(headings), *rows]
            return [f"| {' | '.join(line)} |" for line in lines]

        facts = [(k, str(v)) for k, v in {**self._machine(), **self._data()}.items()]
        settings = ", ".join(f"`{name} = {value}`" for name, value in SETTINGS.items())
        lines = [
            *table(tuple(COLUMNS), [row.cells() for row in self.rows()]),
            "",
            f"Unequal results: {'; '.join(self._run.unequal) or 'none'}.",
            "",
            *self._provenance(),
            "",
            *table(("machine and data", ""), facts),
            "",
            f"Postgres: {settings}.",
        ]
        for image in images:
            lines += ["", f"![{image.stem}]({image.name})"]
        return "\n".join(lines)

    def _provenance(self) -> Iterator[str]:
        """Commits and days of what was measured, and the same of the column of before."""
        measured = [m for some in self._run.measurements.values() for m in some]
        if measured:
            commits = ", ".join(f"`{commit}`" for commit in sorted({m.commit for m in measured}))
            days = sorted({m.made_at[:10] for m in measured})
            yield f"Measured: {commits}, {' to '.join(dict.fromkeys((days[0], days[-1])))}."
        if self.before:
            machine = self.before["machine"]
            commit = self.before.get("commit", "unknown")
            yield (
                f"Before: `{commit}`, {self.before['made_at'][:10]}, on {machine['processor']} "
                f"with {machine['cores']} cores."
            )

    def _plot(self) -> list[Path]:
        """Where nights spend their time, and nights in a row; none without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return []
        made = []
        run, shape = self._run, self._run.shape
        events = f"{shape.big_day_events:,} events"
        nights = {
            "near-empty day": "empty_night",
            events: "big_night",
            **{
                f"{events} after {days} days": f"big_night_after_{days}"
                for days in (SHORT_HISTORY, shape.history_days)
            },
            f"{shape.tenth().big_day_events:,} events": "tenth_night",
            **{
                f"{shape.tenth().big_day_events:,} events after {days} days": (
                    f"tenth_night_after_{days}"
                )
                for days in (SHORT_HISTORY, shape.year)
            },
        }
        split = {name: self._stages(key) for name, key in nights.items() if run.median(key)}
        if split:
            figure = Figure(figsize=(9, 1 + 0.6 * len(split)), layout="constrained")
            axes = figure.subplots()
            left = dict.fromkeys(split, 0.0)
            for stage in dict.fromkeys(stage for stages in split.values() for stage in stages):
                seconds = [stages.get(stage, 0.0) for stages in split.values()]
                axes.barh(list(split), seconds, left=list(left.values()), label=stage)
                left = {name: left[name] + split[name].get(stage, 0.0) for name in split}
            axes.set(xlabel="seconds", title="Where a night's time goes")
            axes.invert_yaxis()
            figure.legend(loc="outside lower center", ncols=4)
            made.append(self._directory / "benchmarks-time.png")
            figure.savefig(made[-1], dpi=120)
        row = run.measurements.get("row_night", [])
        if row:
            figure = Figure(figsize=(9, 4), layout="constrained")
            times, sizes = figure.subplots(1, 2)
            numbers = list(range(1, len(row) + 1))
            times.plot(numbers, [m.wall_seconds for m in row], label="wall")
            times.plot(numbers, [m.all_cpu_seconds for m in row], label="CPU, with Postgres")
            times.set(xlabel="night", ylabel="seconds, whole process", ylim=(0, None))
            for place in PLACES:
                sizes.plot(numbers, [m.figures["bytes"][place] / MIB for m in row], label=place)
            sizes.set(xlabel="night", ylabel="MiB", ylim=(0, None))
            for axes in (times, sizes):
                axes.legend()
            figure.suptitle(
                f"{len(row)} nights of {shape.tenth().night_events:,} events in a row, after "
                f"{shape.year - len(row)} days"
            )
            made.append(self._directory / "benchmarks-growth.png")
            figure.savefig(made[-1], dpi=120)
        return made

    def _stages(self, key: str) -> dict[str, float]:
        """Median seconds by stage; the process's own start and end are the rest."""
        measured = self._run.measurements[key]
        stages = {
            stage: statistics.median(m.figures["stages"].get(stage, 0.0) for m in measured)
            for stage in measured[0].figures["stages"]
        }
        stages["process start and end"] = statistics.median(
            m.wall_seconds - sum(m.figures["stages"].values()) for m in measured
        )
        return stages


def _cells(what: str, who: str, measured: Sequence[Any], values: Sequence[float]) -> Row:
    """What all rows of measurements have."""
    own = statistics.median(m.cpu_seconds for m in measured)
    server = statistics.median(m.source_cpu_seconds for m in measured)
    return Row(
        what,
        who,
        f"{statistics.median(values):.2f} s ({min(values):.2f}–{max(values):.2f})",
        cpu=f"{own:.2f} + {server:.2f} s",
        memory=f"{max(m.peak_bytes for m in measured) / MIB:,.0f} MiB",
        source_buffers=f"{statistics.median(m.source_buffers for m in measured):,.0f}",
        rounds=str(len({m.round for m in measured})),
        measured=max(m.made_at for m in measured),
        commit=", ".join(sorted({m.commit for m in measured})),
    )


def _verdict(budget: Budget | None, figure: float | None) -> dict[str, str]:
    if budget is None:
        return {}
    verdict = "not measured" if figure is None else "met" if budget.met(figure) else "MISSED"
    return {"budget": str(budget), "verdict": verdict, "aim": budget.spelled_aim()}


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}×"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
