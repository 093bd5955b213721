"""What is measured of the pipeline. Each function runs in a worker whose environment has the
settings; it prepares what is not measured first, and times the rest."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from bench.shape import NO_EVENTS
from bench.worker import Stopwatch
from usage_pipeline.days import DayRange
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.settings import load_settings

_CELLS = (
    "select usage_date, user_id, org_id, metric_type, total_quantity, event_count from usage_daily"
)


def land(start: str, end: str) -> dict[str, Any]:
    """Extract the days."""
    from usage_pipeline.landing.replacement import land_events

    settings = load_settings()
    clock = Stopwatch()
    manifests = land_events(settings, _days(start, end).days())
    return {
        **clock.spent(),
        "rows": sum(manifest.rows for manifest in manifests),
        "total": str(sum(Decimal(manifest.sum_quantity) for manifest in manifests)),
    }


def build(start: str, end: str, cells: str, *, landed: bool) -> dict[str, Any]:
    """Daily and monthly models of the days; `landed` says that landing is not part of it.

    Snapshots of the small tables, dbt's parse and the staging views come before the clock.
    The engine's seconds are dbt's, of the models between landing and a user's days and months: what
    the in-database function makes too. The other models of the same steps (organisations,
    platform, ...) have no counterpart there.
    """
    from usage_pipeline.rollup import Rollup

    days = _days(start, end)
    rollup = Rollup(load_settings())
    rollup.land_accounts()
    # The staging views need a landed day.
    rollup.land_events([] if landed else [NO_EVENTS])
    rollup.build_staging()
    manifest = rollup.transformer.manifest_path()
    clock = Stopwatch()
    if not landed:
        rollup.land_events(days.days())
    daily = rollup.build_days([days])
    after_days = clock.spent()
    monthly = rollup.build_months([days])
    spent = clock.spent()
    with open_duckdb(rollup.settings, rollup.settings.warehouse_path, read_only=True) as db:
        db.execute(f"copy ({_CELLS}) to '{cells}' (format parquet)")
        (months,) = db.execute("select sum(event_count)::bigint from usage_monthly").fetchall()[0]
    of_days, of_months = (_made_of(manifest, m) for m in ("usage_daily", "usage_monthly"))
    return {
        **spent,
        "daily_wall": after_days["seconds"],
        "daily_cpu": after_days["cpu_seconds"],
        "monthly_wall": round(spent["seconds"] - after_days["seconds"], 4),
        "monthly_cpu": round(spent["cpu_seconds"] - after_days["cpu_seconds"], 3),
        "daily_engine": _engine(daily, of_days),
        "monthly_engine": _engine(monthly, of_months - of_days),
        "models": {result.name: round(result.seconds, 3) for result in [*daily, *monthly]},
        "monthly_events": months,
    }


def _made_of(manifest: Path, model: str) -> set[str]:
    """The names of a model and of all that it is made of, in dbt's manifest."""
    parents = json.loads(manifest.read_text("utf-8"))["parent_map"]
    found = [f"model.usage_pipeline.{model}"]
    for node in found:  # grows while parents are found
        found += [parent for parent in parents[node] if parent not in found]
    return {node.split(".")[2] for node in found}


def _engine(results: list[Any], names: set[str]) -> float:
    seconds = [result.seconds for result in results if result.name in names]
    if not seconds:
        raise LookupError(f"nothing was built of {', '.join(sorted(names))}")
    return round(sum(seconds), 4)


def parse() -> None:
    """What dbt makes of the project, and the pipeline keeps from one night to the next."""
    from usage_pipeline.publishing.snapshot import ensure_snapshot
    from usage_pipeline.warehouse.transform import Transformer

    settings = load_settings()
    ensure_snapshot(settings)  # which compiling opens
    transformer = Transformer(settings)
    transformer.manifest_path()
    transformer.usage_daily_models()


def published_cells(cells: str) -> None:
    """All rows of usage_daily that readers see, as Parquet for `compare`."""
    settings = load_settings()
    with open_duckdb(settings, settings.snapshot_path, read_only=True) as db:
        db.execute(f"copy ({_CELLS}) to '{cells}' (format parquet)")


def audit() -> dict[str, Any]:
    """The checks of the newest published day; they read the source a second time."""
    from usage_pipeline.rollup import Rollup

    rollup = Rollup(load_settings())
    clock = Stopwatch()
    rollup.audit()
    return clock.spent()


# What stands on totals that are there without it: by name, its tables and tests begin so.
_ON_TOP = {
    "limits": ("usage_limit", "plan_limits", "subscribers_"),
    "forecasts": ("usage_forecast",),
    "anomalies": ("usage_anomalies",),
}


def night_in_steps(day: str) -> dict[str, Any]:
    """A night, step by step, to tell what limits, forecasts, anomalies and alerts cost of it.

    Of publishing they have as much of the seconds as of the rows.
    """
    from usage_pipeline.rollup import Rollup

    days = _days(day)
    rollup = Rollup(load_settings())
    rollup.transformer.manifest_path()
    clock = Stopwatch()
    rollup.land_accounts()
    rollup.land_events(days.days())
    rollup.build_staging()
    rollup.build_days([days])
    rollup.build_months([days])
    nodes = [*rollup.build_current(), *rollup.audit()]
    publishing = Stopwatch()
    report = rollup.publish("bench")
    published, after = publishing(), Stopwatch()
    rollup.raise_alerts()
    rollup.announce_days()
    alerts, spent = after(), clock.spent()
    written = {
        name: change.inserted + change.updated + change.deleted
        for name, change in report.tables.items()
    }
    rate = published / max(1, sum(written.values()))
    rows = {
        part: sum(count for name, count in written.items() if name.startswith(names))
        for part, names in _ON_TOP.items()
    }
    seconds = {
        part: sum(node.seconds for node in nodes if any(name in node.name for name in names))
        + rate * rows[part]
        for part, names in _ON_TOP.items()
    }
    return {**spent, "on_top": {**seconds, "alerts": alerts}, "rows_on_top": rows}


def build_cells(day: str) -> None:
    """Land a day and build its daily models, whose rows then wait to be published."""
    from usage_pipeline.rollup import Rollup

    rollup = Rollup(load_settings())
    rollup.land_events([date.fromisoformat(day)])
    rollup.build_days([_days(day)])


def publish(day: str) -> dict[str, Any]:
    """Publish what is built of a day, its months left alone.

    `postgres` has the seconds of that place. The ledger and the tables of organisations and the
    platform are written in the same time.
    """
    from usage_pipeline.publishing.publisher import publish as publish_ranges
    from usage_pipeline.warehouse.transform import Transformer

    settings = load_settings()
    built_with = Transformer(settings).version
    clock = Stopwatch()
    report = publish_ranges(settings, [_days(day)], "bench", built_with)
    return {**clock.spent(), "postgres": report.seconds["postgres"]}


def export(month: str) -> dict[str, Any]:
    """All users' files of a month, into an empty folder."""
    from usage_pipeline.serving.exports import export_month

    settings = load_settings()
    clock = Stopwatch()
    report = export_month(settings, date.fromisoformat(month))
    spent = clock.spent()
    files = report.manifest.parent.glob("??/*.csv")
    return {
        **spent,
        "files": report.written,
        "rows": report.rows,
        "bytes": sum(file.stat().st_size for file in files),
    }


_RUNS = """query { runsOrError(limit: 10) { ... on Runs { results {
    runId jobName status creationTime startTime endTime tags { key value } } } } }"""


def scheduled(day: str) -> dict[str, Any]:
    """A night as `usage-pipeline up` runs it: queued, launched by the daemon, a process a step.

    The run of the days is asked for as the UI does; the sensor launches the one of the months. The
    seconds are those of the two runs, from the request until they end, and not those that the
    sensor waited between them. CPU and memory are those of all processes below `up`, the daemon and
    the webserver included, from the request until the end; its own start is left out.
    """
    import psutil
    from dagster_graphql import DagsterGraphQLClient

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "usage_pipeline", "up", "--port", str(port)]
    served = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/graphql"
        _runs(url)
        tree = _Tree(psutil.Process(served.pid))
        before, started = tree.look(), time.perf_counter()
        client = DagsterGraphQLClient("127.0.0.1", port_number=port)
        days = client.submit_job_execution("nightly_rollup", tags={"dagster/partition": day})
        ended: list[dict[str, Any]] = []
        while len(ended) < 2:  # the sensor asks for the run of the months, by the name of the first
            time.sleep(0.2)
            tree.look()
            runs = [r for r in _runs(url) if days in (r["runId"], r["tags"].get("dagster/run_key"))]
            if any(run["status"] in ("FAILURE", "CANCELED") for run in runs):
                raise RuntimeError(f"a scheduled run failed: {runs}")
            ended = [run for run in runs if run["status"] == "SUCCESS"]
        cpu, passed = tree.look() - before, time.perf_counter() - started
    finally:
        served.terminate()
        served.wait()
    return {
        "seconds": round(sum(run["endTime"] - run["creationTime"] for run in ended), 4),
        "cpu_seconds": round(cpu, 3),
        "peak_bytes": tree.peak_bytes,
        "passed": round(passed, 4),
        "runs": {
            run["jobName"]: round(run["endTime"] - run["startTime"], 3)
            for run in sorted(ended, key=lambda run: run["creationTime"])
        },
    }


def _runs(url: str) -> list[dict[str, Any]]:
    """The newest runs, as soon as the webserver answers."""
    import requests

    for _ in range(1200):
        with suppress(requests.RequestException, KeyError):
            answer = requests.post(url, json={"query": _RUNS}, timeout=30).json()
            runs: list[dict[str, Any]] = answer["data"]["runsOrError"]["results"]
            return [{**run, "tags": {t["key"]: t["value"] for t in run["tags"]}} for run in runs]
        time.sleep(0.1)
    raise TimeoutError(f"no answer from {url}")


class _Tree:
    """The processes below one: what they have used, also those that have ended."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._cpu: dict[tuple[int, float], float] = {}
        self.peak_bytes = 0

    def look(self) -> float:
        """CPU seconds so far. A process that has ended counts with what it had when last seen."""
        import psutil

        for process in [self._root, *self._root.children(recursive=True)]:
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu[process.pid, process.create_time()] = times.user + times.system
                self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
        return sum(self._cpu.values())


def _days(start: str, end: str | None = None) -> DayRange:
    first = date.fromisoformat(start)
    return DayRange(first, date.fromisoformat(end) if end else first + timedelta(days=1))
