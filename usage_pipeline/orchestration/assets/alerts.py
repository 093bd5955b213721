"""What follows from published numbers: who is told of a limit."""

from collections.abc import Iterator

import dagster as dg

from usage_pipeline.alerts import limits
from usage_pipeline.audit.notices import ALERTS_ARE_RAISED
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.metadata import alerts_metadata
from usage_pipeline.orchestration.names import OWNERS
from usage_pipeline.rollup import Rollup


def usage_alerts() -> dg.AssetsDefinition:
    """The table of alerts; its failure takes back nothing that was published."""

    @dg.asset(
        key=["publishing", limits.NAME],
        deps=[["publishing", "postgres"]],
        group_name="publishing",
        description=(
            f"{limits.DESCRIPTION} Compared with what was just published; each crossing is told "
            "once a month, by a message in the outbox."
        ),
        owners=OWNERS,
        kinds={"postgres", "table"},
        check_specs=[
            dg.AssetCheckSpec(
                ALERTS_ARE_RAISED,
                asset=["publishing", limits.NAME],
                description=(
                    "What is published was compared with the limits of plans. Otherwise the next "
                    "rollup makes up for it; what was published stays."
                ),
            )
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def usage_alerts(
        rollup: dg.ResourceParam[Rollup],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        try:
            report = rollup.raise_alerts()
        except UsagePipelineError as error:
            yield dg.AssetCheckResult(passed=False, metadata={"failure": str(error)})
            with one_line_failures():
                raise
        yield dg.MaterializeResult(
            metadata=alerts_metadata(report),
            check_results=[dg.AssetCheckResult(passed=True)],
        )

    return usage_alerts
