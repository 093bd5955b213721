"""What is measured of the pipeline. Each function runs in a worker whose environment has the
settings; it prepares what is not measured first, and times the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from bench.worker import stopwatch
from usage_pipeline.days import DayRange
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.settings import load_settings

# The models from landing to a user's days and months: what the in-database function makes too.
# The other models of the same steps (organisations, platform, ...) have no counterpart there.
USAGE_DAILY_MODELS = (
    "usage_event_partials_daily",
    "usage_values_daily",
    "usage_partials_daily",
    "usage_daily",
)
USAGE_MONTHLY_MODELS = ("usage_values_monthly", "usage_partials_monthly", "usage_monthly")


def land(start: str, end: str) -> dict[str, Any]:
    """Extract the days."""
    from usage_pipeline.landing.extraction import land_events

    settings = load_settings()
    clock = stopwatch()
    manifests = land_events(settings, _days(start, end).days())
    return {
        "seconds": clock(),
        "rows": sum(manifest.rows for manifest in manifests),
        "total": str(sum(Decimal(manifest.sum_quantity) for manifest in manifests)),
    }


def build(start: str, end: str, cells: str, *, landed: bool) -> dict[str, Any]:
    """Daily and monthly models of the days; `landed` says that landing is not part of it.

    Snapshots of the small tables, dbt's parse and the staging views come before the clock.
    The seconds are wall time; `engine` has dbt's seconds per model.
    """
    days = _days(start, end)
    rollup, engine = _rollup()
    rollup.land_accounts()
    # The staging views need a landed day; the day before has no events.
    rollup.land_events([] if landed else [days.start - timedelta(days=1)])
    rollup.build_staging()
    engine.clear()
    clock = stopwatch()
    if not landed:
        rollup.land_events(days.days())
    rollup.build_days([days])
    daily = clock()
    rollup.build_months([days])
    seconds = clock()
    with open_duckdb(rollup.settings, rollup.settings.warehouse_path, read_only=True) as db:
        db.execute(
            "copy (select usage_date, user_id, org_id, metric_type, total_quantity, event_count "
            f"from usage_daily) to '{cells}' (format parquet)"
        )
        (months,) = db.execute("select sum(event_count)::bigint from usage_monthly").fetchall()[0]
    return {
        "seconds": seconds,
        "daily_wall": daily,
        "monthly_wall": round(seconds - daily, 4),
        "daily_engine": _sum(engine, USAGE_DAILY_MODELS),
        "monthly_engine": _sum(engine, USAGE_MONTHLY_MODELS),
        "monthly_events": months,
    }


def audit() -> dict[str, Any]:
    """The checks of the newest published day; they read the source a second time."""
    rollup, _ = _rollup()
    clock = stopwatch()
    rollup.audit()
    return {"seconds": clock()}


def prepare_publish(day: str) -> None:
    """Publish one near-empty day, so that the tables are there with their keys and indexes."""
    rollup, _ = _rollup()
    days = _days(day)
    rollup.land_accounts()
    rollup.land_events(days.days())
    rollup.build_staging()
    rollup.build_days([days])
    rollup.build_months([days])
    rollup.build_current()
    rollup.publish("bench")


def publish(day: str, rows: int, change: str) -> dict[str, Any]:
    """Change `rows` published rows, half of usage_daily and half of usage_aggregations, and
    publish.

    Args:
        day: that has the rows.
        rows: how many.
        change: `new` adds them, `changed` moves their numbers, `unchanged` does nothing.
    """
    from usage_pipeline.publishing.publisher import publish as publish_ranges
    from usage_pipeline.warehouse.transform import Transformer

    settings = load_settings()
    statements = {
        "new": f"""
            insert into usage_daily
                (usage_date, user_id, org_id, metric_type, total_quantity, event_count,
                 first_event_at, last_event_at)
            select date '{day}', cast(md5('user' || n // 7) as uuid),
                   cast(md5('org' || (n // 7) % 3000) as uuid), 'metric_' || n % 7,
                   cast(n as decimal(38, 9)) / 8, 1 + n % 20,
                   timestamptz '{day} 01:00:00+00', timestamptz '{day} 23:00:00+00'
            from range({rows // 2}) as numbers(n)
        """,
        "changed": "update usage_daily set total_quantity = total_quantity + 1, "
        f"event_count = event_count + 1 where usage_date = '{day}'",
    }
    if change in statements:
        with open_duckdb(settings, settings.warehouse_path) as db:
            db.execute(statements[change])
    built_with = Transformer(settings).version
    clock = stopwatch()
    report = publish_ranges(settings, [_days(day)], f"bench {change}", built_with)
    seconds = clock()
    # The ledger of changed numbers costs time as well, but its rows are no aggregates.
    changes = [report.tables[name] for name in ("usage_daily", "usage_aggregations")]
    return {
        "seconds": seconds,
        "postgres": report.seconds["postgres"],
        "rows": sum(table.inserted + table.updated for table in changes),
    }


def export(month: str) -> dict[str, Any]:
    """All users' files of a month, into an empty folder."""
    from usage_pipeline.serving.exports import export_month

    settings = load_settings()
    clock = stopwatch()
    report = export_month(settings, date.fromisoformat(month))
    seconds = clock()
    files = report.manifest.parent.glob("??/*.csv")
    return {
        "seconds": seconds,
        "files": report.written,
        "rows": report.rows,
        "bytes": sum(file.stat().st_size for file in files),
    }


def night(start: str, end: str) -> dict[str, Any]:
    """`usage-pipeline rollup` as a command runs it; its cost is the whole process.

    The figures have its seconds by stage, as `--timings` prints them.
    """
    clock = stopwatch()
    from usage_pipeline.cli.main import app

    # Not standalone, a command gives back what its function does, and raises its failures.
    stages = app(["rollup", "--start", start, "--end", end, "--timings"], standalone_mode=False)
    return {"seconds": clock(), "stages": {name: round(s, 3) for name, s in stages.items()}}


def demo() -> None:
    """What `make demo` runs once everything is installed."""
    from usage_pipeline.cli.main import app

    app(["demo"], standalone_mode=False)


def _record_models(transformer: type) -> dict[str, float]:
    """Seconds by model of every `Transformer.run` from now on, added up over all passes."""
    engine: dict[str, float] = defaultdict(float)
    run: Callable[..., Any] = transformer.run  # type: ignore[attr-defined]

    def recording(*arguments: Any) -> Any:
        results = run(*arguments)
        for result in results:
            engine[result.name] += result.seconds
        return results

    transformer.run = recording  # type: ignore[attr-defined]
    return engine


def _rollup() -> tuple[Any, dict[str, float]]:
    """A rollup, and the seconds by model of what it builds."""
    from usage_pipeline.rollup import Rollup
    from usage_pipeline.warehouse.transform import Transformer

    return Rollup(load_settings()), _record_models(Transformer)


def _days(start: str, end: str | None = None) -> DayRange:
    first = date.fromisoformat(start)
    return DayRange(first, date.fromisoformat(end) if end else first + timedelta(days=1))


def _sum(engine: dict[str, float], models: tuple[str, ...]) -> float:
    missing = [model for model in models if model not in engine]
    if missing:
        raise LookupError(f"not built: {', '.join(missing)}")
    return round(sum(engine[model] for model in models), 4)
