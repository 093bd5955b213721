"""Messages: which days have new totals, and their way to webhooks and people."""

from collections.abc import Iterator

import dagster as dg

from usage_pipeline.alerts import limits
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.metadata import delivery_metadata
from usage_pipeline.orchestration.names import DELIVERIES, MESSAGES, OWNERS
from usage_pipeline.rollup import Rollup

WEBHOOKS = ["app_db", "org_webhooks"]


def rolled_up_messages() -> dg.AssetsDefinition:
    """What a publish changed, for those who want to be told; its failure takes back nothing."""

    @dg.asset(
        key=MESSAGES,
        deps=[["publishing", "snapshot"], ["publishing", "postgres"], WEBHOOKS],
        group_name="publishing",
        description=(
            "A message usage.rolled_up in the outbox for each organisation with an enabled webhook "
            "and each of its days whose published totals are new or others than before."
        ),
        owners=OWNERS,
        kinds={"postgres", "table"},
        check_specs=[
            dg.AssetCheckSpec(
                "changed_days_are_told",
                asset=MESSAGES,
                description=(
                    "Days whose published totals changed were put into the outbox. Otherwise the "
                    "next rollup makes up for it; what was published stays."
                ),
            )
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def rolled_up_messages(
        rollup: dg.ResourceParam[Rollup],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        try:
            added = rollup.announce_days()
        except UsagePipelineError as error:
            yield dg.AssetCheckResult(passed=False, metadata={"failure": str(error)})
            with one_line_failures():
                raise
        yield dg.MaterializeResult(
            metadata={"messages added": added}, check_results=[dg.AssetCheckResult(passed=True)]
        )

    return rolled_up_messages


def deliveries() -> dg.AssetsDefinition:
    """The outbox, emptied as far as receivers take it."""

    @dg.asset(
        key=DELIVERIES,
        deps=[MESSAGES, ["publishing", limits.NAME], WEBHOOKS],
        group_name="publishing",
        description=(
            "Messages of the outbox that are due, sent: signed webhooks to organisations, e-mails "
            "to people. Runs when something waits (sensor messages_are_due), beside all rollups. "
            "What a receiver does not take is repeated later, for two days, under the same id."
        ),
        owners=OWNERS,
        kinds={"postgres", "webhook"},
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def deliveries(rollup: dg.ResourceParam[Rollup]) -> dg.MaterializeResult:
        with one_line_failures():
            report = deliver(rollup.settings)
        return dg.MaterializeResult(metadata=delivery_metadata(report))

    return deliveries
