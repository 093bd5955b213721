"""Assets: thin. Each calls a step of the rollup and returns its figures as metadata."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, dbt_assets

from usage_pipeline.audit.freshness import DUE
from usage_pipeline.days import DayRange, merge_ranges
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.accounts import ACCOUNT_TABLES
from usage_pipeline.orchestration.metadata import partition_metadata, sparkline, table_metadata
from usage_pipeline.orchestration.partition_events import record_partitions
from usage_pipeline.orchestration.partitions import Partitions, days_of, months_of
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import exports
from usage_pipeline.serving.tables import LEDGER, SERVED_TABLES
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.transform import NodeResult

OWNERS = ["team:data"]
WAREHOUSE_POOL = "warehouse"
USAGE_DAILY = dg.AssetKey(["usage", "usage_daily"])
SOURCE_TABLES = {
    "usage_events": "Usage events as the application logs them; read one day at a time.",
    "users": "Users, without their e-mail addresses.",
    "orgs": "Organisations.",
    "org_members": "Who belongs to which organisation.",
    "subscriptions": "Subscriptions of users and organisations.",
    "plan_limits": "What each plan includes.",
}


def build_assets(
    rollup: Rollup, partitions: Partitions
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Everything between the application database and the outputs, in flow order."""
    manifest = json.loads(rollup.transformer.manifest_path().read_text())
    return [
        *_external_assets(),
        *_landing_assets(partitions),
        *_dbt_assets(manifest, partitions),
        *_output_assets(manifest, partitions, rollup.settings),
    ]


@contextmanager
def one_line_failures() -> Iterator[None]:
    """An expected failure shows as its own words in the run, and is not retried."""
    try:
        yield
    except UsagePipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def _external_assets() -> list[dg.AssetSpec]:
    return [
        *(
            dg.AssetSpec(
                ["app_db", table],
                group_name="app_db",
                description=description,
                owners=OWNERS,
                kinds={"postgres"},
            )
            for table, description in SOURCE_TABLES.items()
        ),
        dg.AssetSpec(
            ["landing", "landed_days"],
            deps=[["landing", "usage_events"]],
            group_name="landing",
            description="The manifest beside each landed day: rows, sum, last event, when read.",
            owners=OWNERS,
            kinds={"json"},
        ),
    ]


def _landing_assets(partitions: Partitions) -> list[dg.AssetsDefinition]:
    @dg.asset(
        key=["landing", "usage_events"],
        deps=[["app_db", "usage_events"]],
        group_name="landing",
        description="Events as Parquet, one directory per local day, each replaced whole.",
        owners=OWNERS,
        kinds={"parquet", "postgres"},
        partitions_def=partitions.daily,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def usage_events(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> dg.MaterializeResult:
        started = time.perf_counter()
        with one_line_failures():
            manifests = rollup.land_events(days_of(context).days())
        seconds = round(time.perf_counter() - started, 3)
        figures = {
            m.usage_date: {
                "dagster/row_count": m.rows,
                "bytes": m.bytes,
                "invalid quantities": m.invalid_rows,
                "duplicates left out": m.duplicate_rows,
                "sum of quantities": m.sum_quantity,
                "read from the source at": m.extracted_at,
            }
            for m in manifests
        }
        record_partitions(context, {context.asset_key: figures})
        return dg.MaterializeResult(
            metadata={
                "seconds": seconds,
                "days": len(manifests),
                "events per day": sparkline([m.rows for m in manifests]),
            }
        )

    @dg.multi_asset(
        name="snapshots",
        specs=[
            dg.AssetSpec(
                ["landing", table],
                deps=[["app_db", table]] if table in SOURCE_TABLES else [],
                group_name="landing",
                description=SOURCE_TABLES.get(
                    table, "Local days and the instants at which they begin and end."
                ),
                owners=OWNERS,
                kinds={"parquet"},
            )
            for table in (*ACCOUNT_TABLES, "calendar")
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def snapshots(rollup: dg.ResourceParam[Rollup]) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            rows = rollup.land_accounts()
        for table in ACCOUNT_TABLES:
            file = rollup.settings.landing_dir / f"{table}.parquet"
            yield dg.MaterializeResult(
                asset_key=["landing", table],
                metadata={"dagster/row_count": rows[table], "bytes": file.stat().st_size},
            )
        yield dg.MaterializeResult(asset_key=["landing", "calendar"])

    return [usage_events, snapshots]


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


def asset_key_of(node: Mapping[str, Any]) -> dg.AssetKey:
    """`usage/usage_daily` for a model, `landing/users` for a source."""
    folder = node["source_name"] if node["resource_type"] == "source" else node["fqn"][1]
    return dg.AssetKey([folder, node["name"]])


def _dbt_assets(manifest: Mapping[str, Any], partitions: Partitions) -> list[dg.AssetsDefinition]:
    translator = _Translator()

    @dbt_assets(
        manifest=manifest,
        select="tag:staging",
        name="staging_views",
        dagster_dbt_translator=translator,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )
    def staging_views(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_staging()
        yield from _materialized(context, rollup, results)

    @dbt_assets(
        manifest=manifest,
        select="tag:daily",
        name="daily_models",
        dagster_dbt_translator=translator,
        partitions_def=partitions.daily,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )
    def daily_models(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_days([days_of(context)])
        built = merge_ranges([*rollup.pending.built(), days_of(context)])
        yield from _materialized(
            context, rollup, results, built, [d for r in built for d in r.days()]
        )

    @dbt_assets(
        manifest=manifest,
        select="tag:monthly",
        name="monthly_models",
        dagster_dbt_translator=translator,
        partitions_def=partitions.monthly,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )
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

    @dbt_assets(
        manifest=manifest,
        select="tag:current",
        name="current_models",
        dagster_dbt_translator=translator,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )
    def current_models(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            results = rollup.build_current()
        yield from _materialized(context, rollup, results)

    return [staging_views, daily_models, monthly_models, current_models]


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


def _digest(restated: Sequence[Sequence[Any]]) -> str:
    heading = (
        "| month | metric | cause | numbers | quantity | events |\n|---|---|---|--:|--:|--:|\n"
    )
    return heading + "\n".join(
        f"| {month:%Y-%m} | {metric} | {cause} | {numbers} | "
        f"{'–' if quantity is None else format(quantity, '+f')} | {events:+} |"
        for month, metric, cause, numbers, quantity, events in restated
    )


def _output_assets(
    manifest: Mapping[str, Any], partitions: Partitions, settings: Settings
) -> list[dg.AssetsDefinition]:
    served = [
        asset_key_of(manifest["nodes"][f"model.usage_pipeline.{table.name}"])
        for table in SERVED_TABLES
        if table.model
    ]
    nightly = dg.FreshnessPolicy.cron(
        deadline_cron=f"{DUE.minute} {DUE.hour} * * *",
        lower_bound_delta=timedelta(hours=DUE.hour),
        timezone=settings.timezone,
    )
    outputs = {
        "snapshot": ("serving/usage.duckdb, replaced atomically for readers.", "duckdb"),
        "parquet": ("serving/parquet/<table>, partitioned by month.", "parquet"),
        "postgres": ("The published schema in Postgres; changed rows only.", "postgres"),
        "usage_reconciliation": (
            "Per day and metric: source, landing and published, events and sums.",
            "table",
        ),
        "usage_restatements": (
            "The ledger: each published number that changed, with old, new, cause and run.",
            "table",
        ),
    }

    @dg.multi_asset(
        name="publish",
        specs=[
            dg.AssetSpec(
                ["publishing", name],
                deps=served,
                group_name="publishing",
                description=description,
                owners=OWNERS,
                kinds={kind},
                freshness_policy=nightly,
            )
            for name, (description, kind) in outputs.items()
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )
    def publish(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            report = rollup.publish(context.run_id)
        figures: dict[str, dict[str, Any]] = {
            "snapshot": {"bytes": report.snapshot_bytes, "changed": report.changed},
            "parquet": {"bytes": report.parquet_bytes},
            "postgres": {"schema": rollup.settings.publish_schema},
            "usage_reconciliation": {},
            "usage_restatements": {
                "dagster/row_count": report.tables[LEDGER].inserted,
                "by month": dg.MetadataValue.md(_digest(report.restated)),
            },
        }
        changes = "\n".join(
            f"| {table} | {change.inserted} | {change.updated} | {change.deleted} |"
            for table, change in report.tables.items()
        )
        for name in outputs:
            yield dg.MaterializeResult(
                asset_key=["publishing", name],
                metadata={
                    **figures[name],
                    "snapshot": report.snapshot_id,
                    "seconds": report.seconds,
                    "seconds by stage": rollup.timings.seconds,
                    "changed rows": dg.MetadataValue.md(
                        "| table | inserted | updated | deleted |\n|---|--:|--:|--:|\n" + changes
                    ),
                },
            )

    @dg.asset(
        key=["publishing", "user_exports"],
        deps=[["publishing", "snapshot"]],
        group_name="publishing",
        description="One CSV per user with the month's usage by day, and a manifest.",
        owners=OWNERS,
        kinds={"csv"},
        partitions_def=partitions.monthly,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
    )
    def user_exports(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> dg.MaterializeResult:
        with one_line_failures():
            report = exports.export_month(rollup.settings, months_of(context).start)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": report.rows,
                "users": report.users,
                "files written": report.written,
                "files removed": report.removed,
                "manifest": dg.MetadataValue.path(report.manifest),
            }
        )

    return [publish, user_exports]
