"""The command line: parse, call, print. Dagster and dbt are imported only where they run."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from usage_pipeline.app_db.schema import count_users, create_schema, tables_with_rows
from usage_pipeline.audit.freshness import published_tables
from usage_pipeline.audit.places import Unlike
from usage_pipeline.audit.reconciliation import Line
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.infra.databases import app_database_url, dagster_database_url
from usage_pipeline.infra.permissions import UMASK
from usage_pipeline.infra.postgres import connect, redact
from usage_pipeline.landing.erasing import days_of_user
from usage_pipeline.landing.landed_days import check_range
from usage_pipeline.landing.repairs import refusal
from usage_pipeline.meters.file import load_meters
from usage_pipeline.operations import erasure
from usage_pipeline.operations.doctor import examine
from usage_pipeline.operations.status import monthly_totals, spelled, summary
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import exports
from usage_pipeline.settings import FIRST_POSSIBLE_DAY, Settings, begin_with, load_settings

app = typer.Typer(
    help="Usage events of a SaaS application, turned into numbers one can bill on.",
    epilog="`--debug`, anywhere, shows the traceback of a failure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app_db_commands = typer.Typer(
    help="The source's tables and sample data, for tests.",
    no_args_is_help=True,
)
app.add_typer(app_db_commands, name="app-db")
out = Console()
err = Console(stderr=True)

WRONG_USAGE = 2  # as for options that do not parse
DEMO_EVENTS, DEMO_DAYS, DEMO_USERS, DEMO_SEED = 200_000, 180, 1_500, 7


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a date; write YYYY-MM-DD") from None
    if day < FIRST_POSSIBLE_DAY:
        raise typer.BadParameter(f"{text} is before {FIRST_POSSIBLE_DAY}, the first possible day")
    return day


def _month(text: str) -> date:
    try:
        month = date.fromisoformat(f"{text}-01")
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a month; write YYYY-MM") from None
    if month < FIRST_POSSIBLE_DAY:
        raise typer.BadParameter(f"{text} is before {FIRST_POSSIBLE_DAY}, the first possible day")
    return month


FirstDay = Annotated[
    date | None,
    typer.Option(parser=_day, metavar="DATE", help="First day; default the one before the end."),
]
DayAfterLast = Annotated[
    date | None,
    typer.Option(parser=_day, metavar="DATE", help="The day after the last; default today."),
]


@contextmanager
def _progress(description: str, total: int | None = None) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        yield progress, progress.add_task(description, total=total or 1)


def _show(steps: Rollup, progress: Progress, task: TaskID) -> None:
    steps.progress = lambda what, done, total: progress.update(
        task, description=what, completed=done, total=total
    )


def _settings() -> Settings:
    """Settings and meters that are valid, before anything is begun."""
    settings = load_settings()
    load_meters(settings)
    return settings


@app_db_commands.command("init")
def app_db_init() -> None:
    """Create the source's tables where they are absent.

    For development and tests.

    Example: `usage-pipeline app-db init`
    """
    settings = _settings()
    create_schema(app_database_url(settings))
    out.print("The application's tables are there.")


@app_db_commands.command("load-sample")
def load_sample(
    events: Annotated[int, typer.Option(help="How many usage events.", min=1)] = DEMO_EVENTS,
    days: Annotated[int, typer.Option(help="Over how many days, up to today.", min=1)] = DEMO_DAYS,
    users: Annotated[int, typer.Option(help="Of how many users.", min=1)] = DEMO_USERS,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.", min=0)] = DEMO_SEED,
) -> None:
    """Fill an empty source with a made-up history.

    For development and tests. The same seed gives the same rows.

    Example: `usage-pipeline app-db load-sample --events 1000000 --days 365 --users 5000 --seed 1`
    """
    settings = _settings()
    _load_sample(settings, events, days, users, seed)


def _load_sample(settings: Settings, events: int, days: int, users: int, seed: int) -> None:
    from usage_pipeline.app_db.sample import load_sample as load

    with _progress("loading sample events", events) as (progress, task):
        report = load(
            app_database_url(settings),
            events=events,
            days=days,
            users=users,
            seed=seed,
            end=settings.today(),
            zone=settings.zone,
            progress=lambda done: progress.update(task, completed=done),
        )
    out.print(
        f"Loaded {report.events:,} events of {report.users:,} users and {report.orgs:,} "
        f"organisations, {report.first_day} to {report.last_day}, in {report.seconds:.1f} s."
    )


@app.command()
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
) -> None:
    """Roll up days and their months, and publish them.

    The days are `[start, end)`, yesterday when neither is given: ingest, transform, check, publish.
    Days that an earlier run left unpublished are rolled up too. Exit code 1 also when a day kept
    what it has because the source has fewer events; `--allow-fewer-events` takes those.

    Example: `usage-pipeline rollup --start 2026-05-01 --end 2026-06-01`
    """
    settings = _settings()
    days = _days(settings, start, end)
    started = time.perf_counter()
    run_ids, steps = _rollup(settings, days, allow_fewer_events)
    seconds = time.perf_counter() - started
    out.print(
        f"Rolled up {len(days.days()):,} day(s) {days} in {seconds:.1f} s "
        f"(runs {', '.join(run_id[:8] for run_id in run_ids)})."
    )
    _print_totals(settings, days)
    if timings:
        _print_timings(steps.timings.seconds, seconds)
    if steps.refused:
        raise refusal(steps.refused)


def _print_timings(stages: dict[str, float], seconds: float) -> None:
    table = Table("stage", Column("seconds", justify="right"), Column("share", justify="right"))
    rest = {"imports and Dagster": seconds - sum(stages.values())}
    for stage, spent in sorted((stages | rest).items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.1f}", f"{spent / seconds:.0%}")
    out.print(table)


def _days(settings: Settings, start: date | None, end: date | None) -> DayRange:
    last = end or settings.today()
    if start is None:
        start = last - timedelta(days=1)
    days = DayRange(start, last)
    try:
        check_range(settings, days)
    except UsagePipelineError as error:
        _print_error(error)
        raise typer.Exit(WRONG_USAGE) from None
    return days


def _rollup(
    settings: Settings, days: DayRange, allow_fewer_events: bool = False
) -> tuple[list[str], Rollup]:
    """Run ids, and the steps that ran."""
    with (
        interrupts.stopping(lambda: _left_pending(settings, days)),
        _progress("starting") as (progress, task),
    ):
        _require_databases(settings)
        from usage_pipeline.definitions import build_defs
        from usage_pipeline.orchestration.launch import run_rollup

        defs = build_defs(settings)
        steps: Rollup = defs.resources["rollup"]  # type: ignore[index]
        steps.allow_fewer_events = allow_fewer_events
        _show(steps, progress, task)
        return run_rollup(defs, settings, days), steps


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
    if not any(days.start < left.end and left.start < days.end for left in pending.ranges()):
        pending.add(set(days.days()))
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


@app.command()
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
    settings = _settings()
    url = app_database_url(settings)
    if settings.app_database_url:
        _require_empty(url, yes)
    create_schema(url)
    if count_users(url):
        out.print("The source already holds data; rolling that up.")
    else:
        settings = begin_with(settings, settings.today() - timedelta(days=DEMO_DAYS))
        _load_sample(settings, DEMO_EVENTS, DEMO_DAYS, DEMO_USERS, DEMO_SEED)
    first = max(settings.today() - timedelta(days=DEMO_DAYS), settings.start_date)
    days = DayRange(first, settings.today())
    started = time.perf_counter()
    _rollup(settings, days)
    out.print(f"Rolled up {len(days.days())} days in {time.perf_counter() - started:.1f} s.")
    _print_totals(settings, days)
    out.print("Next: `make up` for the UI at http://127.0.0.1:3000, or `usage-pipeline status`.")


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


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 3000,
) -> None:
    """Serve Dagster, with schedules and sensors running.

    Webserver and daemon on 127.0.0.1, until Ctrl-C or SIGTERM, which end it with exit code 0.

    Example: `usage-pipeline up`
    """
    settings = _settings()
    with interrupts.awaited() as stopped:
        _require_databases(settings)
        from usage_pipeline.orchestration.serve import serve

        serve(settings, port, stopped, lambda words: out.print(words, soft_wrap=True))


@app.command()
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
    settings = _settings()
    days = _days(settings, start, end)
    rollup = Rollup(settings)
    if repair:
        with _progress("repairing") as (progress, task):
            _show(rollup, progress, task)
            repaired = rollup.repair_places(days)
        _print_unlike(repaired)
        out.print(f"Repaired {len(repaired):,} table(s)." if repaired else "Nothing to repair.")
    with _progress("reading the source", len(days.days())) as (progress, task):
        lines = rollup.reconcile(days, lambda day: progress.advance(task))
    with _progress("comparing what is published") as (progress, task):
        _show(rollup, progress, task)
        unlike = rollup.compare_places(days)
    _print_lines(days, lines)
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


def _print_lines(days: DayRange, lines: list[Line]) -> None:
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
                f"{side} {events:,} events, {'no total' if total is None else format(total, ',')}"
                for side, events, total in sides
            )
            + f"; users {', '.join(line.users)}",
            soft_wrap=True,
            highlight=False,
        )
    out.print(f"{len(different):,} of {len(lines):,} daily totals differ.")
    out.print(
        "Roll the days up again: "
        + ", ".join(
            f"usage-pipeline rollup --start {r.start} --end {r.end}"
            for r in ranges_of_days({line.usage_date for line in different})
        ),
        soft_wrap=True,
    )


@app.command()
def export(
    month: Annotated[date, typer.Option(parser=_month, metavar="YYYY-MM", help="The month.")],
    user: Annotated[UUID | None, typer.Option(help="One user only.")] = None,
    events: Annotated[bool, typer.Option("--events", help="The user's raw events.")] = False,
) -> None:
    """Write the CSV exports of a month.

    One file per user, or one user's with `--user`. With `--events` it is that user's raw events
    instead, invalid ones included. A month or user without published usage is an error.

    Example: `usage-pipeline export --month 2026-05`
    """
    settings = _settings()
    if events:
        if user is None:
            raise typer.BadParameter("--events needs --user UUID")
        out.print(str(exports.export_user_events(settings, month, user)))
        return
    with _progress("writing exports") as (progress, task):
        report = exports.export_month(
            settings,
            month,
            user,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    out.print(f"{report.users:,} users, {report.written:,} files written: {report.manifest.parent}")


@app.command("erase-user")
def erase_user(
    user: Annotated[UUID, typer.Argument(metavar="UUID", help="The person's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what holds it.")] = False,
) -> None:
    """Remove a person from everything; totals stay.

    There is no way back. The person's usage stays under a `user_id` that is NULL. Then every file
    and table is searched for the id; exit code 1 when it is still found. `--dry-run` lists what
    holds the id, and the days to build again.

    Example: `usage-pipeline erase-user 7f1c9d52-0000-4000-8000-000000000000 --dry-run`
    """
    settings = _settings()
    with _progress("searching") as (progress, task):
        rollup = Rollup(settings)
        _show(rollup, progress, task)
        held = erasure.find_traces(rollup, user)
        erasure.check_known(settings, user, held)
        left = held if dry_run else erasure.erase(rollup, user)
    if dry_run:
        days = ranges_of_days(days_of_user(settings, user))
        _print_traces("Holds the id", held)
        out.print(f"Days to build again: {', '.join(map(str, days)) or 'none'}", soft_wrap=True)
        out.print("Nothing was changed.")
    elif left:
        _print_traces("Still holds the id", left)
        raise UsagePipelineError(
            f"{len(left)} places still hold the id",
            "Let running work end, erase the user again, and read docs/operations.md",
        )
    else:
        out.print(f"Erased. {len(held)} places held the id, no file and no table does now.")
    out.print("The application's own tables are not searched; erasing there is its task.")


def _print_traces(title: str, traces: list[erasure.Trace]) -> None:
    out.print(f"{title}:")
    for trace in traces:
        rows = "" if trace.rows is None else f" ({trace.rows:,} rows)"
        out.print(f"  {trace.place}{rows}", soft_wrap=True, highlight=False)


@app.command()
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
    settings = _settings()
    overview = summary(settings)
    for line in overview.lines:
        out.print(line, soft_wrap=True, highlight=False)
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


@app.command()
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


def main() -> None:
    """Entry point: expected failures are one line on stderr, `--debug` shows the traceback."""
    interrupts.install()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        os.umask(UMASK)
        app()
    except Exception as error:
        if debug:
            # Written here, since the causes of a failure may quote a connection string.
            sys.stderr.write(redact(traceback.format_exc()))
        elif isinstance(error, UsagePipelineError):
            _print_error(error)
        else:
            first_line = (str(error).splitlines() or [""])[0]
            _print_error(
                UsagePipelineError(
                    redact(f"Unexpected {type(error).__name__}: {first_line}"),
                    "Run the same again with --debug, and report what it shows",
                )
            )
        sys.exit(1)


def _print_error(error: UsagePipelineError) -> None:
    err.print(f"[red]Error:[/] {error}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
