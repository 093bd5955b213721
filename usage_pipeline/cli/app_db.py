"""`app-db`: the source's tables and sample data."""

from __future__ import annotations

from typing import Annotated

import typer

from usage_pipeline.app_db.schema import create_schema
from usage_pipeline.cli.options import valid_settings
from usage_pipeline.cli.show import out, progress
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.settings import Settings

DEMO_EVENTS, DEMO_DAYS, DEMO_USERS, DEMO_SEED = 200_000, 180, 1_500, 7


def init() -> None:
    """Create the source's tables where they are absent.

    For development and tests.

    Example: `usage-pipeline app-db init`
    """
    settings = valid_settings()
    create_schema(app_database_url(settings))
    out.print("The application's tables are there.")


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
    settings = valid_settings()
    fill_with_sample(settings, events, days, users, seed)


def fill_with_sample(settings: Settings, events: int, days: int, users: int, seed: int) -> None:
    """Load a sample, and say what came in."""
    from usage_pipeline.app_db.sample import load_sample as load

    with progress("loading sample events", events) as (bar, task):
        report = load(
            app_database_url(settings),
            events=events,
            days=days,
            users=users,
            seed=seed,
            end=settings.today(),
            zone=settings.zone,
            progress=lambda done: bar.update(task, completed=done),
        )
    out.print(
        f"Loaded {report.events:,} events of {report.users:,} users and {report.orgs:,} "
        f"organisations, {report.first_day} to {report.last_day}, in {report.seconds:.1f} s."
    )
