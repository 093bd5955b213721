"""Whether readers see yesterday."""

import dagster as dg

from usage_pipeline.audit.freshness import DUE, freshness
from usage_pipeline.orchestration.metadata import freshness_metadata
from usage_pipeline.orchestration.names import SNAPSHOT
from usage_pipeline.rollup import Rollup

FRESH = dg.AssetCheckKey(SNAPSHOT, "yesterday_is_published")


@dg.asset_check(
    asset=FRESH.asset_key,
    name=FRESH.name,
    description=(
        f"What readers see includes yesterday in USAGE_TIMEZONE, from {DUE:%H:%M} on, and all days "
        "before it from USAGE_START_DATE on. Judged again every few minutes by the sensor "
        "published_is_fresh, whether runs happen or not."
    ),
)
def yesterday_is_published(rollup: dg.ResourceParam[Rollup]) -> dg.AssetCheckResult:
    seen = freshness(rollup.settings)
    return dg.AssetCheckResult(passed=seen.fresh, metadata=freshness_metadata(seen))
