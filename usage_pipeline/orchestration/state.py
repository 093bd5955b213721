"""What Dagster knows of each asset, for `usage-pipeline status`."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from usage_pipeline.orchestration.launch import dagster_instance
from usage_pipeline.settings import Settings


def asset_states(defs: dg.Definitions, settings: Settings) -> list[tuple[str, str, str, str, str]]:
    """Per asset: key, last partition, age of the last run, partitions materialised, failed ones."""
    graph = defs.resolve_asset_graph()
    states = []
    with dagster_instance(settings) as instance:
        for key in sorted(graph.materializable_asset_keys):
            event = instance.get_latest_materialization_event(key)
            partitions_def = graph.get(key).partitions_def
            done: set[str] = set()
            failed: set[str] = set()
            if partitions_def:
                status = instance.get_status_by_partition(
                    key, partitions_def.get_partition_keys(), partitions_def
                )
                for partition, state in (status or {}).items():
                    if state is None:
                        continue
                    (failed if "FAILED" in state.name else done).add(partition)
            states.append(
                (
                    key.to_user_string(),
                    max(done, default="-") if partitions_def else "",
                    _age(event.timestamp) if event else "never",
                    str(len(done)) if partitions_def else "",
                    str(len(failed)) if failed else "",
                )
            )
    return states


def _age(timestamp: float) -> str:
    age = datetime.now(UTC) - datetime.fromtimestamp(timestamp, UTC)
    return f"{str(age).split('.', maxsplit=1)[0]} ago"
