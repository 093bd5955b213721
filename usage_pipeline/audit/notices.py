"""What deserves a look and forbids nothing, and how the last audit ended.

Judged in one place for the checks in the Dagster UI, for `status` and for the end of a rollup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from usage_pipeline.app_db.schema_drift import recent_changes
from usage_pipeline.infra.disk import replace_text
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.transform import NodeResult

SHOWN_FOR = timedelta(days=7)  # a change of the source, an unknown type
WEEKS_COMPARED = 4
FEWEST, MOST = 0.5, 2.0  # of the median of the same weekday
_TYPES_SHOWN = 5
ALERTS_ARE_RAISED = "alerts_are_raised"


@dataclass(frozen=True)
class RowCount:
    """The events of the newest landed day, and how many are usual on its weekday; `day` and
    `usual` are None when there is none to look at or to compare with."""

    day: date | None
    rows: int
    usual: float | None

    @property
    def is_usual(self) -> bool:
        return self.usual is None or FEWEST * self.usual <= self.rows <= MOST * self.usual


def row_count(settings: Settings) -> RowCount:
    """The newest landed day beside the same weekday of the weeks before."""
    manifests = landed_manifests(settings)
    newest = max(manifests, default=None)
    if newest is None:
        return RowCount(None, 0, None)
    weeks = [newest - timedelta(weeks=n) for n in range(1, WEEKS_COMPARED + 1)]
    before = [manifests[day].rows for day in weeks if day in manifests]
    return RowCount(newest, manifests[newest].rows, median(before) if before else None)


def unknown_event_types(settings: Settings) -> list[tuple[str, int, date, date]]:
    """Published events set aside for their type and first seen no longer ago than `SHOWN_FOR`:
    type, events, first and last day; most events first."""
    if not published.exists(settings):
        return []
    with published.reading(settings) as db:
        return db.execute(
            "select event_type, count(*), min(usage_date), max(usage_date) "
            "from invalid_usage_events where reason = 'event_type is not known' "
            "and detected_at >= ? group by event_type order by 2 desc, 1",
            [datetime.now(UTC) - SHOWN_FOR],
        ).fetchall()


def record_audit(settings: Settings, results: Iterable[NodeResult]) -> None:
    """Keep what did not pass, for `notices`."""
    failed = {r.name: [r.status, r.failures] for r in results if r.status != "pass"}
    content = {"audited_at": datetime.now(UTC).isoformat(), "not_passed": failed}
    replace_text(settings, settings.audit_path, json.dumps(content, indent=1))


def record_alerts(settings: Settings, snapshot_id: str, failure: str = "") -> None:
    """Keep what was compared with limits last, or why it could not be, for `notices`."""
    content = {"snapshot_id": snapshot_id, "failure": failure}
    replace_text(settings, settings.alerts_path, json.dumps(content, indent=1))


def alerts_not_raised(settings: Settings) -> str:
    """Why what is published was not compared with limits; empty when it was."""
    last = _read(settings.alerts_path)
    if not last or not published.exists(settings):
        return ""
    if last["failure"]:
        return str(last["failure"])
    with published.reading(settings) as db:
        judged = db.execute("select snapshot_id from snapshot").fetchall()
    unlike = judged != [(last["snapshot_id"],)]
    return "the last publish was not compared with limits; the next rollup does that" * unlike


def notices(settings: Settings) -> list[str]:
    """A line for each test that the last audit did not pass, and for each look that found
    something unusual; by the names that the checks have in the UI."""
    found = [
        f"{name}: "
        + ("gave no result" if rows is None else f"{rows:,} {'row' if rows == 1 else 'rows'}")
        + ("" if status == "warn" else ", blocks publishing")
        for name, (status, rows) in sorted(_last_audit(settings).items())
    ]
    counted = row_count(settings)
    if not counted.is_usual:
        found.append(
            f"row_count_is_usual: {counted.day} has {counted.rows:,} events, "
            f"{counted.usual:,.0f} are usual"
        )
    if failure := alerts_not_raised(settings):
        found.append(f"{ALERTS_ARE_RAISED}: {failure}")
    for change in recent_changes(settings, SHOWN_FOR):
        found.append(f"source_schema_is_unchanged: {change.change}")
    unknown = unknown_event_types(settings)
    for kind, events, first, last in unknown[:_TYPES_SHOWN]:
        found.append(f"event_types_are_known: {events:,} of {kind!r}, {first} to {last}")
    if unknown[_TYPES_SHOWN:]:
        found.append(f"event_types_are_known: {len(unknown[_TYPES_SHOWN:]):,} more types")
    return found


def _last_audit(settings: Settings) -> dict[str, tuple[str, int | None]]:
    return dict(_read(settings.audit_path).get("not_passed", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
