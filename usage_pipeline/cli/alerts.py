"""Who is told of a crossed limit: `alerts backfill`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from usage_pipeline.alerts import limits
from usage_pipeline.alerts.events import as_json, spelled
from usage_pipeline.cli.options import valid_settings
from usage_pipeline.cli.show import out


def backfill(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list who would be told of what.")
    ] = False,
) -> None:
    """Tell of limits that were crossed before alerts began.

    The first rollup with limits tells nobody of what it finds crossed. This does, for the newest
    month: one message for each user, member or organisation and metric that is beyond a threshold
    still, of the highest one. Nobody is told twice. `--dry-run` lists them.

    Example: `usage-pipeline alerts backfill --dry-run`
    """
    found = limits.left_out(valid_settings(), tell=not dry_run)
    right = ("threshold", "used", "limit")
    headings = ("scope", "user", "organisation", "metric", "month", *right)
    table = Table(*(Column(h, justify="right" if h in right else "left") for h in headings))
    for crossing in found:
        message = crossing.message()
        facts = as_json(message.event_type, message.payload)
        table.add_row(
            *(facts[name] or "" for name in ("scope", "user_id", "org_id", "metric_type")),
            facts["month"][:7],
            f"{spelled(crossing.threshold * 100)}%",
            *(facts[name] or "" for name in ("used_quantity", "limit_quantity")),
        )
    if found:
        out.print(table)
    messages = "1 message" if len(found) == 1 else f"{len(found):,} messages"
    out.print(f"{messages}; nothing was changed." if dry_run else f"{messages} to be sent.")
