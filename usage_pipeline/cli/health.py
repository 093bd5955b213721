"""Whether all is well: `reconcile`, `status`, `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from usage_pipeline.audit.freshness import published_tables
from usage_pipeline.audit.places import Unlike
from usage_pipeline.audit.reconciliation import Line
from usage_pipeline.cli.options import DayAfterLast, FirstDay, days_of, valid_settings
from usage_pipeline.cli.show import out, print_notices, progress, show_steps
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.landing.lost_events import refused_days
from usage_pipeline.operations.doctor import examine
from usage_pipeline.operations.status import spelled, summary
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings, load_settings


def reconcile(
    start: FirstDay = None,
    end: DayAfterLast = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the places whole from the warehouse first.")
    ] = False,
) -> None:
    """Compare source, landing and what is published.

    The days are `[start, end)`, yesterday when neither is given. First their events, exact sums and
    contents in source, landing and published tables. Then every published table of these days, of
    their months and without a date, in DuckDB, Parquet and Postgres with the warehouse, cell by
    cell. Each difference is listed; exit code 1 when there is one. `--repair` first makes the three
    places whole from the warehouse and says what was not.

    Example: `usage-pipeline reconcile --start 2026-05-01 --end 2026-06-01`
    """
    settings = valid_settings()
    days = days_of(settings, start, end)
    rollup = Rollup(settings)
    if repair:
        with progress("repairing") as (bar, task):
            show_steps(rollup, bar, task)
            repaired = rollup.repair_places(days)
        _print_unlike(repaired)
        out.print(f"Repaired {len(repaired):,} table(s)." if repaired else "Nothing to repair.")
    with progress("reading the source", len(days.days())) as (bar, task):
        lines = rollup.reconcile(days, lambda day: bar.advance(task))
    with progress("comparing what is published") as (bar, task):
        show_steps(rollup, bar, task)
        unlike = rollup.compare_places(days)
    _print_lines(settings, days, lines)
    _print_unlike(unlike)
    if rollup.pending.ranges():
        out.print(
            "Not published yet, since a rollup runs or was cut short: "
            + ", ".join(map(str, rollup.pending.ranges()[:5]))
            + "; the places were compared with the snapshot.",
            soft_wrap=True,
        )
    if unlike:
        out.print(
            f"{len(unlike):,} published tables differ; make them whole with: usage-pipeline"
            f" reconcile --start {days.start} --end {days.end} --repair",
            soft_wrap=True,
        )
    else:
        out.print("All published tables are alike in DuckDB, Parquet and Postgres.")
    if unlike or any(line.matches is False for line in lines):
        raise typer.Exit(1)


def _print_unlike(unlike: list[Unlike]) -> None:
    for table in unlike:
        for line in table.lines:
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        more = table.rows - len(table.lines)
        if more > 0:
            out.print(f"{table.place} {table.table}: and {more:,} more rows", highlight=False)


def _print_lines(settings: Settings, days: DayRange, lines: list[Line]) -> None:
    different = [line for line in lines if line.matches is False]
    if not different:
        events = sum(line.published_events for line in lines)
        out.print(
            f"{days}: {len(lines):,} daily totals of {events:,} events are equal in source, "
            "landing and published tables."
        )
        return
    for line in different:
        sides = (
            ("source", line.source_events, line.source_sum),
            ("landed", line.landed_events, line.landed_sum),
            ("published", line.published_events, line.published_sum),
        )
        out.print(
            f"{line.usage_date} {line.metric_type or 'events that no meter counts'}: "
            + "; ".join(
                f"{side} {events:,} events, {'no total' if total is None else spelled(total)}"
                for side, events, total in sides
            )
            + f"; users {', '.join(line.users)}",
            soft_wrap=True,
            highlight=False,
        )
    out.print(f"{len(different):,} of {len(lines):,} daily totals differ.")
    days_that_differ = {line.usage_date for line in different}
    refused = days_that_differ & refused_days(settings).keys()
    for advice, option, those in (
        ("Roll the days up again:", "", days_that_differ - refused),
        (
            "Kept, since the source has lost events; once that is meant, take what it has:",
            " --allow-fewer-events",
            refused,
        ),
    ):
        if those:
            out.print(advice)
        for r in ranges_of_days(those):
            out.print(
                f"  usage-pipeline rollup --start {r.start} --end {r.end}{option}",
                soft_wrap=True,
                highlight=False,
            )


def status(
    assets: Annotated[
        bool, typer.Option("--assets", help="Dagster's view: each asset's partitions.")
    ] = False,
) -> None:
    """Show what is landed, missing, failing and published.

    With the commands that repair it, and the newest day and age of each published table. Exit code
    1 when anything is missing, damaged, late or not published.

    Example: `usage-pipeline status`
    """
    settings = valid_settings()
    overview = summary(settings)
    for line in overview.lines:
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    print_notices(settings)
    if assets:
        from usage_pipeline.definitions import build_defs
        from usage_pipeline.orchestration.state import asset_states

        table = Table(box=None)
        for heading in ("asset", "last partition", "last run", "done", "failed"):
            table.add_column(heading, no_wrap=True)
        for state in asset_states(build_defs(settings), settings):
            table.add_row(*state)
    else:
        rows, age = (Column(heading, justify="right") for heading in ("rows", "age"))
        table = Table("table", "newest", rows, age, box=None)
        for published in published_tables(settings):
            table.add_row(
                published.name,
                str(published.newest or ""),
                f"{published.rows:,}",
                str(published.age).rpartition(":")[0] if published.age else "",
            )
    if table.rows:
        out.print(table)
    if not overview.healthy:
        raise typer.Exit(1)


def doctor() -> None:
    """Check databases, privileges, disk, clock and locks.

    A failure comes with its remedy, and with exit code 1.

    Example: `usage-pipeline doctor`
    """
    settings = load_settings()
    failed = False
    for finding in examine(settings):
        failed = failed or not finding.ok
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        out.print(f"{mark} {finding.what}: {finding.detail}", soft_wrap=True)
        if not finding.ok:
            out.print(f"     → {finding.remedy}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)
