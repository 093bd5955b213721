"""Changes of the meters file: what they would do to published totals, and the rebuild that does it.

The plan builds the meters that differ, and no others, in a warehouse of its own over the landed
days. It takes no lock, and nights go on meanwhile.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import duckdb

from usage_pipeline.days import DayRange, merge_ranges, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.meters.comparison import Comparison, compare_meters
from usage_pipeline.meters.file import parse_meters
from usage_pipeline.meters.meter import Meter
from usage_pipeline.meters.version import meters_version, read_meters
from usage_pipeline.publishing.publisher import PublishReport
from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.rollup import Rollup, passes
from usage_pipeline.serving import as_of, published
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.transform import Transformer

PUBLISHED = "published"
EXAMPLES = 3  # a metric
_DAILY = "+usage_partials_daily +usage_values_daily"
_MONTHLY = "usage_partials_monthly usage_values_monthly usage_monthly platform_usage_monthly"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MonthChange:
    """What becomes of one metric in one month: rows of `usage_monthly`, and platform totals, which
    are None where there are none, or more than 29 integer digits."""

    metric: str
    month: date
    added: int
    removed: int
    changed: int
    old_total: Decimal | None
    new_total: Decimal | None


@dataclass(frozen=True)
class Example:
    """A row that would change; None where there is none."""

    metric: str
    month: date
    user_id: UUID | None
    org_id: UUID | None
    old_quantity: Decimal | None
    new_quantity: Decimal | None


@dataclass(frozen=True)
class Plan:
    """What a meters file would do.

    Attributes:
        comparison: with the meters of what is published; None where it does not say by which it
            was made, so that all are built.
        months: that change, by metric and month.
        unlike: published days that are not landed, or have other events or another sum: they
            differ for other reasons as well.
    """

    comparison: Comparison | None
    months: list[MonthChange]
    examples: list[Example]
    unlike: list[DayRange]


def published_meters(settings: Settings) -> list[Meter] | None:
    """The meters that what is published was made with; None where that is not recorded.

    Raises:
        UsagePipelineError: nothing is published.
    """
    with published.reading(settings) as db:
        row = db.execute(
            f"select {as_of.meters_of('publish')}"
            " from snapshot left join usage_snapshots as publish using (snapshot_id)"
        ).fetchone()
    if row is None:
        raise UsagePipelineError("Nothing is published", "Publish it with `usage-pipeline rollup`")
    return read_meters(row[0]) if row[0] else None


def meters_of(settings: Settings, revision: str) -> list[Meter]:
    """The meters of a file, of a git revision of `USAGE_METERS_FILE`, or of what is `published`.

    Raises:
        UsagePipelineError: there is no such version, or it is not valid.
    """
    if revision == PUBLISHED:
        meters = published_meters(settings)
        if meters is None:
            raise UsagePipelineError(
                "What is published does not say by which meters it was made",
                "Roll up once with this release, or name a file or a git revision",
            )
        return meters
    if Path(revision).is_file():
        return parse_meters(Path(revision))
    file = settings.meters_file
    shown = subprocess.run(
        ["git", "-C", str(file.parent), "show", "--end-of-options", f"{revision}:./{file.name}"],
        capture_output=True,
        check=False,
    )
    if shown.returncode:
        said = shown.stderr.decode(errors="replace").strip().splitlines() or ["git failed"]
        raise UsagePipelineError(
            f"{revision!r} is no file, and no revision of {file} ({said[0]})",
            f"Name a file, a git revision, or `{PUBLISHED}`",
        )
    with scratch(settings) as work:
        copy = work / f"{file.name} of {revision.replace('/', '_')}"
        copy.write_bytes(shown.stdout)
        return parse_meters(copy)


def plan(settings: Settings, new: Sequence[Meter], progress: Progress) -> Plan:
    """What meters would do to published totals. Changes nothing, and waits for nobody.

    Raises:
        UsagePipelineError: nothing is published, or landing changed while it was read.
    """
    old = published_meters(settings)
    comparison = None if old is None else compare_meters(old, new)
    built = (
        list(new)
        if comparison is None
        else [*comparison.added, *(meter for _, meter in comparison.redefined)]
    )
    renamed = {} if comparison is None else {b.key: a.key for a, b in comparison.renamed}
    keys = {meter.key for meter in new}
    with scratch(settings) as work, open_duckdb(settings, ":memory:") as db:
        published.attach(settings, db)
        days, unlike = _days(settings)
        there = settings.model_copy(update={"home": work / "home"})
        there.home.mkdir()
        there.landing_dir.symlink_to(settings.landing_dir)
        if built and days:
            _build(there, built, days, progress)
            db.execute(f"attach '{quoted(there.warehouse_path)}' as warehouse (read_only)")
        _collect(db, built=bool(built and days), renamed=renamed)
        affected = sorted({meter.key for meter in built} | renamed.keys())
        gone = [k for (k,) in db.execute("select distinct metric_type from before").fetchall()]
        affected += [key for key in gone if key not in keys]
        return Plan(comparison, *_differences(db, affected), unlike)


def _days(settings: Settings) -> tuple[list[DayRange], list[DayRange]]:
    """The published days that can be built, and those that differ for other reasons than meters:
    they have other events than were published, or none."""
    known, landed = lost_events.published_days(settings), landed_manifests(settings)
    there = known.keys() & landed.keys() - lost_events.lost_days(settings)
    as_published = {
        day
        for day in there
        if known[day].events == landed[day].rows
        and known[day].sum_quantity in (None, Decimal(landed[day].sum_quantity))
    }
    return ranges_of_days(there), ranges_of_days(known.keys() - as_published)


def _build(
    there: Settings, meters: list[Meter], days: Sequence[DayRange], progress: Progress
) -> None:
    """Build these meters' days and months over what is landed."""
    ensure_snapshot(there)
    transformer = Transformer(there)
    transformer.meters = meters
    windows = list(passes(there, days))
    months = merge_ranges(window.whole_months() for window in windows)
    steps = [*((_DAILY, window) for window in windows), *((_MONTHLY, window) for window in months)]
    with transformer.timings.stage("models"):
        for done, (selection, window) in enumerate(steps):
            progress(f"building {window}", done, len(steps))
            transformer.run(selection, window)


_ROWS = "metric_type, month, user_id, org_id, total_quantity, event_count"
_TOTALS = "metric_type, month, total_quantity"


def _collect(db: duckdb.DuckDBPyConnection, *, built: bool, renamed: dict[str, str]) -> None:
    """Views of rows and totals `before` and `after`; what is renamed comes as it was."""
    for name, table, columns in (
        ("", "usage_monthly", _ROWS),
        ("_totals", "platform_usage_monthly", _TOTALS),
    ):
        db.execute(f"create temp view before{name} as select {columns} from published.main.{table}")
        after = [
            f"select '{new}' as {columns} from published.main.{table} where metric_type = '{old}'"
            for new, old in renamed.items()
        ]
        if built:
            after.append(f"select {columns} from warehouse.main.{table}")
        nothing = f"select {columns} from published.main.{table} where false"
        db.execute(f"create temp view after{name} as {' union all '.join([*after, nothing])}")


def _differences(
    db: duckdb.DuckDBPyConnection, affected: Sequence[str]
) -> tuple[list[MonthChange], list[Example]]:
    db.execute(
        """
        create temp table differing as
        select coalesce(a.metric_type, b.metric_type) as metric,
               coalesce(a.month, b.month) as month,
               coalesce(a.user_id, b.user_id) as user_id, coalesce(a.org_id, b.org_id) as org_id,
               b.total_quantity as old_quantity, a.total_quantity as new_quantity,
               b.metric_type is null as added, a.metric_type is null as removed
        from (from before where list_contains($1::varchar[], metric_type)) as b
        full join (from after where list_contains($1::varchar[], metric_type)) as a
            on a.metric_type = b.metric_type and a.month = b.month
                and a.user_id is not distinct from b.user_id
                and a.org_id is not distinct from b.org_id
        where a.total_quantity is distinct from b.total_quantity
            or a.event_count is distinct from b.event_count
        """,
        [list(affected)],
    )
    months = db.execute("""
        with months as (
            select metric, month, count(*) filter (added) as added,
                   count(*) filter (removed) as removed,
                   count(*) filter (not added and not removed) as changed
            from differing
            group by metric, month
        )
        select months.*, b.total_quantity, a.total_quantity
        from months
        left join before_totals as b on metric = b.metric_type and months.month = b.month
        left join after_totals as a on metric = a.metric_type and months.month = a.month
        order by metric, months.month
    """).fetchall()
    examples = db.execute(
        """
        select metric, month, user_id, org_id, old_quantity, new_quantity
        from differing
        qualify row_number() over (
            partition by metric
            order by abs(coalesce(new_quantity, 0) - coalesce(old_quantity, 0)) desc,
                     month desc, user_id, org_id
        ) <= ?
        order by metric, month, user_id, org_id
        """,
        [EXAMPLES],
    ).fetchall()
    return [MonthChange(*row) for row in months], [Example(*row) for row in examples]


def apply(rollup: Rollup) -> PublishReport:
    """Rebuild with the meters file as it is, and publish what differs.

    Everything is built anew from landing, as the next night would; only rows that differ are
    written to what readers see. The run's id names the version of the meters.

    Raises:
        UsagePipelineError: a blocking check fails, or a place cannot be written; what was
            published stays.
    """
    rollup.land_events(())  # days that were landed without what a meter reads
    rollup.build_staging()
    rollup.build_days(())
    report = rollup.publish(f"meters-{meters_version(rollup.transformer.meters)}")
    rollup.raise_alerts()
    rollup.announce_days()
    return report
