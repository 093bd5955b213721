"""What every command prints with: results, progress, failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from usage_pipeline.audit.notices import notices
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

out = Console()
err = Console(stderr=True)


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr that is gone when the block ends."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as shown:
        yield shown, shown.add_task(description, total=total or 1)


def show_steps(steps: Rollup, shown: Progress, task: TaskID) -> None:
    """Let the progress follow the steps of a rollup."""
    steps.progress = lambda what, done, total: shown.update(
        task, description=what, completed=done, total=total
    )


def print_notices(settings: Settings) -> None:
    """What warns, by the names that the checks have in the Dagster UI."""
    if found := notices(settings):
        out.print("Worth a look; the checks in the Dagster UI say more:")
        for notice in found:
            out.print(f"  {notice}", soft_wrap=True, highlight=False, markup=False)


def print_error(error: UsagePipelineError) -> None:
    """One line on stderr."""
    err.print(f"[red]Error:[/] {error}", soft_wrap=True, highlight=False)
