"""Jobs: which assets run together."""

from __future__ import annotations

import dagster as dg

from usage_pipeline.orchestration.internals.job_type import AssetJob
from usage_pipeline.orchestration.names import DELIVERIES

NIGHTLY = "nightly_rollup"
MONTHLY = "monthly_rollup"
EXPORTS = "monthly_exports"
DELIVERY = "deliver_messages"
DELIVERY_SECONDS = 1800  # three times what a run takes at most, unless a database hangs


def build_jobs() -> list[AssetJob]:
    """Three jobs chained by sensors, each partitioned as its assets are, and the one that sends."""
    daily = dg.AssetSelection.groups("landing", "staging") | dg.AssetSelection.tag("grain", "daily")
    monthly = dg.AssetSelection.tag("grain", "monthly") | dg.AssetSelection.tag("grain", "current")
    exported = dg.AssetSelection.assets("publishing/user_exports")
    sent = dg.AssetSelection.assets(DELIVERIES)
    published = dg.AssetSelection.groups("publishing") - exported - sent
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
        dg.define_asset_job(
            DELIVERY,
            selection=sent,
            tags={"dagster/max_runtime": str(DELIVERY_SECONDS)},  # no other runs meanwhile
            description="Messages that are due, to webhooks and by e-mail.",
        ),
    ]
