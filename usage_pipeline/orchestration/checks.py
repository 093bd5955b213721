"""Checks: the audit before publishing (every dbt test), freshness, row counts, source drift."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from statistics import median
from typing import Any

import dagster as dg

from usage_pipeline.app_db.schema_drift import recent_changes
from usage_pipeline.audit.freshness import DUE, freshness
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.landing.repairs import refusal, refused_days
from usage_pipeline.operations.status import unknown_event_types
from usage_pipeline.orchestration.assets import (
    USAGE_DAILY,
    WAREHOUSE_POOL,
    asset_key_of,
    one_line_failures,
)
from usage_pipeline.orchestration.metadata import freshness_metadata
from usage_pipeline.rollup import (
    LANDING_EQUALS_SOURCE,
    ROLLUP_EQUALS_LANDING,
    Rollup,
    blocking_failures,
)

GATE = "blocking_tests_pass"
GATE_ASSET = dg.AssetKey(["reporting", "usage_summary"])
FRESH = "yesterday_is_published"
FRESH_ASSET = dg.AssetKey(["publishing", "snapshot"])
RECONCILIATION = (
    (
        ROLLUP_EQUALS_LANDING,
        "error",
        "Per day and metric, events and sums of the built days, and every user's number, are what "
        "the landed files give. The figures are in usage_reconciliation.",
    ),
    (
        LANDING_EQUALS_SOURCE,
        "warn",
        "Per day and metric, events and sums of the built days are still the source's. Differs "
        "when events came after the extraction; the sensor late_events rolls such days up.",
    ),
)
WEEKS_COMPARED = 4
DRIFT_SHOWN = timedelta(days=7)
TYPES_SHOWN = 20
FEWEST, MOST = 0.5, 2.0  # of the median of the same weekday


def build_checks(rollup: Rollup) -> list[dg.AssetChecksDefinition]:
    """The audit as one step, and the checks of what the audit cannot see."""
    manifest = json.loads(rollup.transformer.manifest_path().read_text())
    specs = {
        unique_id: _spec(
            _tested_asset(manifest, node),
            node["name"],
            _described(node),
            node["config"]["severity"].lower(),
        )
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "test"
    } | {
        f"reconciliation.usage_pipeline.{name}": _spec(USAGE_DAILY, name, description, severity)
        for name, severity, description in RECONCILIATION
    }
    gate = dg.AssetCheckSpec(
        GATE,
        asset=GATE_ASSET,
        blocking=True,  # alone: blocking on each test would make the tests wait for each other
        description="No test of severity error failed; otherwise nothing is published.",
    )

    @dg.multi_asset_check(
        specs=[*specs.values(), gate], name="audit", pool=WAREHOUSE_POOL, can_subset=True
    )
    def audit(
        context: dg.AssetCheckExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.AssetCheckResult]:
        with one_line_failures():
            results = {result.unique_id: result for result in rollup.audit()}
        selected = context.selected_asset_check_keys
        for unique_id, spec in specs.items():
            if spec.key not in selected:
                continue
            result = results.get(unique_id)
            severe = spec.metadata["severity"] == "error"
            yield dg.AssetCheckResult(
                asset_key=spec.asset_key,
                check_name=spec.name,
                passed=result is not None and result.status == "pass",
                severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
                metadata=(
                    {"rows": result.failures or 0, "message": result.message}
                    if result
                    else {"message": "The audit gave no result of this test."}
                ),
            )
        if dg.AssetCheckKey(GATE_ASSET, GATE) in selected:
            failures = [result.name for result in blocking_failures(results.values())]
            yield dg.AssetCheckResult(
                asset_key=GATE_ASSET,
                check_name=GATE,
                passed=not failures,
                metadata={"failed": failures, "tests": len(results)},
            )

    @dg.asset_check(
        asset=FRESH_ASSET,
        name=FRESH,
        description=(
            f"What readers see includes yesterday in USAGE_TIMEZONE, from {DUE:%H:%M} on. Judged "
            "again every few minutes by the sensor published_is_fresh, whether runs happen or not."
        ),
    )
    def yesterday_is_published(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
        seen = freshness(rollup.settings)
        return dg.AssetCheckResult(passed=seen.fresh, metadata=freshness_metadata(seen))

    @dg.asset_check(
        asset=dg.AssetKey(["landing", "usage_events"]),
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
                    for day, m in refused.items()
                }
            },
        )

    @dg.asset_check(
        asset=dg.AssetKey(["landing", "usage_events"]),
        name="row_count_is_usual",
        description=(
            f"The newest day has {FEWEST} to {MOST} times the events of the median of the same "
            f"weekday in the {WEEKS_COMPARED} weeks before."
        ),
    )
    def row_count_is_usual(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
        manifests = landed_manifests(rollup.settings)
        newest = max(manifests, default=None)
        before = (
            [
                m.rows
                for day, m in manifests.items()
                if 0 < (newest - day).days <= 7 * WEEKS_COMPARED
                and day.weekday() == newest.weekday()
            ]
            if newest
            else []
        )
        usual = median(before) if before else None
        rows = manifests[newest].rows if newest else 0
        return dg.AssetCheckResult(
            passed=usual is None or FEWEST * usual <= rows <= MOST * usual,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"day": str(newest), "events": rows, "usual": usual or 0},
        )

    @dg.asset_check(
        asset=dg.AssetKey(["landing", "usage_events"]),
        name="source_schema_is_unchanged",
        description=(
            "No column, type or enum label of the tables that are read changed in the last "
            f"{DRIFT_SHOWN.days} days."
        ),
    )
    def source_schema_is_unchanged(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
        changes = recent_changes(rollup.settings, DRIFT_SHOWN)
        return dg.AssetCheckResult(
            passed=not changes,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"changes": {change.change: change.seen_at for change in changes}},
        )

    @dg.asset_check(
        asset=dg.AssetKey(["publishing", "snapshot"]),
        name="event_types_are_known",
        description=(
            f"No event first seen in the last {DRIFT_SHOWN.days} days was set aside because its "
            "event_type is not known."
        ),
    )
    def event_types_are_known(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
        unknown = unknown_event_types(rollup.settings, DRIFT_SHOWN)
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

    return [
        audit,
        yesterday_is_published,
        no_events_lost,
        row_count_is_usual,
        source_schema_is_unchanged,
        event_types_are_known,
    ]


def _spec(asset: dg.AssetKey, name: str, description: str, severity: str) -> dg.AssetCheckSpec:
    # The gate alone is `blocking` to Dagster, which would make these wait for each other.
    effect = "Blocks publishing." if severity == "error" else "Warns, and blocks nothing."
    return dg.AssetCheckSpec(
        name,
        asset=asset,
        description=f"{description} {effect}",
        metadata={"severity": severity},
    )


def _described(node: Mapping[str, Any]) -> str:
    """What a data test guards, in words; those of the generic ones follow from their arguments."""
    test = node.get("test_metadata") or {}
    arguments = test.get("kwargs", {})
    column = node.get("column_name")
    words = {
        "unique_grain": "No two rows share {columns}, and no part of it is null that may not be.",
        "accepted_values": "{column} is one of {values}.",
        "relationships": "Each {column} is known in {to}; others are of accounts that are gone.",
    }.get(test.get("name", ""), node.get("description") or "")
    return " ".join(
        words.format(
            column=column,
            columns=", ".join(arguments.get("columns", [])),
            values=", ".join(arguments.get("values", [])),
            to=str(arguments.get("to", "")).removeprefix("ref('").removesuffix("')"),
        ).split()
    )


def _tested_asset(manifest: Mapping[str, Any], node: Mapping[str, Any]) -> dg.AssetKey:
    models = [name for name in node["depends_on"]["nodes"] if name.startswith("model.")]
    tested = node.get("attached_node") or models[0]
    return asset_key_of(manifest["nodes"][tested])
