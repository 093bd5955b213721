"""What is published: each table's key, its place in time, and its indexes. No code that moves rows.

A model says so itself, in its .yml as `config.meta.published`. Columns and types are not repeated
here; they are the warehouse's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from usage_pipeline.settings import DBT_PROJECT_DIR

LEDGER = "usage_restatements"
PUBLISHES = "usage_snapshots"
OLD_MONTHS = "usage_monthly_history"
RECORDS = (LEDGER, PUBLISHES, OLD_MONTHS)  # written by publishing itself, and only added to
# When a row was first published, and when its numbers last changed.
STAMPS = ("created_at", "updated_at")


@dataclass(frozen=True)
class ServedTable:
    """One published table.

    Attributes:
        key: columns that identify a row.
        nullable: those of `key` that may be null; null is then a value like any other.
        dated: column that places a row in time; None for tables that are not partitioned.
        grain: what `dated` holds: local days, or first days of local months.
        windowed: only the rows of the published days and their months are compared; tables
            whose other rows can move as well are compared whole.
        moving: rows leave older parts for newer ones from run to run, so that parts with another
            number of rows are compared as well.
        as_of: column with one value in all rows; when it moves, all rows are new and the table
            is replaced without a look at them.
        indexes: further indexes in Postgres, for dashboards.
        stamps: columns that say when a row was published or changed; only what is published
            knows them. Those that the model lacks are given by publishing: `created_at` stays
            with the key, any other moves when the numbers do.
        model: whether dbt builds it; the others are written by the pipeline itself.
        description: of those others; a model's is in its `.yml`.
    """

    name: str
    key: tuple[str, ...]
    nullable: tuple[str, ...] = ()
    dated: str | None = None
    grain: Literal["day", "month"] = "day"
    windowed: bool = True
    moving: bool = False
    as_of: str | None = None
    indexes: tuple[tuple[str, ...], ...] = ()
    stamps: tuple[str, ...] = ()
    model: bool = True
    description: str = ""


_LAYERS = ("usage", "platform", "reporting")  # of models that may be published, in flow order
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it


def _published_models() -> Iterator[ServedTable]:
    for layer in _LAYERS:
        for file in sorted((DBT_PROJECT_DIR / "models" / layer).glob("*.yml")):
            models, _, _ = file.read_text("utf-8").partition("\nunit_tests:")  # half the time
            for model in yaml.load(models, _YAML)["models"]:
                published = model.get("config", {}).get("meta", {}).get("published")
                if published:
                    yield ServedTable(
                        model["name"], **{k: _tuples(v) for k, v in published.items()}
                    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


_PERSON = ("user_id", "org_id")
SERVED_TABLES = (
    *_published_models(),
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
        LEDGER,
        key=("usage_date", *_PERSON, "metric_type", "restated_at"),
        nullable=_PERSON,
        dated="usage_date",
        indexes=(("restated_at",), ("user_id", "usage_date")),
        model=False,
        description=(
            "The ledger, one row per later change of a published number: old and new quantity and "
            "event count, cause and run."
        ),
    ),
    ServedTable(
        OLD_MONTHS,
        key=("month", *_PERSON, "metric_type", "replaced_at"),
        nullable=_PERSON,
        dated="month",
        grain="month",
        indexes=(("user_id", "month"),),
        model=False,
        description=(
            "Numbers of months that were published before, of meters whose months are no sums of "
            "days; `usage_monthly_as_of` reads them."
        ),
    ),
    ServedTable(
        PUBLISHES,
        key=("snapshot_id",),
        windowed=False,
        indexes=(("published_at",),),
        model=False,
        description=(
            "One row per publish that changed something: id, time, run, time zone, and the meters "
            "that it was made with, where they are others than those of the publish before."
        ),
    ),
)


def served(name: str) -> ServedTable:
    """The published table of that name."""
    return next(table for table in SERVED_TABLES if table.name == name)
