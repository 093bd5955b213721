"""Reconciliation: is what is published what the source says? Per day and metric, three sides.

Source and landing are evaluated by the models that make `usage_daily`, run in memory over other
files; so every meter is compared as it is counted. Contents are compared by a hash whose sum does
not depend on order, which finds changes that leave counts and sums as they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb

from usage_pipeline.app_db.fingerprints import source_totals
from usage_pipeline.days import DayRange
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import exact_sum, open_duckdb, quoted
from usage_pipeline.landing.extraction import extract_events
from usage_pipeline.landing.landed_days import Manifest, data_files, landed_manifests
from usage_pipeline.meters.meter import Meter
from usage_pipeline.serving import published
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.transform import LANDED_FILES

EVENTS_A_BATCH = 2_000_000
DAYS_A_BATCH = 200
PLACES_SHOWN = 3

_FIGURES = (
    "usage_date",
    "metric_type",
    "source_events",
    "landed_events",
    "published_events",
    "source_sum",
    "landed_sum",
    "published_sum",
    "matches",
)
_FIGURE_TYPES = ("date", "varchar", *["bigint"] * 3, *["decimal(38, 9)"] * 3, "boolean")
_CELL = "usage_date, user_id, org_id, metric_type, total_quantity, event_count"
# The text of rounded quantities is left out: older releases did not land it.
_RAW = "case when quantity is null then quantity_raw end"
_CONTENT = f"id, user_id, org_id, event_type, event_data, quantity, {_RAW}, created_at"


@dataclass(frozen=True)
class Line:
    """One day of one metric on three sides: events counted, and the sum of the users' quantities.

    Attributes:
        metric_type: None for events that no meter counts, such as invalid ones; there is such a
            line only where they differ.
        source_events, source_sum: None where the source was not asked.
        landed_sum, published_sum: like source_sum, None where a total has more than 29 digits.
        matches: False when events, sums, users' numbers or contents differ between any two of the
            sides; None when those asked agree and the source was not asked.
        users: ids of some of the users whose events or numbers differ.
    """

    usage_date: date
    metric_type: str | None
    source_events: int | None
    landed_events: int
    published_events: int
    source_sum: Decimal | None
    landed_sum: Decimal | None
    published_sum: Decimal | None
    matches: bool | None
    users: tuple[str, ...] = ()


def reconcile(
    settings: Settings,
    models: Mapping[str, str],
    meters: Sequence[Meter],
    days: DayRange,
    progress: Callable[[date], None] = lambda day: None,
) -> list[Line]:
    """Read days from the source again, and compare them with landing and the published snapshot.

    All days are read from one snapshot of the source, each by one index range scan.

    Args:
        models: `usage_daily` and what it is made of, see `Transformer.usage_daily_models`.
        meters: as loaded; they say which metric an event type belongs to.
        progress: called with each day that was read.

    Raises:
        UsagePipelineError: the source cannot be read.
    """
    batch: list[Manifest] = []
    lines: list[Line] = []

    def compare() -> None:
        lines.extend(_compare_with_source(settings, work, models, meters, _days(batch)))
        batch.clear()
        for partition in work.iterdir():
            shutil.rmtree(partition)

    def extracted(manifest: Manifest) -> None:
        batch.append(manifest)
        progress(date.fromisoformat(manifest.usage_date))
        # While the source's transaction is open: only the files of one batch are on disk.
        if sum(m.rows for m in batch) >= EVENTS_A_BATCH or len(batch) >= DAYS_A_BATCH:
            compare()

    with scratch(settings) as work:
        extract_events(settings, days.days(), work, extracted)
        if batch:
            compare()
    return lines


def check_built(
    settings: Settings,
    models: Mapping[str, str],
    meters: Sequence[Meter],
    ranges: Sequence[DayRange],
) -> list[Line]:
    """Compare landing with the built days before they are published, and note it in the warehouse.

    Meanwhile the source is asked, by one grouped query over the days of the look-back window, for
    the meters whose events and sums Postgres can tell from event type and quantity. What it is
    asked for is less than `reconcile` asks, because a night should read its events once.

    Args:
        models, meters: as for `reconcile`.
        ranges: the built days. The caller is the single writer.
    """
    counted_at_source = {
        meter.key: meter
        for meter in meters
        if meter.counts_every_event and meter.aggregation in ("sum", "count")
    }
    with ThreadPoolExecutor(1) as asking:
        source = asking.submit(source_totals, settings, _recent(settings, ranges))
        built = compare_built(settings, models, ranges)
        lines = [_asked_at_source(line, source.result(), counted_at_source) for line in built]
    _note(settings, ranges, lines)
    return lines


def compare_built(
    settings: Settings, models: Mapping[str, str], ranges: Sequence[DayRange]
) -> list[Line]:
    """Compare landing with the built days, in the warehouse."""
    lines = []
    for batch in _batches(settings, ranges):
        with open_duckdb(settings, ":memory:") as db:
            _evaluate(db, models, _files(settings.events_dir, batch), "landed")
            # Under its own name, which its views hold, and only now, since the other had it too.
            db.execute(f"attach '{quoted(settings.warehouse_path)}' as warehouse (read_only)")
            db.execute(
                f"create view published as select {_CELL} from warehouse.main.usage_daily"
                f" where usage_date in ({_dates(batch)})"
            )
            differing = _cells_that_differ(db, "landed", "published")
            lines += _lines(db, ("landed", "published"), differing)
    return lines


def _asked_at_source(
    line: Line,
    source: Mapping[date, Mapping[str, tuple[int, Decimal]]],
    meters: Mapping[str, Meter],
) -> Line:
    meter = meters.get(line.metric_type or "")
    if meter is None or line.usage_date not in source:
        return replace(line, matches=None if line.matches else False)
    events: int
    total: Decimal | None
    events, total = source[line.usage_date].get(meter.event_type, (0, Decimal(0)))
    if meter.aggregation == "count":
        total = Decimal(events)
    if line.landed_sum is None:
        total = None
    same = (events, total) == (line.landed_events, line.landed_sum)
    return replace(
        line, source_events=events, source_sum=total, matches=bool(line.matches) and same
    )


def _compare_with_source(
    settings: Settings,
    work: Path,
    models: Mapping[str, str],
    meters: Sequence[Meter],
    days: Sequence[date],
) -> list[Line]:
    with published.as_served(settings) as served, open_duckdb(settings, ":memory:") as db:
        db.execute(f"attach '{quoted(served)}' as snapshot (read_only)")
        read, landed = _files(work, days), _files(settings.events_dir, days)
        _evaluate(db, models, read, "source")
        _evaluate(db, models, landed, "landed")
        db.execute(
            f"create view published as select {_CELL} from snapshot.usage_daily"
            f" where usage_date in ({_dates(days)})"
        )
        differing = [
            *_cells_that_differ(db, "source", "landed"),
            *_cells_that_differ(db, "landed", "published"),
            *_contents_that_differ(db, read, landed, meters),
        ]
        return _lines(db, ("source", "landed", "published"), differing)


_NO_CELLS = (
    "(select null::date, null::uuid, null::uuid, null::varchar, null::decimal(38, 9), null::bigint"
    f" where false) as nothing ({_CELL})"
)

# Day, metric and user of something that differs.
_Place = tuple[date, str | None, str]


def _evaluate(
    db: duckdb.DuckDBPyConnection, models: Mapping[str, str], files: Sequence[Path], target: str
) -> None:
    """Create the table `target`: the cells of `usage_daily` as the models make them of files."""
    if not files:
        db.execute(f"create table {target} as select {_CELL} from {_NO_CELLS}")
        return
    db.execute("attach ':memory:' as warehouse")
    for statement in models.values():
        db.execute(statement.replace(LANDED_FILES, _listed(files)))
    db.execute(f"create table {target} as select {_CELL} from warehouse.main.usage_daily")
    db.execute("detach warehouse")


def _cells_that_differ(db: duckdb.DuckDBPyConnection, left: str, right: str) -> list[_Place]:
    """Users with another number on the other side, or with none."""
    return db.execute(f"""
        select distinct usage_date, metric_type, coalesce(cast(user_id as varchar), 'no user')
        from (
            select 1 as side, {_CELL} from {left}
            union all
            select -1 as side, {_CELL} from {right}
        )
        group by {_CELL}
        having sum(side) <> 0
    """).fetchall()


def _contents_that_differ(
    db: duckdb.DuckDBPyConnection,
    read: Sequence[Path],
    landed: Sequence[Path],
    meters: Sequence[Meter],
) -> list[_Place]:
    """Users whose events differ between source and landing, whatever counts and sums say."""
    rows = [
        f"select {sign} * cast(hash({_CONTENT}) as hugeint) as content, "
        "usage_date, event_type, user_id "
        f"from {landed_events(_listed(files))}"
        for sign, files in ((1, read), (-1, landed))
        if files
    ]
    if not rows:
        return []
    found = db.execute(f"""
        select usage_date, event_type, coalesce(cast(user_id as varchar), 'no user')
        from ({" union all ".join(rows)})
        group by usage_date, event_type, user_id
        having sum(content) <> 0
    """).fetchall()
    metrics: dict[str, list[str | None]] = {}
    for meter in meters:
        metrics.setdefault(meter.event_type, []).append(meter.key)
    return [
        (day, metric, user)
        for day, event_type, user in found
        for metric in metrics.get(event_type, [None])
    ]


def _lines(
    db: duckdb.DuckDBPyConnection, sides: Sequence[str], differing: Sequence[_Place]
) -> list[Line]:
    """A line per day and metric found on any of the sides, or named as differing."""
    union = " union all ".join(f"select '{side}' as side, * from {side}" for side in sides)
    sums = ", ".join(
        f"coalesce(sum(event_count) filter (side = '{side}'), 0)::bigint, "
        + exact_sum(f"(case when side = '{side}' then total_quantity else 0 end)")
        for side in ("source", "landed", "published")
    )
    query = (
        f"select usage_date, metric_type, {sums} from ({union}) group by usage_date, metric_type"
    )
    figures = {(day, metric): found for day, metric, *found in db.execute(query).fetchall()}
    users: dict[tuple[date, str | None], set[str]] = {}
    for day, metric, user in differing:
        users.setdefault((day, metric), set()).add(user)
    nothing = [0, Decimal(0)] * 3
    lines = []
    for key in sorted({*figures, *users}, key=lambda key: (key[0], key[1] or "")):
        events, total, landed, landed_sum, published, published_sum = figures.get(key, nothing)
        lines.append(
            Line(
                usage_date=key[0],
                metric_type=key[1],
                source_events=events if "source" in sides else None,
                landed_events=landed,
                published_events=published,
                source_sum=total if "source" in sides else None,
                landed_sum=landed_sum,
                published_sum=published_sum,
                matches=key not in users,
                users=tuple(sorted(users.get(key, ()))[:PLACES_SHOWN]),
            )
        )
    return lines


def _note(settings: Settings, ranges: Sequence[DayRange], lines: Sequence[Line]) -> None:
    """Replace the days' rows in the warehouse; equal figures keep their first time."""
    with open_duckdb(settings, settings.warehouse_path) as db:
        published.attach(settings, db)
        db.execute(
            "create table if not exists usage_reconciliation as"
            " from published.main.usage_reconciliation limit 0"
        )
        db.execute("begin")
        for start, end in ranges:
            db.execute(
                "delete from usage_reconciliation where usage_date >= ? and usage_date < ?",
                [start, end],
            )
        unnested = ", ".join(f"unnest(?::{kind}[])" for kind in _FIGURE_TYPES)
        same = " and ".join(f"now.{c} is not distinct from before.{c}" for c in _FIGURES)
        db.execute(
            f"""
            insert into usage_reconciliation
            select now.*, coalesce(before.checked_at, current_timestamp)
            from (select {unnested}) as now ({", ".join(_FIGURES)})
            left join published.main.usage_reconciliation as before on {same}
            """,
            [[getattr(line, name) for line in lines] for name in _FIGURES],
        )
        db.execute("commit")


def _batches(settings: Settings, ranges: Sequence[DayRange]) -> Iterator[list[date]]:
    """The days of the ranges, so many together that their cells fit into memory."""
    manifests = landed_manifests(settings)
    batch: list[date] = []
    rows = 0
    for day in (day for days in ranges for day in days.days()):
        more = manifests[day].rows if day in manifests else 0
        if batch and (rows + more > EVENTS_A_BATCH or len(batch) >= DAYS_A_BATCH):
            yield batch
            batch, rows = [], 0
        batch.append(day)
        rows += more
    if batch:
        yield batch


def _recent(settings: Settings, ranges: Sequence[DayRange]) -> list[DayRange]:
    """The ranges' part within the look-back window: a source may have dropped older events."""
    first = settings.today() - timedelta(days=settings.lookback_days)
    return [DayRange(max(r.start, first), r.end) for r in ranges if r.end > first]


def _days(batch: Sequence[Manifest]) -> list[date]:
    return [date.fromisoformat(manifest.usage_date) for manifest in batch]


def _files(folder: Path, days: Sequence[date]) -> list[Path]:
    """The days' files; a day that was never landed has none."""
    return [path for day in days for path in data_files(folder, day)]


def _listed(files: Sequence[Path]) -> str:
    return "[" + ", ".join(f"'{quoted(path)}'" for path in files) + "]"


def _dates(days: Sequence[date]) -> str:
    return ", ".join(f"date '{day}'" for day in days)
