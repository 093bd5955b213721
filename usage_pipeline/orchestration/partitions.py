"""Partitions and what they mean as days. Keys are local dates in USAGE_TIMEZONE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import dagster as dg

from usage_pipeline.days import DayRange, next_month
from usage_pipeline.orchestration.names import DAYS_TAG
from usage_pipeline.settings import Settings

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
PARTITION_TAG = "dagster/partition"


class Partitions:
    """The two partitions definitions of the pipeline.

    Attributes:
        daily: one key a local day that is over.
        monthly: one key a calendar month, the running one included (month to date).
    """

    def __init__(self, settings: Settings) -> None:
        self.daily = dg.DailyPartitionsDefinition(
            start_date=settings.start_date.isoformat(), timezone=settings.timezone
        )
        self.monthly = dg.MonthlyPartitionsDefinition(
            start_date=settings.start_date.replace(day=1).isoformat(),
            timezone=settings.timezone,
            end_offset=1,
        )


def days_of(context: dg.AssetExecutionContext) -> DayRange:
    """The days of a run's daily partitions, one or many."""
    keys = context.partition_key_range
    return DayRange(
        date.fromisoformat(keys.start), date.fromisoformat(keys.end) + timedelta(days=1)
    )


def months_of(context: dg.AssetExecutionContext) -> DayRange:
    """The days of the months a run of monthly partitions covers."""
    keys = context.partition_key_range
    return DayRange(date.fromisoformat(keys.start), next_month(date.fromisoformat(keys.end)))


def day_range_tags(days: DayRange) -> dict[str, str]:
    """Run tags that select a range of daily partitions in a single run."""
    return {
        RANGE_START_TAG: days.start.isoformat(),
        RANGE_END_TAG: (days.end - timedelta(days=1)).isoformat(),
    }


def day_tags(ranges: Sequence[DayRange]) -> dict[str, str]:
    """Run tags that select days in a single run. Its partitions are the first range; the others
    are in a tag, are landed with it, and are built as all days are that wait to be built."""
    return {**day_range_tags(ranges[0]), **_days_tag(ranges)}


def month_tags(ranges: Sequence[DayRange]) -> dict[str, str]:
    """Run tags that select the months of a run of `day_tags`; the other months are built as those
    of all days that wait to be published."""
    return {**month_range_tags(ranges[0]), **_days_tag(ranges)}


def month_range_tags(days: DayRange) -> dict[str, str]:
    """Run tags that select the months of some days in a single run."""
    return {
        RANGE_START_TAG: days.start.replace(day=1).isoformat(),
        RANGE_END_TAG: (days.end - timedelta(days=1)).replace(day=1).isoformat(),
    }


def days_of_run(tags: Mapping[str, str]) -> list[DayRange]:
    """The days that a run was for; none when it had no days."""
    if listed := tags.get(DAYS_TAG):
        pairs = (pair.split("/") for pair in listed.split(","))
        return [
            DayRange(date.fromisoformat(start), date.fromisoformat(end)) for start, end in pairs
        ]
    first = tags.get(RANGE_START_TAG) or tags.get(PARTITION_TAG)
    last = tags.get(RANGE_END_TAG) or tags.get(PARTITION_TAG)
    if not first or not last:
        return []
    return [DayRange(date.fromisoformat(first), date.fromisoformat(last) + timedelta(days=1))]


def _days_tag(ranges: Sequence[DayRange]) -> dict[str, str]:
    return {DAYS_TAG: ",".join(f"{days.start}/{days.end}" for days in ranges)}
