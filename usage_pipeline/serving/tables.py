"""What is published: each table's key, its place in time, and its indexes. No code that moves rows.

Columns and types are not repeated here; they are the warehouse's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEDGER = "usage_restatements"


@dataclass(frozen=True)
class ServedTable:
    """One published table.

    Attributes:
        key: columns that identify a row.
        nullable: those of `key` that may be null; null is then a value like any other.
        dated: column that places a row in time; None for tables that are not partitioned.
        grain: what `dated` holds: local days, first days of local months, or the start
            instants of both, told apart by `period_type`.
        windowed: only the rows of the published days and their months are compared; tables
            whose other rows can move as well, all small, are compared whole.
        indexes: further indexes in Postgres, for dashboards.
        stamps: columns that say when a row was published or changed; only what is published
            knows them.
        model: whether dbt builds it; the others are written by the pipeline itself.
        description: of those others; a model's is in its `.yml`.
    """

    name: str
    key: tuple[str, ...]
    nullable: tuple[str, ...] = ()
    dated: str | None = None
    grain: Literal["day", "month", "period"] = "day"
    windowed: bool = True
    indexes: tuple[tuple[str, ...], ...] = ()
    stamps: tuple[str, ...] = ()
    model: bool = True
    description: str = ""


_PERSON = ("user_id", "org_id")
SERVED_TABLES = (
    ServedTable(
        "usage_daily",
        key=("usage_date", *_PERSON, "metric_type"),
        nullable=_PERSON,
        dated="usage_date",
        indexes=((*_PERSON, "usage_date"),),
    ),
    ServedTable(
        "usage_monthly",
        key=("month", *_PERSON, "metric_type"),
        nullable=_PERSON,
        dated="month",
        grain="month",
        indexes=((*_PERSON, "month"),),
    ),
    ServedTable(
        "usage_aggregations",
        key=("id",),
        dated="period_start",
        grain="period",
        indexes=((*_PERSON, "period_start"),),
        stamps=("created_at", "updated_at"),
    ),
    ServedTable(
        "org_usage_daily",
        key=("usage_date", "org_id", "metric_type"),
        nullable=("org_id",),
        dated="usage_date",
        indexes=(("org_id", "usage_date"),),
    ),
    ServedTable(
        "org_usage_monthly",
        key=("month", "org_id", "metric_type"),
        nullable=("org_id",),
        dated="month",
        grain="month",
        indexes=(("org_id", "month"),),
    ),
    ServedTable("platform_usage_daily", key=("usage_date", "metric_type"), dated="usage_date"),
    ServedTable(
        "platform_usage_monthly", key=("month", "metric_type"), dated="month", grain="month"
    ),
    ServedTable(
        "platform_metrics_daily", key=("metric_date",), dated="metric_date", windowed=False
    ),
    ServedTable(
        "platform_metrics_monthly", key=("month",), dated="month", grain="month", windowed=False
    ),
    ServedTable(
        "subscriptions_by_plan_daily",
        key=("metric_date", "plan"),
        dated="metric_date",
        windowed=False,
    ),
    ServedTable("user_retention_monthly", key=("cohort_month", "months_since"), windowed=False),
    ServedTable(
        "usage_summary",
        key=("scope", *_PERSON, "time_window", "metric_type"),
        nullable=_PERSON,
        windowed=False,
        indexes=(_PERSON,),
    ),
    ServedTable(
        "usage_daily_by_dimension",
        key=("usage_date", *_PERSON, "metric_type", "dimension", "dimension_value"),
        nullable=(*_PERSON, "dimension_value"),
        dated="usage_date",
        indexes=((*_PERSON, "usage_date"),),
    ),
    ServedTable(
        "invalid_usage_events",
        key=("event_id", "metric_type"),
        nullable=("metric_type",),
        dated="usage_date",
        stamps=("detected_at",),
    ),
    ServedTable(
        "usage_reconciliation",
        key=("usage_date", "metric_type"),
        nullable=("metric_type",),
        dated="usage_date",
        model=False,
        description=(
            "The proof, one row per local day and meter: events and sums in the source, in landing "
            "and as published, and whether they match."
        ),
    ),
    ServedTable(
        "usage_restatements",
        key=("usage_date", *_PERSON, "metric_type", "restated_at"),
        nullable=_PERSON,
        dated="usage_date",
        indexes=(("restated_at",),),
        model=False,
        description=(
            "The ledger, one row per later change of a published number: old and new quantity and "
            "event count, cause and run."
        ),
    ),
)
