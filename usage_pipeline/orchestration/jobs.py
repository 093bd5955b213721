"""Jobs: which assets run together."""

from __future__ import annotations

import dagster as dg

from usage_pipeline.orchestration.internals.job_type import AssetJob

NIGHTLY = "nightly_rollup"
MONTHLY = "monthly_rollup"
EXPORTS = "monthly_exports"


def build_jobs() -> list[AssetJob]:
    """The three jobs, chained by sensors; each is partitioned as its assets are."""
    daily = dg.AssetSelection.groups("landing", "staging") | dg.AssetSelection.tag("grain", "daily")
    monthly = dg.AssetSelection.tag("grain", "monthly") | dg.AssetSelection.tag("grain", "current")
    exported = dg.AssetSelection.assets("publishing/user_exports")
    published = dg.AssetSelection.groups("publishing") - exported
    return [
        dg.define_asset_job(
            NIGHTLY,
            selection=daily.materializable().without_checks(),
            description="Days: extract from the application database and build the daily models.",
        ),
        dg.define_asset_job(
            MONTHLY,
            selection=(monthly | published).materializable().without_checks()
            | dg.AssetSelection.all_asset_checks(),
            description=(
                "Months of the days just built: monthly models, summaries, audit, publishing."
            ),
        ),
        dg.define_asset_job(
            EXPORTS,
            selection=exported,
            description="Per-user CSV exports of a month.",
        ),
    ]
