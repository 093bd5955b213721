"""Freshness, judged whether runs happen or not."""

import dagster as dg

from usage_pipeline.audit.freshness import freshness
from usage_pipeline.orchestration.checks.freshness import FRESH
from usage_pipeline.orchestration.metadata import freshness_metadata
from usage_pipeline.settings import Settings

FRESHNESS_SECONDS = 300


def published_is_fresh(settings: Settings) -> dg.SensorDefinition:
    """Reports the check `yesterday_is_published`."""

    @dg.sensor(
        name="published_is_fresh",
        asset_selection=dg.AssetSelection.assets(FRESH.asset_key),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=FRESHNESS_SECONDS,
        description=(
            "Looks at what readers see, and reports the check yesterday_is_published when its "
            "verdict changes; starts no run."
        ),
    )
    def published_is_fresh(
        context: dg.SensorEvaluationContext,
    ) -> dg.SensorResult | dg.SkipReason:
        seen = freshness(settings)
        if context.cursor == str(seen):
            return dg.SkipReason(str(seen))
        evaluation = dg.AssetCheckEvaluation(
            asset_key=FRESH.asset_key,
            check_name=FRESH.name,
            passed=seen.fresh,
            metadata=freshness_metadata(seen),
        )
        return dg.SensorResult(asset_events=[evaluation], cursor=str(seen))

    return published_is_fresh
