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
from usage_pipeline.serving.views import RELATIONS

_FOR_ADMINS = ("platform", "usage_anomalies", "usage_forecast_accuracy")  # groups and tables


def build_assets(
    rollup: Rollup, partitions: Partitions
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Everything between the application database and the outputs, in flow order."""
    manifest = read_manifest(rollup)
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
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

    def linked(spec: dg.AssetSpec) -> dg.AssetSpec:
        page = page_of(spec.key)
        url = dg.MetadataValue.url(f"{rollup.settings.web_url}{page}")
        return spec.merge_attributes(metadata={"page": url}) if page else spec

    return list(dg.map_asset_specs(linked, assets))


def page_of(key: dg.AssetKey) -> str | None:
    """The page that shows what is published of an asset; None of what is not published."""
    group, name = key.path[0], key.path[-1]
    if group == "publishing":
        return "/platform#health"
    if name not in RELATIONS:
        return None
    return "/platform" if group in _FOR_ADMINS or name in _FOR_ADMINS else "/usage"
