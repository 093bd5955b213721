"""What runs in the processes that fail: whole rollups, and the points at which the faults happen.

The product has no hooks for this. A point replaces one function in the failing process by one that
calls it and then does the harm: kills the process as `kill -9` does, without handler, `finally` or
flush, or cuts its connections.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import dbt.adapters.duckdb.impl  # noqa: F401  imported once, in the server that forks the children
import psycopg2
from dbt.task.run import ModelRunner
from support import roll_up

from usage_pipeline.alerts import limits, outbox
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing import extraction
from usage_pipeline.serving import exports
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.pending import PendingDays
from usage_pipeline.warehouse.transform import Transformer

EXPLAINED = 3  # the exit code of a failure that was put into a sentence

Matches = Callable[..., bool]
Harm = Callable[[], None]


def roll_up_and_export(
    variables: dict[str, Any], days: DayRange, months: Sequence[date], point: str | None = None
) -> None:
    """One ordinary run; a fault happens at the named point, if there is one."""
    settings = Settings(_env_file=None, **variables)  # type: ignore[call-arg]
    if point:
        os.environ["DATABASE_OF_THE_TEST"] = variables["USAGE_APP_DATABASE_URL"]
        POINTS[point]()
    try:
        roll_up(settings, days)
        for month in months:
            exports.export_month(settings, month)
    except UsagePipelineError as error:
        print(error, flush=True)
        sys.exit(EXPLAINED)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _cut() -> None:
    """End all connections to the database, as a restarting server does."""
    connection = psycopg2.connect(os.environ["DATABASE_OF_THE_TEST"])
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    connection.close()


def _fill_up(file_bytes: int) -> Harm:
    """No file can grow beyond so many bytes: what a full disk is to whoever writes."""

    def arm() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return arm


@dataclass(frozen=True)
class At:
    """Harm before or after the nth matching call of `owner.name`."""

    owner: Any
    name: str
    matches: Matches = lambda *args: True
    nth: int = 1
    harm: Harm = _die
    before: bool = False

    def __call__(self) -> None:
        original = getattr(self.owner, self.name)
        left = self.nth

        def replacement(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= bool(self.matches(*args))
            now = left == 0 and self.matches(*args)
            if now and self.before:
                self.harm()
            result = original(*args, **kwargs)
            if now and not self.before:
                self.harm()
            return result

        setattr(self.owner, self.name, replacement)


def _before(owner: Any, name: str, *how: Any, **further: Any) -> At:
    return replace(At(owner, name, *how, **further), before=True)


def _onto(pattern: str) -> Matches:
    return lambda source, target: fnmatch(str(target), pattern)


def _model(name: str) -> Matches:
    return lambda runner, node, manifest: node.name == name


def _around_commit(harm: Harm, *, before: bool) -> Harm:
    """Harm around the commit of a transaction that wrote something."""

    class Connection(psycopg2.extensions.connection):
        def __exit__(self, *error: Any) -> None:
            with self.cursor() as cursor:
                cursor.execute("select pg_current_xact_id_if_assigned() is not null")
                wrote = cursor.fetchall() == [(True,)]
            if wrote and before:
                harm()
            super().__exit__(*error)
            if wrote:
                harm()

    def arm() -> None:
        connect = psycopg2.connect
        psycopg2.connect = partial(connect, connection_factory=Connection)

    return arm


def _any_day(pending: PendingDays, ranges: Sequence[DayRange]) -> bool:
    return bool(ranges)


_PARTITION = "*/usage_date=*/"
_PARQUET = "*/serving/parquet/*/data.parquet"

KILLS: dict[str, Harm] = {
    "before the days are wanted": _before(PendingDays, "add"),
    "before the days are extracted": At(PendingDays, "add"),
    "while users are new and orgs are old": At(Path, "replace", _onto("*/users.parquet")),
    "between the extraction of two days": At(extraction, "_extract_day"),
    "before a landed file is renamed": _before(Path, "replace", _onto(_PARTITION + "*.parquet")),
    "between a landed file and its manifest": At(Path, "replace", _onto(_PARTITION + "*.parquet")),
    "between two landed days": At(Path, "replace", _onto(_PARTITION + "manifest.json")),
    "before landing is noted": _before(PendingDays, "landed", _any_day),
    "after landing is noted": At(PendingDays, "landed", _any_day),
    "before the build begins": _before(PendingDays, "begin"),
    "after the build began": At(PendingDays, "begin"),
    "before any daily model": _before(ModelRunner, "execute", _model("usage_replaced_partials")),
    "before kept cells are replaced": _before(
        ModelRunner, "execute", _model("usage_event_partials_daily")
    ),
    "between two daily models": At(ModelRunner, "execute", _model("usage_daily")),
    "before the build is finished": _before(PendingDays, "finish"),
    "after the build is finished": At(PendingDays, "finish"),
    "between two monthly models": At(ModelRunner, "execute", _model("usage_partials_monthly")),
    "before running sums are summaries": At(
        ModelRunner, "execute", _model("usage_trailing_partials")
    ),
    "before the audit": _before(Transformer, "test"),
    "after the audit": At(Transformer, "test"),
    "before Postgres commits": _around_commit(_die, before=True),
    "after Postgres committed": _around_commit(_die, before=False),
    "before readers get their copy": At(Path, "replace", _onto("*/published.duckdb")),
    "after the snapshot is renamed": At(Path, "replace", _onto("*/serving/usage.duckdb")),
    "between two Parquet files": At(Path, "replace", _onto(_PARQUET), nth=3),
    "before the Parquet marker": _before(Path, "replace", _onto("*/_snapshot.json")),
    "before the days are published": _before(PendingDays, "remove"),
    "after the days are published": At(PendingDays, "remove"),
    "before limits are compared": _before(limits, "judge", lambda *args: True, 2),
    "before alerts are committed": At(outbox, "add"),
    "after alerts are committed": At(limits, "judge", lambda *args: True, 2),
    "between two exports": At(Path, "replace", _onto("*/exports/*/??/*.csv"), nth=3),
    "before the manifest of exports": _before(Path, "replace", _onto("*/exports/*/manifest.csv")),
}

LOSSES: dict[str, Harm] = {
    "the source restarts between two days": At(extraction, "_extract_day", harm=_cut),
    "Postgres restarts before it commits": _around_commit(_cut, before=True),
    "the disk is full for a landed day": _fill_up(2_000),
    "the disk is full for the warehouse": _fill_up(1_000_000),
}

POINTS = KILLS | LOSSES
