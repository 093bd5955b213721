"""What Dagster records of single partitions, when one run builds many or repairs others' days."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, generate_event_batch_id
from dagster._core.execution.context.metadata_logging import (
    AssetMetadataHandle,
    OutputMetadataAccumulator,
)

ByPartition = Mapping[dg.AssetKey, Mapping[str, Mapping[str, Any]]]


def record_partitions(context: dg.AssetExecutionContext, metadata: ByPartition) -> None:
    """Give each partition its own metadata.

    Those of the run get it with their result. The others, which an earlier run left undone and
    this one completed, are materialised here, so that they do not stay failed or missing.

    Args:
        metadata: by asset and partition; call it once a step, before its results.
    """
    step = context.get_step_execution_context()
    keys = set(context.partition_keys)
    # `add_asset_metadata` copies all that is known at each call: 20 seconds for 180 days.
    step._metadata_accumulator = OutputMetadataAccumulator(
        per_output_metadata={
            AssetMetadataHandle(asset_key=asset, partition_key=partition): found
            for asset, partitions in metadata.items()
            for partition, found in partitions.items()
            if partition in keys
        }
    )
    partitions_def = context.assets_def.partitions_def
    assert partitions_def
    known = set(partitions_def.get_partition_keys()) - keys
    for asset, partitions in metadata.items():
        repaired = [partition for partition in partitions if partition in known]
        batch = generate_event_batch_id()
        for partition in repaired:
            event = dg.AssetMaterialization(
                asset, partition=partition, metadata=partitions[partition]
            )
            last = partition == repaired[-1]
            DagsterEvent.asset_materialization(step, event, DagsterEventBatchMetadata(batch, last))
