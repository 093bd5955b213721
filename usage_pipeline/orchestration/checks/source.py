"""What the source did that no total shows: it lost events, changed its tables, grew a type."""

import dagster as dg

from usage_pipeline.app_db.schema_drift import recent_changes
from usage_pipeline.audit.notices import (
    FEWEST,
    MOST,
    SHOWN_FOR,
    WEEKS_COMPARED,
    row_count,
    unknown_event_types,
)
from usage_pipeline.landing.lost_events import refusal, refused_days
from usage_pipeline.orchestration.names import LANDED_EVENTS, SNAPSHOT
from usage_pipeline.rollup import Rollup

TYPES_SHOWN = 20


@dg.asset_check(
    asset=LANDED_EVENTS,
    name="no_events_lost",
    description=(
        "No day keeps more events than the source has, because the source lost more of them "
        "than a correction may take away, or lost them before the look-back window."
    ),
)
def no_events_lost(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
    refused = refused_days(rollup.settings)
    return dg.AssetCheckResult(
        passed=not refused,
        description=str(refusal(refused.values())) if refused else None,
        metadata={
            "days": {
                str(day): f"has {m.rows:,} events, the source {m.refused_rows:,}"
                + ("; some are counted twice" if m.twice else "")
                for day, m in refused.items()
            }
        },
    )


@dg.asset_check(
    asset=LANDED_EVENTS,
    name="row_count_is_usual",
    description=(
        f"The newest day has {FEWEST} to {MOST} times the events of the median of the same "
        f"weekday in the {WEEKS_COMPARED} weeks before."
    ),
)
def row_count_is_usual(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
    counted = row_count(rollup.settings)
    return dg.AssetCheckResult(
        passed=counted.is_usual,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"day": str(counted.day), "events": counted.rows, "usual": counted.usual or 0},
    )


@dg.asset_check(
    asset=LANDED_EVENTS,
    name="source_schema_is_unchanged",
    description=(
        "No column, type or enum label of the tables that are read changed in the last "
        f"{SHOWN_FOR.days} days."
    ),
)
def source_schema_is_unchanged(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
    changes = recent_changes(rollup.settings, SHOWN_FOR)
    return dg.AssetCheckResult(
        passed=not changes,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"changes": {change.change: change.seen_at for change in changes}},
    )


@dg.asset_check(
    asset=SNAPSHOT,
    name="event_types_are_known",
    description=(
        f"No event first seen in the last {SHOWN_FOR.days} days was set aside because its "
        "event_type is not known."
    ),
)
def event_types_are_known(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
    unknown = unknown_event_types(rollup.settings)
    return dg.AssetCheckResult(
        passed=not unknown,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "events by type": {
                kind: f"{events} from {first} to {last}"
                for kind, events, first, last in unknown[:TYPES_SHOWN]
            },
            "unknown types": len(unknown),
        },
    )
