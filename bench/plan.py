"""What runs when: every part of the benchmark, pipeline and peers in turn, round by round.

A peer's time counts only once its result is equal to the pipeline's; a difference is kept as
`unequal` and makes the whole run fail.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from bench import measure
from bench.measure import Measurement, MeasurementFailed, PackageMissing
from bench.server import Server
from bench.shape import (
    BIG_DAY,
    BIG_DAY_EVE,
    EMPTY_START,
    EXPORT_MONTH,
    GROWTH,
    HISTORY_END,
    HISTORY_START,
    PUBLISH_START,
    SMALL_DAY,
    Shape,
)

PARTS = ("landing", "rollup", "small", "history", "nights", "publish", "growth", "exports", "demo")
DLT_BACKENDS = ("connectorx", "pyarrow", "sqlalchemy")
NARROW = "id, user_id, org_id, event_type, quantity, created_at"
FULL = "id, user_id, org_id, event_type, event_data, quantity, created_at"
CHANGES = ("new", "changed", "unchanged")


class Run:
    """One run of the benchmark, in a directory of its own.

    Args:
        shape: of the data.
        directory: empty; its path short, as Unix sockets want it.

    Attributes:
        measurements: by key, one a round.
        problems: why a peer has no time, by key.
        unequal: every comparison that found a difference.
        locks: what the source's table was locked with while a day was landed.
        postgres_version, cells, event_data: the server's, the big day's user-org-metric cells,
            and the least and greatest length of its event_data.
    """

    def __init__(self, shape: Shape, directory: Path) -> None:
        self.shape = shape
        self.measurements: dict[str, list[Measurement]] = defaultdict(list)
        self.problems: dict[str, str] = {}
        self.unequal: list[str] = []
        self.locks: dict[str, Any] = {}
        self.postgres_version, self.cells, self.event_data = "", 0, (0, 0)
        self._directory = directory
        self._scratch = directory / "tmp"
        self._homes: dict[str, dict[str, str]] = {}
        self.server = Server(directory / "pg")
        self._url = self.server.url()

    def everything(self, parts: tuple[str, ...]) -> None:
        """Generate the data and run the parts, interleaved, as often as the shape says.

        An interrupt after the first round ends it with what is measured.
        """
        self._measure("generate", "data:generate", url=self._url, **self.shape.arguments())
        self.server.execute("vacuum (analyze)")
        self.postgres_version, self.cells, self.event_data = self.server.facts(BIG_DAY)
        for round_ in range(self.shape.repeats):
            try:
                for part in parts:
                    getattr(self, f"_{part}")(round_)
                    shutil.rmtree(self._scratch, ignore_errors=True)
            except KeyboardInterrupt:
                if not round_:
                    raise
                _say(f"interrupted in round {round_ + 1}; the medians are of what was measured")
                break

    def median(self, key: str, figure: str = "seconds") -> float | None:
        """Median over the rounds of a measurement's attribute or figure; None without one."""
        values = [m.value(figure) for m in self.measurements.get(key, [])]
        return statistics.median(values) if values else None

    # --- parts: project and peers in turn -----------------------------------------------------

    def _landing(self, round_: int) -> None:
        for kind, columns, event_data in (("narrow", NARROW, "false"), ("full", FULL, "true")):
            self._copy(f"copy_{kind}", BIG_DAY, columns)
            home = self._fresh("landing", BIG_DAY, USAGE_LAND_EVENT_DATA=event_data)
            self._land(f"land_{kind}", home, BIG_DAY)
        if not round_:
            with self.server.watched() as self.locks:
                measure.work("project:land", self._fresh("landing", BIG_DAY), **_days(BIG_DAY))

    def _rollup(self, round_: int) -> None:
        ours, days = self._file("ours.parquet"), _days(BIG_DAY)
        landed = self._landed("landed_day", **days)
        home = self._fresh("build", BIG_DAY_EVE)
        shutil.copytree(landed, _landing(home), copy_function=os.link)
        self._measure("rollup", "project:build", home, **days, cells=ours, landed=True)
        for kind, event_data in (("narrow", "false"), ("full", "true")):
            home = self._fresh("build", BIG_DAY_EVE, USAGE_LAND_EVENT_DATA=event_data)
            key, cells = f"together_{kind}", self._file(f"{kind}.parquet")
            self._measure(key, "project:build", home, **days, cells=cells, landed=False)
            self.check(key, "cells", ours=ours, theirs=cells)

        measure.work("peers:prepare_aggregates", {}, url=self._url)
        for key in ("aggregate_insert", "aggregate_update"):
            self._measure(key, "peers:aggregate", peer=True, url=self._url, day=BIG_DAY)
            cells = self._file("aggregates.csv")
            measure.work("peers:aggregate_cells", {}, url=self._url, cells=cells)
            self.check(key, "cells", ours=ours, theirs=cells)
        events = {"events": landed / _partition(BIG_DAY)}
        from_source = {"url": self._url, "day": BIG_DAY}
        for peer, source in (("polars", events), ("chdb", events), ("pandas", from_source)):
            cells = self._file(f"{peer}.parquet")
            if self._measure(peer, f"peers:{peer}", peer=True, **source, cells=cells):
                self.check(peer, "cells", ours=ours, theirs=cells)

    def _small(self, round_: int) -> None:
        self._copy("copy_small", SMALL_DAY, FULL)
        home = self._fresh("small", SMALL_DAY)
        self._land("land_small", home, SMALL_DAY)
        for backend in DLT_BACKENDS:
            key, directory = f"dlt_{backend}", self._file(f"dlt-{backend}")
            directory.mkdir()
            quiet = {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(directory)}
            source = {"url": self._url, "day": SMALL_DAY, "backend": backend}
            loaded = self._measure(
                key, "peers:dlt", quiet, peer=True, **source, directory=directory
            )
            if loaded:
                ours = _landing(home) / _partition(SMALL_DAY)
                self.check(key, "events", ours=ours, theirs=loaded.figures["database"])

    def _growth(self, round_: int) -> None:
        night = self.shape.nights()[round_]
        for multiple in GROWTH:
            self._roll_up(f"night_{multiple}", self._grown(multiple), **_days(night))

    def _history(self, round_: int) -> None:
        home, ours = self._fresh("history", HISTORY_START), self._file("history.parquet")
        span = _days(HISTORY_START, HISTORY_END)
        landed = self._landed("landed_history", **span)
        shutil.copytree(landed, _landing(home), copy_function=os.link)
        self._measure("history", "project:build", home, **span, cells=ours, landed=True)
        self.check("history", "history", url=self._url, ours=ours, **span)

    def _exports(self, round_: int) -> None:
        home = self._grown(30)
        folder = Path(home["USAGE_HOME"]) / "exports" / f"{EXPORT_MONTH:%Y-%m}"
        shutil.rmtree(folder, ignore_errors=True)
        self._measure("exports", "project:export", home, month=EXPORT_MONTH)
        end = (EXPORT_MONTH + timedelta(days=31)).replace(day=1)
        snapshot = _snapshot(home)
        self.check(
            "exports", "files", folder=folder, snapshot=snapshot, month=EXPORT_MONTH, end=end
        )

    def _nights(self, round_: int) -> None:
        warm_up, *days = self.shape.empty_days()
        if "empty" not in self._homes:
            home = self._homes["empty"] = self._fresh("empty", EMPTY_START)
            measure.work("project:night", home, **_days(warm_up))
        self._roll_up("empty_night", self._homes["empty"], **_days(days[round_]))
        big = self._fresh("build", BIG_DAY_EVE)
        self._roll_up("big_night", big, **_days(BIG_DAY))
        self._measure("audit", "project:audit", big)

    def _publish(self, round_: int) -> None:
        if "publish" not in self._homes:
            home = self._homes["publish"] = self._fresh("publish", EMPTY_START)
            measure.work("project:prepare_publish", home, day=EMPTY_START)
        home, rows = self._homes["publish"], self.shape.published_rows
        schema = home["USAGE_PUBLISH_SCHEMA"]
        day = PUBLISH_START + timedelta(days=round_)
        for change in CHANGES:
            key, before = f"publish_{change}", self.server.rows_written(schema)
            done = self._measure(key, "project:publish", home, day=day, rows=rows, change=change)
            done.figures["rows_written"] = self.server.rows_written(schema) - before
            self.check(
                key, "postgres_table", url=self._url, schema=schema, snapshot=_snapshot(home)
            )

    def _demo(self, round_: int) -> None:
        home = self._fresh("demo", None)
        for name in ("USAGE_APP_DATABASE_URL", "DAGSTER_PG_URL", "USAGE_PUBLISH_SCHEMA"):
            del home[name]  # the embedded server, as in `make demo`
        self._measure("demo", "project:demo", home)

    # --- what parts share ---------------------------------------------------------------------

    def _measure(
        self,
        key: str,
        target: str,
        environment: Mapping[str, str] | None = None,
        *,
        peer: bool = False,
        **arguments: Any,
    ) -> Any:
        """A measurement, with what it cost the server; None where a peer cannot be measured."""
        if key in self.problems:
            return None
        _say(key)
        before = self.server.use()
        try:
            done = measure.work(target, environment or {}, **arguments)
        except MeasurementFailed as failure:
            if not peer:
                raise
            missing = isinstance(failure, PackageMissing)
            self.problems[key] = "not installed" if missing else "failed"
            _say(f"{key}: {failure}")
            return None
        use = self.server.use().since(before)
        done = replace(done, source_cpu_seconds=use.cpu_seconds, source_buffers=use.buffers)
        self.measurements[key].append(done)
        return done

    def check(self, key: str, comparison: str, **arguments: Any) -> None:
        """Compare what was just measured; its times are dropped when it differs."""
        found = measure.work(f"compare:{comparison}", {}, **arguments).figures
        if found["differences"]:
            why = found.get("why", f"{found['differences']:,} differences")
            _say(f"{key}: unequal, {why}")
            self.unequal.append(f"{key} ({why})")
            self.problems[key] = "unequal"
            self.measurements.pop(key, None)

    def _copy(self, key: str, day: date, columns: str) -> None:
        psql = self.server.psql
        self._measure(
            key, "peers:copy", peer=True, url=self._url, psql=psql, day=day, columns=columns
        )

    def _land(self, key: str, home: Mapping[str, str], day: date) -> None:
        days = _days(day)
        figures = self._measure(key, "project:land", home, **days).figures
        landed = {"rows": figures["rows"], "total": figures["total"]}
        self.check(key, "landed", url=self._url, **days, **landed)

    def _roll_up(self, key: str, home: Mapping[str, str], start: date, end: date) -> None:
        days = _days(start, end)
        self._measure(key, "project:night", home, **days)
        self.check(key, "published", url=self._url, snapshot=_snapshot(home), **days)

    def _grown(self, multiple: int) -> dict[str, str]:
        """A home whose history is so many days long, rolled up in one run."""
        name = f"grown{multiple}"
        if name not in self._homes:
            home = self._homes[name] = self._fresh(name, HISTORY_START)
            start = HISTORY_END - timedelta(days=GROWTH[multiple])
            self._roll_up(f"backfill_{multiple}", home, start, HISTORY_END)
            self.server.execute("vacuum (analyze)")  # as autovacuum would by the next night
        return self._homes[name]

    def _landed(self, name: str, start: date, end: date) -> Path:
        """Landed days that several rollups share."""
        if name not in self._homes:
            home = self._homes[name] = self._fresh(name, start)
            measure.work("project:land", home, start=start, end=end)
        return _landing(self._homes[name])

    def _fresh(self, name: str, start: date | None, **settings: str) -> dict[str, str]:
        """The environment of a home without data, in the databases too.

        dbt's parsed project stays, as it would from one night to the next.
        """
        home = self._directory / name
        for path in home.glob("*"):
            if path.is_dir() and path.name != "dbt":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
        self.server.execute(f"drop schema if exists pub_{name} cascade")
        self.server.create_database(f"dagster_{name}")
        return {
            "USAGE_HOME": str(home),
            "USAGE_APP_DATABASE_URL": self._url,
            "USAGE_PUBLISH_SCHEMA": f"pub_{name}",
            # The benchmark's days are as recent as last night's: the checks ask the source too.
            "USAGE_LOOKBACK_DAYS": "3650",
            "DAGSTER_PG_URL": self.server.url(f"dagster_{name}"),
            **({"USAGE_START_DATE": str(start)} if start else {}),
            **settings,
        }

    def _file(self, name: str) -> Path:
        self._scratch.mkdir(exist_ok=True)
        return self._scratch / name


def _landing(home: Mapping[str, str]) -> Path:
    return Path(home["USAGE_HOME"]) / "landing" / "usage_events"


def _partition(day: date) -> Path:
    return Path(f"usage_date={day}") / "part-*.parquet"


def _snapshot(home: Mapping[str, str]) -> Path:
    return Path(home["USAGE_HOME"]) / "serving" / "usage.duckdb"


def _days(start: date, end: date | None = None) -> dict[str, Any]:
    """One day, or `[start, end)`."""
    return {"start": start, "end": end or start + timedelta(days=1)}


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
