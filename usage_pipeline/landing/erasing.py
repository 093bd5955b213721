"""A person taken out of what is landed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import date
from uuid import UUID

import duckdb

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.landing import erased_users
from usage_pipeline.landing.accounts import ACCOUNT_TABLES
from usage_pipeline.landing.landed_days import MANIFEST, data_files, manifest_of, partitions, sizes
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import Settings


def days_of_user(settings: Settings, user_id: UUID) -> list[date]:
    """Landed days with an event that names a person, as its user or in its event_data.

    Raises:
        UsagePipelineError: a landed file cannot be read.
    """
    files = [file for day in partitions(settings) for file in data_files(settings.events_dir, day)]
    if not files:
        return []
    with open_duckdb(settings, ":memory:") as db:
        try:
            rows = db.execute(
                f"select distinct usage_date from {landed_events('$1')}"
                f" where {erased_users.events_that_name(user_id)} order by 1",
                [list(map(str, files))],
            ).fetchall()
        except duckdb.Error as error:
            raise UsagePipelineError(
                f"Landing cannot be read ({str(error).splitlines()[0]})",
                "Run `usage-pipeline rollup`, which extracts damaged days again",
            ) from error
    return [day for (day,) in rows]


def erase_user(
    settings: Settings,
    user_id: UUID,
    days: Iterable[date],
    progress: Callable[[date], None] = lambda day: None,
) -> None:
    """Take a person out of what is landed, without asking the source, which may have deleted it.

    The caller has landing alone, and is the single writer.

    Args:
        days: the person's, see `days_of_user`.
        progress: called with each rewritten day.
    """
    with scratch(settings) as work:
        for table in ACCOUNT_TABLES:
            path, staged = settings.landing_dir / f"{table}.parquet", work / f"{table}.parquet"
            if path.exists() and table in erased_users.PERSON_COLUMNS:
                erased_users.rewrite(settings, table, path, [user_id], staged)
                staged.replace(path)
        for day in days:
            data, manifest = data_files(settings.events_dir, day), manifest_of(settings, day)
            without = [work / path.name for path in data]
            for path, rewritten in zip(data, without, strict=True):
                erased_users.rewrite(settings, "usage_events", path, [user_id], rewritten)
            # The manifest first, with both sizes: a kill after it leaves no day that looks
            # damaged. One that is damaged must go on looking so.
            if manifest and manifest.fits(data):
                old, new = (sizes(files) for files in (data, without))
                manifest = replace(manifest, files=new, previous_files=old)
                (work / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
                (work / MANIFEST).replace(data[0].with_name(MANIFEST))
            for path, rewritten in zip(data, without, strict=True):
                rewritten.replace(path)
            progress(day)
