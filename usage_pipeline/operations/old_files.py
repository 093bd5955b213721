"""Which files are deleted, and which never. What is Dagster's own is `orchestration.maintenance`.

Temporary files go with the process that made them (`disk.scratch`), and each published snapshot
replaces the one before. What is left to clear are logs, the SQL of models that are gone, and
landed days that nobody counts any more.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import duckdb

from usage_pipeline.landing.landed_days import partitions
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer


@dataclass(frozen=True)
class Removed:
    """What was deleted.

    Attributes:
        count: files of logs and SQL, or landed days.
        bytes: their size.
        kept: landed days that are old enough, but that a published total may depend on.
    """

    count: int = 0
    bytes: int = 0
    kept: int = 0


def remove_old_files(settings: Settings, before: datetime) -> Removed:
    """Captured output of steps, and SQL that dbt wrote, not written to since `before`.

    Each dbt run writes the SQL of its models and tests again, so old SQL is that of models and
    tests which have another name now.
    """
    storage, dbt = settings.dagster_home / "storage", settings.dbt_target_dir
    count = freed = 0
    # A run's directory goes as a whole; dbt's stay, since one may be about to write into them.
    for path in [*storage.glob("*"), *dbt.glob("run/**/*.sql"), *dbt.glob("compiled/**/*.sql")]:
        tree = [path, *path.rglob("*")]
        if max(each.stat().st_mtime for each in tree) >= before.timestamp():
            continue
        files = [each for each in tree if each.is_file()]
        count += len(files)
        freed += sum(file.stat().st_size for file in files)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Removed(count, freed)


def remove_landed_days(settings: Settings) -> Removed:
    """Landed days older than `USAGE_LANDING_RETENTION_DAYS` that no total depends on.

    The warehouse is rebuilt from landing, and reads it from `USAGE_START_DATE` on: those days are
    needed, whatever their age. The days before it are not, once nothing of them is published.

    Raises:
        UsagePipelineError: the warehouse stays locked.
    """
    if settings.landing_retention_days is None:
        return Removed()
    end = settings.today() - timedelta(days=settings.landing_retention_days)
    # Under the lock of those who publish: nothing may be published from files that go.
    with writer.exclusive(settings, "removing landed days"):
        old = {day: path for day, path in partitions(settings).items() if day < end}
        published = _first_published_day(settings)
        unused = [
            path
            for day, path in old.items()
            if published and day < settings.start_date <= published
        ]
        freed = sum(file.stat().st_size for path in unused for file in path.iterdir())
        for path in unused:
            shutil.rmtree(path)
    return Removed(len(unused), freed, kept=len(old) - len(unused))


def _first_published_day(settings: Settings) -> date | None:
    if not published.exists(settings):
        return None
    with published.reading(settings) as db:
        try:
            ((first,),) = db.execute("select min(usage_date) from usage_daily").fetchall()
        except duckdb.CatalogException:  # nothing was published yet
            return None
    return first
