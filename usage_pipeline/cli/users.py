"""What is of single users: `export`, `erase-user`."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from usage_pipeline.cli.options import Month, valid_settings
from usage_pipeline.cli.show import out, progress, show_steps
from usage_pipeline.days import ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.erasing import days_of_user
from usage_pipeline.operations import erasure
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import exports


def export(
    month: Month,
    user: Annotated[UUID | None, typer.Option(help="One user only.")] = None,
    events: Annotated[bool, typer.Option("--events", help="The user's raw events.")] = False,
) -> None:
    """Write the CSV exports of a month.

    One file per user, or one user's with `--user`. With `--events` it is that user's raw events
    instead, invalid ones included. A month or user without published usage is an error.

    Example: `usage-pipeline export --month 2026-05`
    """
    settings = valid_settings()
    if events:
        if user is None:
            raise typer.BadParameter("--events needs --user UUID")
        out.print(str(exports.export_user_events(settings, month, user)))
        return
    with progress("writing exports") as (bar, task):
        report = exports.export_month(
            settings,
            month,
            user,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    out.print(f"{report.users:,} users, {report.written:,} files written: {report.manifest.parent}")


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
    settings = valid_settings()
    with progress("searching") as (bar, task):
        rollup = Rollup(settings)
        show_steps(rollup, bar, task)
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
            erasure.remedy(settings),
        )
    else:
        out.print(f"Erased. {len(held)} places held the id, no file and no table does now.")
    out.print("The application's own tables are not searched; erasing there is its task.")


def _print_traces(title: str, traces: list[erasure.Trace]) -> None:
    out.print(f"{title}:")
    for trace in traces:
        rows = "" if trace.rows is None else f" ({trace.rows:,} rows)"
        out.print(f"  {trace.place}{rows}", soft_wrap=True, highlight=False)
