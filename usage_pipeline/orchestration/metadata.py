"""What a materialisation shows in the UI: rows, a preview, a small plot. Reads, never writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb

from usage_pipeline.alerts.delivery import DeliveryReport
from usage_pipeline.alerts.events import spelled
from usage_pipeline.alerts.limits import SHOWN, AlertReport
from usage_pipeline.audit.freshness import Freshness
from usage_pipeline.days import DayRange
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving.views import VIEWS
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer

PREVIEW_ROWS = 5
REASONS_SHOWN = 20
_BARS = "▁▂▃▄▅▆▇█"
_DATE_COLUMNS = ("usage_date", "metric_date", "month")
# What the application wrote there may be about a person, and Dagster keeps its log for ever.
_FREE_FORM_COLUMNS = ("event_data", "value_text", "quantity_raw", "name")
_UUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.I)


def sparkline(numbers: Sequence[int | Decimal], width: int = 60) -> str:
    """The last `width` numbers as a line of bars."""
    shown = list(numbers)[-width:]
    top = max(shown, default=0) or 1
    return "".join(_BARS[int(n / top * (len(_BARS) - 1))] for n in shown)


def freshness_metadata(seen: Freshness) -> dict[str, Any]:
    """What the check of freshness shows."""
    return {
        "newest day": str(seen.newest),
        "days behind": 0 if seen.fresh else len(seen.missing.days()),
        "verdict": str(seen),
    }


def alerts_metadata(report: AlertReport) -> dict[str, Any]:
    """What a look at the limits found; no ids."""
    thresholds = [
        (metric, f"{spelled(share * 100)}%", rows) for metric, share, rows in report.by_threshold
    ]
    remark = report.skipped or ("first look: recorded, nobody is told" if report.silent else "")
    return {
        "dagster/row_count": report.rows,
        "raised": report.raised,
        "resolved": report.resolved,
        "crossed again": report.recrossed,
        "messages": report.messages,
        "raised by threshold": dg.MetadataValue.md(
            _markdown(("metric", "threshold", "raised"), thresholds)
        ),
        "preview": dg.MetadataValue.md(_markdown(SHOWN, report.newest)),
        **({"remark": remark} if remark else {}),
    }


def delivery_metadata(report: DeliveryReport) -> dict[str, Any]:
    """What one run of sending came to; no id, no address."""
    return {
        "dagster/row_count": report.delivered,
        "delivered": report.delivered,
        "to be sent again": report.failed,
        "given up": report.dead,
        "not to be sent": report.skipped,
        "seconds": report.seconds,
        "why not": dg.MetadataValue.md(
            _markdown(("reason", "times"), report.reasons.most_common(REASONS_SHOWN))
        ),
    }


def table_metadata(rollup: Rollup, tables: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows and a preview of each table of the warehouse; of a staging view, neither."""
    found: dict[str, dict[str, Any]] = {table: {} for table in tables}
    with _reading(rollup) as db:
        for table in tables:
            if table.startswith("stg_"):
                continue
            rows = db.execute(f"select count(*) from {table}").fetchall()[0][0]
            columns = _shown_columns(db, table)
            preview = db.execute(
                f"select {', '.join(columns)} from {table} limit {PREVIEW_ROWS}"
            ).fetchall()
            found[table] = _rows_and_preview(rows, columns, preview)
        if "usage_forecast_models" in found:
            found["usage_forecast_models"]["platform"] = dg.MetadataValue.md(_forecasts(db))
        if "usage_forecast_accuracy" in found:
            found["usage_forecast_accuracy"]["errors"] = dg.MetadataValue.md(_accuracy(db))
        if "usage_limits_monthly" in found:
            found["usage_limits_monthly"]["status"] = dg.MetadataValue.md(_limits(db))
        if "usage_anomalies" in found:
            found["usage_anomalies"]["by day"] = dg.MetadataValue.md(anomalies_by_day(db))
    return found


def _limits(db: duckdb.DuckDBPyConnection) -> str:
    """Of each meter how many users, members and organisations are how close to their limits in the
    running month: a bar of ten is all."""
    rows = db.execute(
        "select metric_type, count(*) filter (status = 'ok'), count(*) filter (status = 'warning'),"
        " count(*) filter (status = 'exceeded'), count(*) filter (status is null), count(*)"
        " from usage_limits_monthly"
        " where month = (select date_trunc('month', max(usage_date)) from stg_landed_days)"
        " group by metric_type order by metric_type"
    ).fetchall()
    lines = [
        (
            metric,
            f"{'█' * round(10 * ok / every)} {ok:,}",
            *(f"{number:,} ({number / every:.1%})" for number in (warning, exceeded)),
            f"{unknown:,}",
        )
        for metric, ok, warning, exceeded, unknown, every in rows
    ]
    heading = ("meter", "below 80 %", "from 80 %: warning", "from 100 %: exceeded", "unknown")
    return _markdown(heading, lines)


def anomalies_by_day(db: duckdb.DuckDBPyConnection) -> str:
    """Of each scope how many odd days were found on which day, drawn to one height."""
    rows = db.execute("""
        with days as (
            select usage_date from stg_landed_days
            where usage_date > (select max(usage_date) - 60 from stg_landed_days)
        ),
        scopes as (select distinct scope from usage_anomalies)
        select scope, list(found order by usage_date), sum(found)
        from (
            select scopes.scope, days.usage_date, count(odd.scope) as found
            from days cross join scopes
            left join usage_anomalies as odd
                on odd.usage_date = days.usage_date and odd.scope = scopes.scope
            group by all
        ) group by scope order by scope
    """).fetchall()
    lines = [(scope, sparkline(found), f"{number:,}") for scope, found, number in rows]
    return _markdown(("scope", "60 days", "odd days found"), lines)


def _forecasts(db: duckdb.DuckDBPyConnection) -> str:
    """Of each meter the platform's last weeks and what the next days are expected to have, drawn to
    one height."""
    (view,) = (view for view in VIEWS if view.name == "usage_forecast")
    rows = db.execute(f"""
        with days as (
            select metric_type, usage_date as day, greatest(total_quantity, 0) as quantity
            from platform_usage_daily
            where usage_date > (select max(usage_date) - 28 from stg_landed_days)
            union all
            select metric_type, forecast_date, expected
            from ({view.definition("json", "")}) where scope = 'platform'
        )
        select metric_type,
               coalesce(list(quantity order by day) filter (day <= last_day), []),
               coalesce(list(quantity order by day) filter (day > last_day), [])
        from days cross join (select max(usage_date) as last_day from stg_landed_days)
        group by metric_type order by metric_type
    """).fetchall()
    lines = []
    for metric, past, coming in rows:
        drawn = sparkline([*past, *coming])
        lines.append((metric, drawn[: len(past)], drawn[len(past) :] or "too few days"))
    return _markdown(("meter", "28 days", "30 days expected"), lines)


def _accuracy(db: duckdb.DuckDBPyConnection) -> str:
    """Of each scope how far forecasts were from what came: a bar of ten is the error of an ordinary
    week from the one before."""
    rows = db.execute(
        "select scope, horizon, sum(mase * series) / sum(series),"
        " sum(naive_mase * series) / sum(series), sum(coverage * series) / sum(series), sum(series)"
        " from usage_forecast_accuracy group by scope, horizon order by scope, horizon"
    ).fetchall()
    lines = [
        (
            scope,
            f"{horizon} days ahead",
            f"{'█' * round(mase * 10)} {mase:.2f}",
            f"{'█' * round(naive * 10)} {naive:.2f}",
            f"{within:.0%}",
            f"{series:,}",
        )
        for scope, horizon, mase, naive, within, series in rows
    ]
    heading = ("scope", "forecast", "error (MASE)", "of seasonal naive", "in the band", "series")
    return _markdown(heading, lines)


def landed_previews(
    settings: Settings, landed: Mapping[str, Sequence[Path]]
) -> dict[str, dict[str, Any]]:
    """A preview by name of what stands in landed files; none where there is no file."""
    found: dict[str, dict[str, Any]] = {}
    with open_duckdb(settings, ":memory:") as db:
        for name, files in landed.items():
            if files:
                listed = ", ".join(f"'{quoted(file)}'" for file in files)
                rows = f"read_parquet([{listed}])"
                columns = _shown_columns(db, f"select * from {rows}")
                preview = db.execute(
                    f"select {', '.join(columns)} from {rows} limit {PREVIEW_ROWS}"
                ).fetchall()
                found[name] = {"preview": dg.MetadataValue.md(_markdown(columns, preview))}
    return found


def partition_metadata(
    rollup: Rollup, tables: Sequence[str], ranges: Sequence[DayRange]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows and a preview by table and day or month of the ranges: two queries a table, and one a
    partition of a view."""
    inside = " or ".join("{0} >= ? and {0} < ?" for _ in ranges)
    bounds = [bound for days in ranges for bound in days]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with _reading(rollup) as db:
        views = {name for (name,) in db.execute("select view_name from duckdb_views()").fetchall()}
        for table in tables:
            columns = _shown_columns(db, table)
            dated = next((c for c in _DATE_COLUMNS if c in columns), None)
            if dated is None:
                found[table] = {}
                continue
            counts = db.execute(
                f"select {dated}, count(*), {'null' if table in views else 'min(rowid)'}"
                f" from {table} where {inside.format(dated)} group by 1",
                bounds,
            ).fetchall()
            shown = f"select {dated}, {', '.join(columns)} from {table} where"
            if table in views:  # without numbered rows
                looked_at = [
                    row
                    for day, *_ in counts
                    for row in db.execute(
                        f"{shown} {dated} = ? limit {PREVIEW_ROWS}", [day]
                    ).fetchall()
                ]
            else:
                # A partition is written at once, so that the rows after its first are its own.
                numbers = [first + n for *_, first in counts for n in range(PREVIEW_ROWS)]
                looked_at = db.execute(
                    f"{shown} ({inside.format(dated)}) and rowid in (select unnest(?))"
                    " order by rowid",
                    [*bounds, numbers],
                ).fetchall()
            previews: dict[Any, list[Sequence[Any]]] = {day: [] for day, *_ in counts}
            for day, *row in looked_at:
                if day in previews:
                    previews[day].append(row)
            found[table] = {
                day.isoformat(): _rows_and_preview(rows, columns, previews[day])
                for day, rows, _ in counts
            }
    return found


@contextmanager
def _reading(rollup: Rollup) -> Iterator[duckdb.DuckDBPyConnection]:
    settings = rollup.settings
    with (
        writer.exclusive(settings, "reading previews"),
        open_duckdb(settings, settings.warehouse_path, read_only=True) as db,
    ):
        yield db


def _shown_columns(db: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    described = db.execute(f"describe {table}").fetchall()
    return [column for column, *_ in described if column not in _FREE_FORM_COLUMNS]


def _rows_and_preview(
    rows: int, columns: Sequence[str], preview: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    return {
        "dagster/row_count": rows,
        "preview": dg.MetadataValue.md(_markdown(columns, preview)),
    }


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose ids are numbered, so that they identify nobody: a part of one would."""
    numbers: dict[str, int] = {}

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"

    table = "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
    return _UUID.sub(
        lambda found: f"id {numbers.setdefault(found[0].lower(), len(numbers) + 1)}", table
    )
