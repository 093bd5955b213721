"""The gate: what an audit's results say together, and whether they let publish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from usage_pipeline.audit.reconciliation import Line
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.warehouse.transform import NodeResult

# Results of the audit beside those of the dbt tests.
ROLLUP_EQUALS_LANDING = "rollup_equals_landing"
LANDING_EQUALS_SOURCE = "landing_equals_source"


def worst_results(of_ranges: Iterable[NodeResult]) -> dict[str, NodeResult]:
    """The worst result of each test, by its id, when tests ran over several ranges."""
    worst: dict[str, NodeResult] = {}
    for result in of_ranges:
        known = worst.get(result.unique_id)
        if known is None or _badness(result) > _badness(known):
            worst[result.unique_id] = result
    return worst


def _badness(result: NodeResult) -> tuple[int, int]:
    """How it ended first, then rows found."""
    order = ("pass", "warn", "skipped", "fail", "error")
    return order.index(result.status), result.failures or 0


def proof_results(lines: Sequence[Line], seconds: float) -> list[NodeResult]:
    """The proof of built days as two results: against landing, which blocks, and the source."""
    unlike_landing = [line for line in lines if line.users]
    unlike_source = [line for line in lines if line.matches is False and not line.users]
    return [
        NodeResult(
            unique_id=f"reconciliation.usage_pipeline.{name}",
            status="pass" if not found else status,
            seconds=seconds,
            failures=len(found),
            message=", ".join(f"{line.usage_date} {line.metric_type}" for line in found[:10]),
        )
        for name, status, found in (
            (ROLLUP_EQUALS_LANDING, "fail", unlike_landing),
            (LANDING_EQUALS_SOURCE, "warn", unlike_source),
        )
    ]


def blocking_failures(results: Iterable[NodeResult]) -> list[NodeResult]:
    """The results that forbid publishing; tests of severity `warn` never do."""
    return [result for result in results if result.status in ("fail", "error")]


def blocked(failures: Iterable[NodeResult]) -> UsagePipelineError:
    """What to tell an operator when tests forbid publishing."""
    return UsagePipelineError(
        f"Blocking checks failed: {', '.join(result.name for result in failures)}",
        "Read the checks in the Dagster UI; the previous snapshot stays published",
    )
