"""Names that several concepts share: asset keys, the pool of the warehouse, tags of runs."""

import dagster as dg

USAGE_DAILY = dg.AssetKey(["usage", "usage_daily"])
LANDED_EVENTS = dg.AssetKey(["landing", "usage_events"])
SNAPSHOT = dg.AssetKey(["publishing", "snapshot"])
MESSAGES = dg.AssetKey(["publishing", "rolled_up_messages"])
DELIVERIES = dg.AssetKey(["publishing", "deliveries"])
OWNERS = ["team:data"]
WAREHOUSE_POOL = "warehouse"
CHAINED_TAG = "usage/chained"  # "no" on runs of the command line, which chains the jobs itself
DAYS_TAG = "usage/days"  # all days of a run: its partitions are one range, or months
