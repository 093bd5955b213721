"""Assets: thin. Each calls a step of the rollup and returns its figures as metadata."""

import dagster as dg

from usage_pipeline.orchestration.assets import (
    alerts,
    delivery,
    landing,
    models,
    outputs,
    source,
)
from usage_pipeline.orchestration.dbt_nodes import read_manifest
from usage_pipeline.orchestration.partitions import Partitions
from usage_pipeline.rollup import Rollup


def build_assets(
    rollup: Rollup, partitions: Partitions
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Everything between the application database and the outputs, in flow order."""
    manifest = read_manifest(rollup)
    return [
        *source.tables(),
        landing.landed_days(),
        landing.usage_events(partitions),
        landing.accounts(),
        models.staging_views(manifest),
        models.daily_models(manifest, partitions),
        models.monthly_models(manifest, partitions),
        models.current_models(manifest),
        outputs.publish(manifest, rollup.settings),
        alerts.usage_alerts(),
        outputs.user_exports(partitions),
        delivery.rolled_up_messages(),
        delivery.deliveries(),
    ]
