"""Whether everybody who had to be told was."""

import dagster as dg

from usage_pipeline.alerts import outbox
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.names import DELIVERIES
from usage_pipeline.rollup import Rollup


@dg.asset_check(
    asset=DELIVERIES,
    name="no_message_is_dead",
    description=(
        f"No message was given up in the last {outbox.SHOWN_FOR.days} days, because its receiver "
        f"refused it for good or {outbox.MAX_ATTEMPTS} times. `usage-pipeline webhooks list` shows "
        "them, `webhooks replay --dead` sends them again. Blocks nothing."
    ),
)
def no_message_is_dead(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
    with one_line_failures():
        found = outbox.waiting(rollup.settings)
    return dg.AssetCheckResult(
        passed=not found.dead,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"given up": found.dead, "due": found.due, "waiting for later": found.later},
    )
