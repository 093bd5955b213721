"""The identity of what is published, recorded in all three places."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import duckdb

from usage_pipeline.errors import UsagePipelineError

# The shape of what is published: a newer one is refused, an older one migrated.
SCHEMA_VERSION = 4
ONCE = 4  # the first one whose usage_snapshots has meters where they changed only
STAMPED = 2  # the first one whose usage_daily and usage_monthly say when a row was published


@dataclass(frozen=True)
class Snapshot:
    """The identity of what is published, recorded in all three places."""

    snapshot_id: str
    published_at: datetime
    run_id: str
    timezone: str
    schema_version: int = SCHEMA_VERSION


def written_by_newer(what: str, version: int) -> UsagePipelineError:
    return UsagePipelineError(
        f"{what} has schema {version} of a newer release; this one knows {SCHEMA_VERSION}",
        "Update the checkout to that release, or restore the state of this one from a backup",
    )


def recorded_snapshot(db: duckdb.DuckDBPyConnection) -> Snapshot | None:
    row = db.execute(
        "select snapshot_id, published_at, run_id, timezone, schema_version"
        " from published.main.snapshot"
    ).fetchone()
    return Snapshot(*row) if row else None
