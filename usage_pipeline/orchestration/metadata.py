"""What a materialisation shows in the UI: rows, a preview, a small plot. Reads, never writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import dagster as dg

from usage_pipeline import warehouse
from usage_pipeline.freshness import Freshness
from usage_pipeline.rollup import Rollup
from usage_pipeline.warehouse import DayRange

PREVIEW_ROWS = 5
_BARS = "▁▂▃▄▅▆▇█"
_DATE_COLUMNS = ("usage_date", "metric_date", "month")
# What the application wrote there may be about a person, and Dagster keeps its log for ever.
_FREE_FORM_COLUMNS = ("event_data", "value_text")
_UUID = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I)


def sparkline(numbers: Sequence[int], width: int = 60) -> str:
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


def table_metadata(
    rollup: Rollup, tables: Sequence[str], days: DayRange | None
) -> dict[str, dict[str, Any]]:
    """Rows (in the window, for dated tables) and a preview of each table of the warehouse."""
    settings = rollup.settings
    found: dict[str, dict[str, Any]] = {}
    with (
        warehouse.exclusive(settings, "reading previews"),
        warehouse.connect(settings, settings.warehouse_path, read_only=True) as db,
    ):
        db.execute(f"attach '{settings.snapshot_path}' as published (read_only)")
        for table in tables:
            columns = [row[0] for row in db.execute(f"describe {table}").fetchall()]
            dated = next((c for c in _DATE_COLUMNS if c in columns), None)
            where, parameters = "", []
            if days and dated:
                where, parameters = f"where {dated} >= ? and {dated} < ?", [days.start, days.end]
            metadata: dict[str, Any] = {}
            if not table.startswith("stg_") and table != "usage_aggregations":
                rows = db.execute(f"select count(*) from {table} {where}", parameters).fetchall()
                metadata["dagster/row_count"] = rows[0][0]
                shown = [column for column in columns if column not in _FREE_FORM_COLUMNS]
                preview = db.execute(
                    f"select {', '.join(shown)} from {table} {where} limit {PREVIEW_ROWS}",
                    parameters,
                ).fetchall()
                metadata["preview"] = dg.MetadataValue.md(_markdown(shown, preview))
            found[table] = metadata
    return found


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose ids are shortened, so that they identify nobody."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"

    table = "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
    return _UUID.sub(r"\1…", table)
