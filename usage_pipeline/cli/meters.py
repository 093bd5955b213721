"""`meters`: what a change of the meters file does, before and when it is done."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from usage_pipeline.cli.answers import in_words
from usage_pipeline.cli.options import valid_settings
from usage_pipeline.cli.show import out, print_notices, progress, show_steps
from usage_pipeline.meters.comparison import Comparison, compare_meters, differences
from usage_pipeline.meters.file import load_meters, parse_meters
from usage_pipeline.operations import meter_changes
from usage_pipeline.operations.meter_changes import PUBLISHED, Example, Plan
from usage_pipeline.operations.status import spelled
from usage_pipeline.rollup import Rollup

MOST_MONTHS = 40  # that are listed


def plan(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The changed file; default USAGE_METERS_FILE."),
    ] = None,
) -> None:
    """Show what a meters file would do to published totals.

    Per metric and month: rows that would be added, removed and changed, totals before and after,
    and examples. The meters that differ are built beside the warehouse, from what is landed;
    nothing is published, and no night waits.

    Example: `usage-pipeline meters plan changed.yml`
    """
    settings = valid_settings()
    meters = load_meters(settings.model_copy(update={"meters_file": file or settings.meters_file}))
    with progress("comparing meters") as (bar, task):
        found = meter_changes.plan(
            settings,
            meters,
            lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    if found.comparison is None:
        _say("What is published does not say by which meters it was made; all were built.")
    else:
        _print_comparison(found.comparison)
    _print_plan(found)


def diff(
    revision: Annotated[
        str,
        typer.Argument(
            metavar="REV", help="A file, a git revision of the meters file, or `published`."
        ),
    ] = PUBLISHED,
) -> None:
    """Show what differs between a version of the meters and now.

    Meters that were added, removed, renamed, defined or described otherwise since then. Exit code 1
    when one would change a number.

    Example: `usage-pipeline meters diff HEAD~1`
    """
    settings = valid_settings()
    old = meter_changes.meters_of(settings, revision)
    comparison = compare_meters(old, parse_meters(settings.meters_file))
    _print_comparison(comparison)
    if comparison.changes_numbers:
        raise typer.Exit(1)


def apply() -> None:
    """Rebuild with the meters file, and publish what differs.

    All landed days are built again from landing, as the next night would do; readers see the old
    numbers until the new ones passed every check, and only rows that differ are written. The ledger
    has each with the cause `rebuild`; the run is named for the version of the meters.

    Example: `usage-pipeline meters apply`
    """
    settings = valid_settings()
    with progress("starting") as (bar, task):
        rollup = Rollup(settings)
        show_steps(rollup, bar, task)
        report = meter_changes.apply(rollup)
    if not report.changed:
        _say("What is published is of these meters already.")
        return
    change = report.tables["usage_monthly"]
    _say(
        f"Published as snapshot {report.snapshot_id[:8]}: {change.inserted:,} rows of usage_monthly"
        f" added, {change.updated:,} changed, {change.deleted:,} removed."
    )
    print_notices(settings)


def _say(text: str) -> None:
    out.print(text, soft_wrap=True, highlight=False, markup=False)


def _print_comparison(comparison: Comparison) -> None:
    for meter in comparison.added:
        _say(f"+ {meter.key}: {in_words(meter)}")
    for meter in comparison.removed:
        _say(f"- {meter.key}: {in_words(meter)}")
    for old, new in comparison.renamed:
        _say(f"> {old.key} is renamed to {new.key}")
    for sign, pairs in (("~", comparison.redefined), ("=", comparison.reworded)):
        for old, new in pairs:
            _say(f"{sign} {new.key}")
            for name, (before, after) in differences(old, new).items():
                _say(f"    {name}: {_plain(before)} → {_plain(after)}")
    if not comparison.changes_numbers:
        _say("No number changes.")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) or "none"
    return "/".join(value) if isinstance(value, list) else str(value or "none")


def _print_plan(found: Plan) -> None:
    if found.unlike:
        _say(
            "Not landed as they are published, so that other differences are among these: "
            + ", ".join(map(str, found.unlike[:5]))
        )
    if not found.months:
        _say("No published row would change.")
        return
    right = [
        Column(name, justify="right", overflow="fold")
        for name in ("added", "removed", "changed", "total", "would be")
    ]
    table = Table("metric", "month", *right, box=None)
    for month in found.months[-MOST_MONTHS:]:
        table.add_row(
            month.metric,
            f"{month.month:%Y-%m}",
            *(f"{rows:,}" for rows in (month.added, month.removed, month.changed)),
            _quantity(month.old_total),
            _quantity(month.new_total),
        )
    out.print(table)
    if (more := len(found.months) - MOST_MONTHS) > 0:
        _say(f"and {more:,} earlier months")
    rows = [sum(getattr(m, what) for m in found.months) for what in ("added", "removed", "changed")]
    _say(
        "Rows of usage_monthly: {:,} added, {:,} removed, {:,} changed. For example:".format(*rows)
    )
    for example in found.examples:
        _say(f"  {_told(example)}")
    _say("Publish it with `usage-pipeline meters apply`, or with the next rollup.")


def _told(example: Example) -> str:
    whose = f"user {example.user_id or 'without an id'}"
    org = f" in {example.org_id}" if example.org_id else ""
    change = f"{_quantity(example.old_quantity)} → {_quantity(example.new_quantity)}"
    return f"{example.metric} {example.month:%Y-%m} {whose}{org}: {change}"


def _quantity(quantity: Decimal | None) -> str:
    return "–" if quantity is None else spelled(quantity)
