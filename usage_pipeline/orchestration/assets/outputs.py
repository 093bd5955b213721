"""What readers get: the three places in one step, and the exports of a month."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from usage_pipeline.audit.freshness import DUE
from usage_pipeline.orchestration.dbt_nodes import asset_key_of
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.names import OWNERS, SNAPSHOT, WAREHOUSE_POOL
from usage_pipeline.orchestration.partitions import Partitions, months_of
from usage_pipeline.publishing.publisher import PublishReport
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import exports
from usage_pipeline.serving.tables import LEDGER, OLD_MONTHS, PUBLISHES, SERVED_TABLES, served
from usage_pipeline.settings import Settings

OUTPUTS = {
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
    **{name: (served(name).description, "table") for name in (PUBLISHES, OLD_MONTHS)},
}


def publish(manifest: Mapping[str, Any], settings: Settings) -> dg.AssetsDefinition:
    """The places, and the tables that the pipeline writes itself."""
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
            for name, (description, kind) in OUTPUTS.items()
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WAREHOUSE_POOL,
    )
    def publish(
        context: dg.AssetExecutionContext, rollup: dg.ResourceParam[Rollup]
    ) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            report = rollup.publish(context.run.run_id)
        own = _own_figures(report, settings)
        shared: dict[str, Any] = {
            "snapshot": report.snapshot_id,
            "seconds": report.seconds,
            "seconds by stage": rollup.timings.seconds,
            "changed rows": dg.MetadataValue.md(_changed_rows(report)),
        }
        for name in OUTPUTS:
            yield dg.MaterializeResult(
                asset_key=["publishing", name], metadata={**own.get(name, {}), **shared}
            )

    return publish


def _own_figures(report: PublishReport, settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        "snapshot": {"bytes": report.snapshot_bytes, "changed": report.changed},
        "parquet": {"bytes": report.parquet_bytes},
        "postgres": {"schema": settings.publish_schema},
        "usage_restatements": {
            "dagster/row_count": report.tables[LEDGER].inserted,
            "by month": dg.MetadataValue.md(_digest(report.restated)),
        },
        PUBLISHES: {
            "rows added": report.tables[PUBLISHES].inserted,
            "newest": dg.MetadataValue.md(_publishes(report.publishes)),
        },
        OLD_MONTHS: {"rows added": report.tables[OLD_MONTHS].inserted},
    }


def _changed_rows(report: PublishReport) -> str:
    return "| table | inserted | updated | deleted |\n|---|--:|--:|--:|\n" + "\n".join(
        f"| {table} | {change.inserted} | {change.updated} | {change.deleted} |"
        for table, change in report.tables.items()
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


def _publishes(publishes: Sequence[Sequence[Any]]) -> str:
    heading = (
        "| published | snapshot | run | zone | version of the meters |\n|---|---|---|---|---|\n"
    )
    return heading + "\n".join(
        f"| {at:%Y-%m-%d %H:%M:%S} UTC | {snapshot} | {run} | {zone} | {version} |"
        for snapshot, at, run, zone, version in publishes
    )


def user_exports(partitions: Partitions) -> dg.AssetsDefinition:
    """The files of a month."""

    @dg.asset(
        key=["publishing", "user_exports"],
        deps=[SNAPSHOT],
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

    return user_exports
