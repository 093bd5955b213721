"""What commands take: days, a month, and settings that are valid."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated

import typer

from usage_pipeline.cli.show import print_error
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.meters.file import load_meters
from usage_pipeline.settings import FIRST_POSSIBLE_DAY, Settings, load_settings

WRONG_USAGE = 2  # as for options that do not parse


def _day(text: str) -> date:
    return _possible(text, text, "date; write YYYY-MM-DD")


def _month(text: str) -> date:
    return _possible(text, f"{text}-01", "month; write YYYY-MM")


def _possible(text: str, first_day: str, what: str) -> date:
    try:
        day = date.fromisoformat(first_day)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a {what}") from None
    if day < FIRST_POSSIBLE_DAY:
        raise typer.BadParameter(f"{text} is before {FIRST_POSSIBLE_DAY}, the first possible day")
    return day


FirstDay = Annotated[
    date | None,
    typer.Option(parser=_day, metavar="DATE", help="First day; default the one before the end."),
]
DayAfterLast = Annotated[
    date | None,
    typer.Option(parser=_day, metavar="DATE", help="The day after the last; default today."),
]
Day = Annotated[
    date | None, typer.Option(parser=_day, metavar="DATE", help="One day of the month.")
]
Month = Annotated[date, typer.Option(parser=_month, metavar="YYYY-MM", help="The month.")]


def valid_settings() -> Settings:
    """Settings and meters that are valid, before anything is begun."""
    settings = load_settings()
    load_meters(settings)
    return settings


def days_of(settings: Settings, start: date | None, end: date | None) -> DayRange:
    """The days `[start, end)`; the command ends here when they cannot be rolled up."""
    last = end or settings.today()
    if start is None:
        start = last - timedelta(days=1)
    days = DayRange(start, last)
    try:
        check_range(settings, days)
    except UsagePipelineError as error:
        print_error(error)
        raise typer.Exit(WRONG_USAGE) from None
    return days


def check_range(settings: Settings, days: DayRange) -> None:
    """Refuse days that cannot be rolled up.

    Raises:
        UsagePipelineError: empty or reversed, not over yet, or before `USAGE_START_DATE`.
    """
    if days.start >= days.end:
        raise UsagePipelineError(
            f"The start {days.start} is not before the end {days.end}",
            "The end is exclusive; for one day give the next day as the end",
        )
    if days.end > settings.today():
        raise UsagePipelineError(
            f"{days.end - timedelta(days=1)} is not over yet in {settings.timezone}",
            f"Roll up days before {settings.today()}",
        )
    if days.start < settings.start_date:
        raise UsagePipelineError(
            f"{days.start} is before the first partition, {settings.start_date}",
            "Set USAGE_START_DATE to an earlier date, or start later",
        )
