"""Landing: events by local day, accounts as they are, and the calendar."""

import time
from collections.abc import Iterator
from datetime import date

import dagster as dg

from usage_pipeline.landing.accounts import ACCOUNT_TABLES
from usage_pipeline.landing.landed_days import data_files
from usage_pipeline.orchestration.assets.source import SOURCE_TABLES
from usage_pipeline.orchestration.failures import one_line_failures
from usage_pipeline.orchestration.internals.partition_events import record_partitions
from usage_pipeline.orchestration.metadata import landed_previews, sparkline
from usage_pipeline.orchestration.names import LANDED_EVENTS, OWNERS
from usage_pipeline.orchestration.partitions import Partitions, days_of, days_of_run
from usage_pipeline.rollup import Rollup


def landed_days() -> dg.AssetSpec:
    """What stands beside each landed day; no step of its own."""
    return dg.AssetSpec(
        ["landing", "landed_days"],
        deps=[LANDED_EVENTS],
        group_name="landing",
        description="The manifest beside each landed day: rows, sum, last event, when read.",
        owners=OWNERS,
        kinds={"json"},
    )


def usage_events(partitions: Partitions) -> dg.AssetsDefinition:
    """Events by day."""

    @dg.asset(
        key=LANDED_EVENTS,
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
            wanted = [days_of(context), *days_of_run(context.run.tags)]
            landed = rollup.land_events(day for days in wanted for day in days.days())
        seconds = round(time.perf_counter() - started, 3)
        previews = landed_previews(
            rollup.settings,
            {
                day.usage_date: data_files(
                    rollup.settings.events_dir, date.fromisoformat(day.usage_date)
                )
                for day in landed
            },
        )
        figures = {
            day.usage_date: {
                "dagster/row_count": day.rows,
                "bytes": day.bytes,
                "invalid quantities": day.invalid_rows,
                "duplicates left out": day.duplicate_rows,
                "sum of quantities": day.sum_quantity,
                "read from the source at": day.extracted_at,
                **previews.get(day.usage_date, {}),
            }
            for day in landed
        }
        record_partitions(context, {context.asset_key: figures})
        return dg.MaterializeResult(
            metadata={
                "seconds": seconds,
                "days": len(landed),
                "events per day": sparkline([day.rows for day in landed]),
            }
        )

    return usage_events


def accounts() -> dg.AssetsDefinition:
    """Users, organisations, plans, and the calendar, each as it is now."""

    @dg.multi_asset(
        # Steps that wait for nothing run in the order of their names: events come first, so that
        # whoever caused one is among the accounts.
        name="other_tables",
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
    def accounts(rollup: dg.ResourceParam[Rollup]) -> Iterator[dg.MaterializeResult]:
        with one_line_failures():
            rows = rollup.land_accounts()
        folder = rollup.settings.landing_dir
        files = {table: folder / f"{table}.parquet" for table in (*ACCOUNT_TABLES, "calendar")}
        previews = landed_previews(rollup.settings, {t: [file] for t, file in files.items()})
        for table, file in files.items():
            counted = {"dagster/row_count": rows[table]} if table in rows else {}
            yield dg.MaterializeResult(
                asset_key=["landing", table],
                metadata={**counted, "bytes": file.stat().st_size, **previews[table]},
            )

    return accounts
