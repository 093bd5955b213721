"""The audit before publishing: every dbt test, the reconciliation, and the gate they form."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from usage_pipeline.audit.gate import (
    LANDING_EQUALS_SOURCE,
    ROLLUP_EQUALS_LANDING,
    blocked,
    blocking_failures,
)
from usage_pipeline.orchestration.dbt_nodes import described, tested_asset
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.names import USAGE_DAILY, WAREHOUSE_POOL
from usage_pipeline.rollup import Rollup
from usage_pipeline.warehouse.transform import NodeResult

GATE = dg.AssetCheckKey(dg.AssetKey(["reporting", "usage_summary"]), "blocking_tests_pass")
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


def audit(manifest: Mapping[str, Any]) -> dg.AssetChecksDefinition:
    """All of it as one step."""
    specs = _tests(manifest) | {
        f"reconciliation.usage_pipeline.{name}": _spec(USAGE_DAILY, name, description, severity)
        for name, severity, description in RECONCILIATION
    }
    gate = dg.AssetCheckSpec(
        GATE.name,
        asset=GATE.asset_key,
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
            if spec.key in selected:
                yield _result(spec, results.get(unique_id))
        if GATE in selected:
            failures = blocking_failures(results.values())
            yield dg.AssetCheckResult(
                asset_key=GATE.asset_key,
                check_name=GATE.name,
                passed=not failures,
                metadata={"failed": [failed.name for failed in failures], "tests": len(results)},
            )
            if failures:  # Dagster fails this step anyway, in words that name the gate alone
                with one_line_failures():
                    raise blocked(failures)

    return audit


def _tests(manifest: Mapping[str, Any]) -> dict[str, dg.AssetCheckSpec]:
    return {
        unique_id: _spec(
            tested_asset(manifest, node),
            node["name"],
            described(node),
            node["config"]["severity"].lower(),
        )
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "test"
    }


def _spec(asset: dg.AssetKey, name: str, description: str, severity: str) -> dg.AssetCheckSpec:
    # The gate alone is `blocking` to Dagster, which would make these wait for each other.
    effect = "Blocks publishing." if severity == "error" else "Warns, and blocks nothing."
    return dg.AssetCheckSpec(
        name,
        asset=asset,
        description=f"{description} {effect}",
        metadata={"severity": severity},
    )


def _result(spec: dg.AssetCheckSpec, result: NodeResult | None) -> dg.AssetCheckResult:
    severe = spec.metadata["severity"] == "error"
    return dg.AssetCheckResult(
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
