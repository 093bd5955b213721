"""What runs when: every part of the benchmark, pipeline and peers in turn, round by round.

A peer's time counts only once its result is equal to the pipeline's; a difference is kept as
`unequal` and makes the whole run fail.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from bench import measure
from bench.measure import PRODUCT, ROOT, Measurement, MeasurementFailed, PackageMissing
from bench.server import DATABASE, Server
from bench.shape import (
    BIG_DAY,
    EMPTY_START,
    EXPORT_MONTH,
    HISTORY_END,
    NO_EVENTS,
    SHORT_HISTORY,
    SMALL_DAY,
    Shape,
    cells_day,
    empty_day,
)

PARTS = (
    "landing",
    "rollup",
    "small",
    "rebuild",
    "night",
    "empty",
    "scheduled",
    "publish",
    "growth",
    "tenth",
    "year",
    "on_top",
    "pages",
    "exports",
    "demo",
)
TENTH = "tenth"  # the database of a team ten times smaller
CELLS = "cells"  # the database that is published from
DLT_BACKENDS = ("connectorx", "pyarrow", "sqlalchemy")
SLOW_BACKEND = "sqlalchemy"  # over a minute; once is enough
NARROW = "id, user_id, org_id, event_type, quantity, created_at"
FULL = "id, user_id, org_id, event_type, event_data, quantity, created_at"
CHANGES = ("new", "changed", "unchanged")
PLACES = ("serving file", "Parquet", "Postgres", "warehouse")


class Run:
    """One run of the benchmark.

    Args:
        shape: of the data.
        directory: empty; its path short, as Unix sockets want it.
        source: where the filled server is, or is made and stays; below the directory without one.

    Attributes:
        measurements: by key, those of all rounds.
        rounds: how many of each part are done.
        problems: why a peer has no time, by key.
        unequal: every comparison that found a difference.
        locks: what the source's table was locked with while a day was landed.
        facts: of server and data: `postgres`, `cells` and `event_data` of the big day.
        commit, product: the checkout that is measured, and a hash of its code.

    Raises:
        MeasurementFailed: another run uses the source.
    """

    def __init__(self, shape: Shape, directory: Path, source: Path | None = None) -> None:
        self.shape = shape
        self.measurements: dict[str, list[Measurement]] = defaultdict(list)
        self.rounds: dict[str, int] = {}
        self.problems: dict[str, str] = {}
        self.unequal: list[str] = []
        self.locks: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self.commit, self.product = _commit(), _product()
        self._part, self._round = "", 0
        self._directory = directory
        self._scratch = directory / "tmp"
        self._homes: dict[str, dict[str, str]] = {}
        source = source or directory / "source"
        source.mkdir(parents=True, exist_ok=True)
        self._lock = (source / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeasurementFailed(f"{source} is used by another run") from None
        self.server = Server(source / "pg")

    def everything(
        self, parts: tuple[str, ...], rounds: int, save: Callable[[], None] = lambda: None
    ) -> None:
        """Run the rounds of the parts that are not done yet, interleaved.

        An interrupt ends it with what is measured.

        Args:
            save: called after each part of a round.
        """
        _say(f"measuring {self.commit} in {PRODUCT}")
        try:
            self._fill(DATABASE, self.shape)
            version, cells, event_data = self.server.facts(BIG_DAY)
            self.facts = {"postgres": version, "cells": cells, "event_data": event_data}
            for self._round in range(rounds):
                for self._part in parts:
                    if self.rounds.get(self._part, 0) > self._round:
                        continue
                    getattr(self, f"_{self._part}")()
                    shutil.rmtree(self._scratch, ignore_errors=True)
                    self.rounds[self._part] = self._round + 1
                    save()
        except KeyboardInterrupt:
            _say(f"interrupted in round {self._round + 1} of {self._part}; what is measured stays")

    def close(self) -> None:
        self.server.stop()
        self._lock.close()

    def state(self) -> dict[str, Any]:
        """All that `resume` needs."""
        return {
            "rounds": self.rounds,
            "facts": self.facts,
            "locks": self.locks,
            "problems": self.problems,
            "unequal": self.unequal,
            "measurements": {k: [asdict(m) for m in v] for k, v in self.measurements.items()},
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Rounds of parts that were cut short are measured again."""
        self.rounds, self.facts, self.locks = state["rounds"], state["facts"], state["locks"]
        self.problems, self.unequal = state["problems"], state["unequal"]
        for key, values in state["measurements"].items():
            kept = [Measurement(**value) for value in values]
            kept = [m for m in kept if m.round < self.rounds.get(m.part, 0)]
            if kept:
                self.measurements[key] = kept

    def median(self, key: str, figure: str = "seconds") -> float | None:
        """Median over the rounds of a measurement's attribute or figure; None without one."""
        values = [m.value(figure) for m in self.measurements.get(key, [])]
        return statistics.median(values) if values else None

    # --- parts: project and peers in turn -----------------------------------------------------

    def _landing(self) -> None:
        for kind, columns, event_data in (("narrow", NARROW, "false"), ("full", FULL, "true")):
            self._copy(f"copy_{kind}", BIG_DAY, columns)
            home = self._fresh("landing", BIG_DAY, USAGE_LAND_EVENT_DATA=event_data)
            self._land(f"land_{kind}", home, BIG_DAY)
        if not self.locks:
            with self.server.watched() as self.locks:
                measure.work("project:land", self._fresh("landing", BIG_DAY), **_days(BIG_DAY))

    def _rollup(self) -> None:
        ours, days = self._file("ours.parquet"), _days(BIG_DAY)
        landed = self._landed("landed_day", **days)
        home = self._fresh("build", NO_EVENTS)
        shutil.copytree(landed, _landing(home), copy_function=os.link)
        self._measure("rollup", "project:build", home, **days, cells=ours, landed=True)
        for kind, event_data in (("narrow", "false"), ("full", "true")):
            home = self._fresh("build", NO_EVENTS, USAGE_LAND_EVENT_DATA=event_data)
            key, cells = f"together_{kind}", self._file(f"{kind}.parquet")
            self._measure(key, "project:build", home, **days, cells=cells, landed=False)
            self.check(key, "cells", ours=ours, theirs=cells)

        self._function(DATABASE, "", ours)
        events = {"events": landed / _partition(BIG_DAY)}
        from_source = {"url": self._url(), "day": BIG_DAY}
        for peer, source in (("polars", events), ("chdb", events), ("pandas", from_source)):
            cells = self._file(f"{peer}.parquet")
            if self._measure(peer, f"peers:{peer}", peer=True, **source, cells=cells):
                self.check(peer, "cells", ours=ours, theirs=cells)

    def _small(self) -> None:
        self._copy("copy_small", SMALL_DAY, FULL)
        home = self._fresh("small", SMALL_DAY)
        self._land("land_small", home, SMALL_DAY)
        for backend in DLT_BACKENDS:
            if backend == SLOW_BACKEND and self._round:
                continue
            key, directory = f"dlt_{backend}", self._file(f"dlt-{backend}")
            directory.mkdir()
            quiet = {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(directory)}
            source = {"url": self._url(), "day": SMALL_DAY, "backend": backend}
            loaded = self._measure(
                key, "peers:dlt", quiet, peer=True, **source, directory=directory
            )
            if loaded:
                ours = _landing(home) / _partition(SMALL_DAY)
                self.check(key, "events", ours=ours, theirs=directory / loaded.figures["database"])

    def _rebuild(self) -> None:
        start = self.shape.history_start
        home, ours = self._fresh("rebuild", start), self._file("history.parquet")
        span = _days(start, HISTORY_END)
        landed = self._landed("landed_history", **span)
        shutil.copytree(landed, _landing(home), copy_function=os.link)
        self._measure("rebuild", "project:build", home, **span, cells=ours, landed=True)
        self.check("rebuild", "history", url=self._url(), ours=ours, **span)

    def _night(self) -> None:
        home = self._parsed("night", DATABASE)
        self._roll_up("big_night", home, BIG_DAY)
        self._measure("audit", "project:audit", home)

    def _empty(self) -> None:
        home = self._warm("empty", 0)
        self._roll_up("empty_night", home, empty_day(2 + 2 * self._round))

    def _scheduled(self) -> None:
        home, day = self._warm("scheduled", 1), empty_day(3 + 2 * self._round)
        self._measure("scheduled_night", "project:scheduled", home, day=day)
        self._check_published("scheduled_night", home, day)

    def _publish(self) -> None:
        if CELLS not in self._homes:
            self.server.create_database(CELLS)
            self._homes[CELLS] = self._fresh(CELLS, cells_day(0), source=CELLS)
            self._add_cells(cells_day(0))
            self._command(None, self._homes[CELLS], cells_day(0))
        home, day = self._homes[CELLS], cells_day(1 + self._round)
        seen = self._published_aggregations()
        for change in CHANGES:
            if change == "new":
                self._add_cells(day)
            elif change == "changed":
                measure.work("data:raise_quantities", {}, url=self._url(CELLS), day=day)
            if change != "unchanged":
                self.server.execute("vacuum (analyze)", database=CELLS)
                measure.work("project:build_cells", home, day=day)
            key, written = f"publish_{change}", self._rows_written()
            done = self._measure(key, "project:publish", home, day=day)
            before, seen = seen, self._published_aggregations()
            # Each of the changed rows counts for one more.
            rows = seen[0] - before[0] if change == "new" else seen[1] - before[1]
            now = self._rows_written()
            done.figures["rows"] = int(rows)
            done.figures["rows_written"] = sum(now[t] - written.get(t, 0) for t in now)
            self.check(
                key,
                "postgres_table",
                url=home["USAGE_PUBLISH_DATABASE_URL"],
                schema=home["USAGE_PUBLISH_SCHEMA"],
                snapshot=_snapshot(home),
            )

    def _growth(self) -> None:
        for days in (SHORT_HISTORY, self.shape.history_days):
            home = self.grown(f"after_{days}", DATABASE, days)
            self._roll_up(f"big_night_after_{days}", home, BIG_DAY)

    def _tenth(self) -> None:
        self._fill(TENTH, self.shape.tenth())
        home, ours = self._parsed("tenth", TENTH), self._file("tenth.parquet")
        self._roll_up("tenth_night", home, BIG_DAY, TENTH)
        measure.work("project:published_cells", home, cells=ours)
        self._function(TENTH, "tenth_", ours)

    def _year(self) -> None:
        self._fill(TENTH, self.shape.tenth())
        for days in (SHORT_HISTORY, self.shape.year):
            nights = self.shape.nights if days == self.shape.year else 0
            home = self.grown(f"tenth_after_{days}", TENTH, days, nights)
            self._roll_up(f"tenth_night_after_{days}", home, BIG_DAY, TENTH)

    def _on_top(self) -> None:
        for database, name, days in (
            (DATABASE, "after", self.shape.history_days),
            (TENTH, "tenth_after", self.shape.year),
        ):
            if database == TENTH:
                self._fill(TENTH, self.shape.tenth())
            home = self.grown(f"{name}_{days}", database, days)
            self._measure(f"on_top_{name}_{days}", "project:night_in_steps", home, day=BIG_DAY)

    def _pages(self) -> None:
        home = self.grown(f"after_{self.shape.history_days}", DATABASE, self.shape.history_days)
        choose = {"USAGE_WEB_DEVELOPMENT": "true"}
        self._measure("pages", "readers:during_a_night", {**home, **choose}, day=BIG_DAY)

    def _exports(self) -> None:
        home = self.grown(f"after_{self.shape.history_days}", DATABASE, self.shape.history_days)
        folder = Path(home["USAGE_HOME"]) / "exports" / f"{EXPORT_MONTH:%Y-%m}"
        self._measure("exports", "project:export", home, month=EXPORT_MONTH)
        end = (EXPORT_MONTH + timedelta(days=31)).replace(day=1)
        snapshot = _snapshot(home)
        self.check(
            "exports", "files", folder=folder, snapshot=snapshot, month=EXPORT_MONTH, end=end
        )

    def _demo(self) -> None:
        # The embedded server, as in `make demo`.
        home = {"USAGE_HOME": self._fresh("demo", None)["USAGE_HOME"]}
        with self._watched("demo") as keep:
            keep(measure.command(home, "demo"))

    # --- what parts share ---------------------------------------------------------------------

    def _url(self, database: str = DATABASE) -> str:
        return self.server.url(database)

    def _fill(self, database: str, shape: Shape) -> None:
        """Make the data of a shape, unless a server that is used again has it."""
        code = b"".join((ROOT / "bench" / f"{name}.py").read_bytes() for name in ("data", "shape"))
        mark = hashlib.sha256(f"{shape.arguments()}".encode() + code).hexdigest()
        if self.server.is_filled(database, mark):
            return
        self.server.create_database(database)
        _say(f"filling {database}")
        measure.work("data:generate", {}, url=self._url(database), **shape.arguments())
        self.server.execute("vacuum (analyze)", database=database)
        self.server.mark_filled(database, mark)

    def _function(self, database: str, prefix: str, ours: Path) -> None:
        """The function in the database, on new rows and on the same ones."""
        url = self._url(database)
        measure.work("peers:prepare_aggregates", {}, url=url)
        for key in (f"{prefix}aggregate_insert", f"{prefix}aggregate_update"):
            self._measure(key, "peers:aggregate", peer=True, url=url, day=BIG_DAY)
            cells = self._file("aggregates.csv")
            measure.work("peers:aggregate_cells", {}, url=url, cells=cells)
            self.check(key, "cells", ours=ours, theirs=cells)

    def _add_cells(self, day: date) -> None:
        scale = self.shape.scale
        measure.work("data:generate_cells", {}, url=self._url(CELLS), scale=scale, day=day)

    def _published_aggregations(self) -> tuple[int, Any]:
        """Rows of usage_aggregations and their total, as a reader of Postgres sees them."""
        schema = self._homes[CELLS]["USAGE_PUBLISH_SCHEMA"]
        ((rows, total),) = self.server.query(
            f"select count(*), sum(total_quantity) from {schema}.usage_aggregations",
            database=f"pub_{CELLS}",
        )
        return rows, total

    def _rows_written(self) -> dict[int, int]:
        schema = self._homes[CELLS]["USAGE_PUBLISH_SCHEMA"]
        return self.server.rows_written(f"pub_{CELLS}", schema)

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
        try:
            with self._watched(key) as keep:
                return keep(measure.work(target, environment or {}, **arguments))
        except MeasurementFailed as failure:
            if not peer:
                raise
            missing = isinstance(failure, PackageMissing)
            self.problems[key] = "not installed" if missing else "failed"
            _say(f"{key}: {failure}")
            return None

    @contextmanager
    def _watched(self, key: str) -> Iterator[Callable[[Measurement], Measurement]]:
        """Gives what keeps a measurement, with what the server did meanwhile."""
        _say(key)
        before = self.server.use()

        def keep(done: Measurement) -> Measurement:
            use = self.server.use().since(before)
            done = replace(
                done,
                source_cpu_seconds=use.cpu_seconds,
                source_buffers=use.buffers,
                part=self._part,
                round=self._round,
                commit=self.commit,
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            self.measurements[key].append(done)
            return done

        yield keep

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
        url, psql = self._url(), self.server.psql
        self._measure(key, "peers:copy", peer=True, url=url, psql=psql, day=day, columns=columns)

    def _land(self, key: str, home: Mapping[str, str], day: date) -> None:
        days = _days(day)
        figures = self._measure(key, "project:land", home, **days).figures
        landed = {"rows": figures["rows"], "total": figures["total"]}
        self.check(key, "landed", url=self._url(), **days, **landed)

    def _command(
        self, key: str | None, home: Mapping[str, str], start: date, end: date | None = None
    ) -> None:
        """`usage-pipeline rollup`, as a whole process; without a key it is not kept."""
        first, last = map(str, _days(start, end).values())
        words = ("rollup", "--start", first, "--end", last, "--timings")
        if key is None:
            measure.command(home, *words)
        elif key not in self.problems:
            with self._watched(key) as keep:
                keep(measure.command(home, *words))

    def _roll_up(
        self, key: str, home: Mapping[str, str], day: date, database: str = DATABASE
    ) -> None:
        self._command(key, home, day)
        self._check_published(key, home, day, database=database)

    def _check_published(
        self,
        key: str,
        home: Mapping[str, str],
        start: date,
        end: date | None = None,
        database: str = DATABASE,
    ) -> None:
        url, snapshot = self._url(database), _snapshot(home)
        self.check(key, "published", url=url, snapshot=snapshot, **_days(start, end))

    def _parsed(self, name: str, source: str) -> dict[str, str]:
        """A home without data that has parsed its dbt project, as any earlier night has."""
        if not (self._home(name) / "dbt").exists():
            measure.work("project:parse", self._fresh(name, NO_EVENTS, source=source))
        return self._fresh(name, NO_EVENTS, source=source)

    def _warm(self, name: str, number: int) -> dict[str, str]:
        """A home that has parsed its dbt project, by a first near-empty night."""
        if name not in self._homes:
            self._homes[name] = self._fresh(name, EMPTY_START)
            self._command(None, self._homes[name], empty_day(number))
        return self._homes[name]

    def grown(self, name: str, database: str, days: int, nights: int = 0) -> dict[str, str]:
        """A home with so many days of history, the last of them one by one where nights are asked
        for; each time as it was before the night that came on top of it."""
        if name not in self._homes:
            self._grow(name, database, days, nights)
        shutil.rmtree(self._home(name), ignore_errors=True)
        shutil.copytree(self._home(f"{name}.kept"), self._home(name), copy_function=_duplicate)
        self.server.copy_database(f"pub_{name}_kept", f"pub_{name}")
        return self._homes[name]

    def _grow(self, name: str, database: str, days: int, nights: int) -> None:
        """Roll up a history, and put home and published database aside."""
        start = HISTORY_END - timedelta(days=days)
        home = self._homes[name] = self._fresh(name, start, source=database)
        first = HISTORY_END - timedelta(days=nights)
        self._command(f"backfill_{name}", home, start, first)
        for number in range(nights):
            self._command("row_night", home, first + timedelta(days=number))
            self.measurements["row_night"][-1].figures["bytes"] = self._bytes(name)
        self._check_published(f"backfill_{name}", home, start, HISTORY_END, database)
        # As autovacuum would by the next night.
        self.server.execute("vacuum (analyze)", database=f"pub_{name}")
        self.server.rename_database(f"pub_{name}", f"pub_{name}_kept")
        self._home(name).rename(self._home(f"{name}.kept"))

    def _bytes(self, name: str) -> dict[str, int]:
        """Of what readers and the next night find, by place."""
        home = self._home(name)
        parquet = (home / "serving" / "parquet").rglob("*.parquet")
        sizes = (
            (home / "serving" / "usage.duckdb").stat().st_size,
            sum(file.stat().st_size for file in parquet),
            self.server.size(f"pub_{name}"),
            (home / "warehouse.duckdb").stat().st_size,
        )
        return dict(zip(PLACES, sizes, strict=True))

    def _landed(self, name: str, start: date, end: date) -> Path:
        """Landed days that several rollups share."""
        if name not in self._homes:
            home = self._homes[name] = self._fresh(name, start)
            measure.work("project:land", home, start=start, end=end)
        return _landing(self._homes[name])

    def _home(self, name: str) -> Path:
        return self._directory / name

    def _fresh(
        self, name: str, start: date | None, *, source: str = DATABASE, **settings: str
    ) -> dict[str, str]:
        """The environment of a home without data, in the databases too.

        dbt's parsed project stays, as it would from one night to the next.
        """
        home = self._home(name)
        for path in home.glob("*"):
            if path.is_dir() and path.name != "dbt":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
        for purpose in ("pub", "dagster"):
            self.server.create_database(f"{purpose}_{name}")
        return {
            "USAGE_HOME": str(home),
            "USAGE_APP_DATABASE_URL": self._url(source),
            "USAGE_PUBLISH_DATABASE_URL": self._url(f"pub_{name}"),
            "USAGE_PUBLISH_SCHEMA": "usage",
            # The benchmark's days are as recent as last night's: the checks ask the source too.
            "USAGE_LOOKBACK_DAYS": "3650",
            "DAGSTER_PG_URL": self._url(f"dagster_{name}"),
            **({"USAGE_START_DATE": str(start)} if start else {}),
            **settings,
        }

    def _file(self, name: str) -> Path:
        self._scratch.mkdir(exist_ok=True)
        return self._scratch / name


def _commit() -> str:
    words = ["git", "-C", str(PRODUCT), "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _product() -> str:
    """Changes with the pipeline's code and models: commits that leave both alone are alike."""
    digest = hashlib.sha256()
    for folder in ("usage_pipeline", "dbt_project"):
        for path in sorted((PRODUCT / folder).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".sql", ".yml", ".yaml"):
                digest.update(str(path.relative_to(PRODUCT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _duplicate(source: str, target: str) -> str:
    """Parquet files are replaced and never changed in place: a link is a copy."""
    copy = os.link if source.endswith(".parquet") else shutil.copy2
    copy(source, target)
    return target


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
