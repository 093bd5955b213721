"""The type of what `define_asset_job` gives, which public functions take but do not name."""

from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition as AssetJob,
)

__all__ = ["AssetJob"]
