"""What rolls up: `rollup`, `demo`, and `up`, which does so by itself."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Column, Table

from usage_pipeline.app_db.schema import count_users, create_schema, tables_with_rows
from usage_pipeline.cli.app_db import (
    DEMO_DAYS,
    DEMO_EVENTS,
    DEMO_SEED,
    DEMO_USERS,
    fill_with_sample,
)
from usage_pipeline.cli.options import DayAfterLast, FirstDay, days_of, valid_settings
from usage_pipeline.cli.show import out, print_notices, progress, show_steps
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.infra.database_urls import app_database_url, dagster_database_url
from usage_pipeline.infra.postgres import connect
from usage_pipeline.infra.processes import collect_rarely
from usage_pipeline.landing.lost_events import refusal
from usage_pipeline.operations.status import monthly_totals, spelled
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings, begin_with


def rollup(
    start: FirstDay = None,
    end: DayAfterLast = None,
    timings: Annotated[bool, typer.Option("--timings", help="Show where the time went.")] = False,
    allow_fewer_events: Annotated[
        bool,
        typer.Option(
            "--allow-fewer-events", help="Take what the source has, also where it lost events."
        ),
    ] = False,
) -> dict[str, float]:
    """Roll up days and their months, and publish them.

    The days are `[start, end)`, yesterday when neither is given: ingest, transform, check, publish.
    Days that an earlier run left unpublished are rolled up too. Exit code 1 also when a day kept
    what it has because the source has fewer events; `--allow-fewer-events` takes those.

    Example: `usage-pipeline rollup --start 2026-05-01 --end 2026-06-01`
    """
    settings = valid_settings()
    days = days_of(settings, start, end)
    started = time.perf_counter()
    run_ids, steps = roll_up(settings, days, allow_fewer_events)
    seconds = time.perf_counter() - started
    out.print(
        f"Rolled up {len(days.days()):,} day(s) {days} in {seconds:.1f} s "
        f"(runs {', '.join(run_id[:8] for run_id in run_ids)})."
    )
    _print_totals(settings, days)
    print_notices(settings)
    stages = steps.timings.seconds
    stages = stages | {"imports and Dagster": seconds - sum(stages.values())}
    if timings:
        _print_timings(stages, seconds)
    for day, (had, has) in steps.fewer.items():
        out.print(f"{day} has {has:,} events now, and had {had:,}.")
    if steps.refused:
        raise refusal(steps.refused)
    return stages  # for who calls the command from Python; see click's standalone_mode


def _print_timings(stages: dict[str, float], seconds: float) -> None:
    table = Table("stage", Column("seconds", justify="right"), Column("share", justify="right"))
    for stage, spent in sorted(stages.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.1f}", f"{spent / seconds:.0%}")
    out.print(table)


def roll_up(
    settings: Settings, days: DayRange, allow_fewer_events: bool = False
) -> tuple[list[str], Rollup]:
    """Run ids, and the steps that ran."""
    with (
        interrupts.stopping(lambda: _left_pending(settings, days)),
        progress("starting") as (bar, task),
    ):
        _require_databases(settings)
        collect_rarely()
        from usage_pipeline.definitions import build_defs
        from usage_pipeline.orchestration.launch import run_rollup

        defs = build_defs(settings)
        steps: Rollup = defs.resources["rollup"]  # type: ignore[index]
        steps.allow_fewer_events = allow_fewer_events
        show_steps(steps, bar, task)

        def waiting(holder: str) -> None:
            steps.progress(f"waiting for {holder}", 0, 1)

        return run_rollup(defs, settings, days, waiting), steps


def _require_databases(settings: Settings) -> None:
    """Before Dagster's and dbt's seconds of imports: an unreachable database fails at once."""
    with connect(app_database_url(settings)):
        pass
    with connect(dagster_database_url(settings), "DAGSTER_PG_URL"):
        pass


def _left_pending(settings: Settings, days: DayRange) -> str:
    """What a stopped rollup says. Days that it did not come to are noted, so that it is true."""
    settings.home.mkdir(parents=True, exist_ok=True)
    pending = Rollup(settings).pending
    if missing := set(days.days()) - {day for left in pending.ranges() for day in left.days()}:
        pending.add(missing)
    ranges = ", ".join(map(str, pending.ranges()))
    return f"Stopped. Pending: {ranges}; the next `usage-pipeline rollup` completes it."


def _print_totals(settings: Settings, days: DayRange) -> None:
    table = Table(title="Published totals by month")
    for heading in ("month", "metric", "total", "events", "users"):
        table.add_column(
            heading,
            justify="left" if heading in ("month", "metric") else "right",
            overflow="fold",
        )
    rows = monthly_totals(settings, days.whole_months())
    for month, metric, total, events, users in rows[-42:]:
        quantity = "–" if total is None else spelled(total)
        table.add_row(f"{month:%Y-%m}", metric, quantity, f"{events:,}", f"{users:,}")
    out.print(table)
    if len(rows) > 42:
        out.print(f"({len(rows) - 42} earlier rows are in platform_usage_monthly.)")
    for place in (
        f"Snapshot: {settings.snapshot_path}",
        f"Parquet:  {settings.serving_dir / 'parquet'}",
        f"Postgres: schema {settings.publish_schema}",
    ):
        out.print(place, soft_wrap=True)


def demo(
    yes: Annotated[
        bool, typer.Option("--yes", help="Also in the empty database of USAGE_APP_DATABASE_URL.")
    ] = False,
) -> None:
    """Load a sample history, roll it up, print a summary.

    In the embedded Postgres; run again, it rolls up what is there. A database of
    `USAGE_APP_DATABASE_URL` has to be empty, and needs `--yes`.

    Example: `usage-pipeline demo`
    """
    settings = valid_settings()
    url = app_database_url(settings)
    if settings.app_database_url:
        _require_empty(url, yes)
    create_schema(url)
    if count_users(url):
        out.print("The source already holds data; rolling that up.")
    else:
        settings = begin_with(settings, settings.today() - timedelta(days=DEMO_DAYS))
        fill_with_sample(settings, DEMO_EVENTS, DEMO_DAYS, DEMO_USERS, DEMO_SEED)
    first = max(settings.today() - timedelta(days=DEMO_DAYS), settings.start_date)
    days = DayRange(first, settings.today())
    started = time.perf_counter()
    roll_up(settings, days)
    out.print(f"Rolled up {len(days.days())} days in {time.perf_counter() - started:.1f} s.")
    _print_totals(settings, days)
    print_notices(settings)
    out.print(f"Next: `make up`, for Dagster at {settings.dagster_url} and the usage pages at")
    out.print(settings.web_url, soft_wrap=True)


def _require_empty(url: str, confirmed: bool) -> None:
    """A sample never comes into a database that somebody uses, nor unasked into one of theirs."""
    if not confirmed:
        raise UsagePipelineError(
            "USAGE_APP_DATABASE_URL names a database, and the demo would write a sample into it",
            "Unset it for the embedded one, use `usage-pipeline rollup` for your own data, or "
            "confirm an empty test database with --yes",
        )
    if tables := tables_with_rows(url):
        raise UsagePipelineError(
            f"The database of USAGE_APP_DATABASE_URL is not empty: it has {', '.join(tables[:5])}",
            "Use `usage-pipeline rollup` for your own data, or give the demo an empty database",
        )


def up(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 3000,
    web_port: Annotated[
        int, typer.Option(help="Port of the usage pages on 127.0.0.1.", min=1, max=65535)
    ] = 8000,
) -> None:
    """Serve Dagster and the usage pages, with schedules running.

    All of it on 127.0.0.1, until Ctrl-C or SIGTERM, which end it with exit code 0.

    Example: `usage-pipeline up`
    """
    settings = valid_settings()
    with interrupts.awaited() as stopped:
        _require_databases(settings)
        from usage_pipeline.orchestration.up import serve

        web = [sys.executable, "-m", "usage_pipeline", "web", "--port", str(web_port)]
        serve(
            settings,
            port,
            [*web, "--supervised"],
            stopped,
            lambda words: out.print(words, soft_wrap=True),
        )
