"""dbt's models, one step for each of their tags: staging, daily, monthly, current."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, dbt_assets

from usage_pipeline.days import DayRange, merge_ranges
from usage_pipeline.orchestration.dbt_nodes import asset_key_of
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.internals.partition_events import record_partitions
from usage_pipeline.orchestration.metadata import partition_metadata, table_metadata
from usage_pipeline.orchestration.names import OWNERS, WAREHOUSE_POOL
from usage_pipeline.orchestration.partitions import Partitions, days_of, months_of
from usage_pipeline.rollup import Rollup
from usage_pipeline.warehouse.transform import NodeResult


class _Translator(DagsterDbtTranslator):
    """Names and groups dbt's models after their folder, which is their place in the flow."""

    def __init__(self) -> None:
        # Tests run once, in the audit before publishing, not after each model.
        super().__init__(DagsterDbtTranslatorSettings(enable_asset_checks=False))

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        return asset_key_of(dbt_resource_props)

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return str(dbt_resource_props["fqn"][1])

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: Any
    ) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        # Reading back what is published, for updated_at, is no step of the flow.
        flow = [dep for dep in spec.deps if dep.asset_key.path[0] != "published"]
        return spec.replace_attributes(deps=flow)

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> Sequence[str]:
        return OWNERS

    def get_tags(self, dbt_resource_props: Mapping[str, Any]) -> Mapping[str, str]:
        tags = dbt_resource_props.get("tags") or []  # sources have none
        return {"grain": str(tags[0])} if tags else {}

    def get_description(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return str(dbt_resource_props["description"])


def staging_views(manifest: Mapping[str, Any]) -> dg.AssetsDefinition:
    """What landing holds, as views."""

    @_built_by_dbt(manifest, "staging", "staging_views")
    def staging_views(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_staging()
        yield from _materialized(context, rollup, results)

    return staging_views


def daily_models(manifest: Mapping[str, Any], partitions: Partitions) -> dg.AssetsDefinition:
    """Tables whose days are replaced whole."""

    @_built_by_dbt(manifest, "daily", "daily_models", partitions.daily)
    def daily_models(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_days([days_of(context)])
        built = merge_ranges([*rollup.pending.built(), days_of(context)])
        yield from _materialized(
            context, rollup, results, built, [d for r in built for d in r.days()]
        )

    return daily_models


def monthly_models(manifest: Mapping[str, Any], partitions: Partitions) -> dg.AssetsDefinition:
    """Tables whose months are replaced whole."""

    @_built_by_dbt(manifest, "monthly", "monthly_models", partitions.monthly)
    def monthly_models(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_months([months_of(context)])
        built = merge_ranges(
            [*(days.whole_months() for days in rollup.pending.built()), months_of(context)]
        )
        firsts = [day for days in built for day in days.days() if day.day == 1]
        yield from _materialized(context, rollup, results, built, firsts)

    return monthly_models


def current_models(manifest: Mapping[str, Any]) -> dg.AssetsDefinition:
    """Tables of how things stand now, built whole."""

    @_built_by_dbt(manifest, "current", "current_models")
    def current_models(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_current()
        yield from _materialized(context, rollup, results)

    return current_models


def _built_by_dbt(
    manifest: Mapping[str, Any],
    tag: str,
    name: str,
    partitions: dg.PartitionsDefinition | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    return dbt_assets(
        manifest=manifest,
        select=f"tag:{tag}",
        name=name,
        dagster_dbt_translator=_Translator(),
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )


def _materialized(
    context: dg.AssetExecutionContext,
    rollup: Rollup,
    results: Sequence[NodeResult],
    ranges: Sequence[DayRange] = (),
    partitions: Sequence[date] = (),
) -> Iterator[dg.MaterializeResult]:
    """One result a selected model, in the order dbt built them, with a few rows to look at.

    dbt builds the whole layer even when some of its assets are selected: they depend on each other.

    Args:
        ranges: the days of `partitions`, which are the days or months that were built, those that
            an earlier run left undone included; none for assets without partitions.
    """
    keys = {key.path[-1]: key for key in context.selected_asset_keys}
    seconds = {result.name: round(result.seconds, 3) for result in results if result.name in keys}
    metadata: dict[str, dict[str, Any]]
    if partitions:
        found = partition_metadata(rollup, list(seconds), ranges)
        nothing = {"dagster/row_count": 0}
        record_partitions(
            context,
            {
                keys[table]: {
                    day.isoformat(): {
                        "seconds": seconds[table],
                        **found[table].get(day.isoformat(), nothing),
                    }
                    for day in partitions
                }
                for table in seconds
            },
        )
        metadata = {table: {"partitions built together": len(partitions)} for table in seconds}
    else:
        metadata = table_metadata(rollup, list(seconds))
    for table, spent in seconds.items():
        yield dg.MaterializeResult(
            asset_key=keys[table], metadata={"seconds": spent, **metadata[table]}
        )
