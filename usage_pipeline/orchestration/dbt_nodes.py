"""What dbt's manifest says of its nodes: their asset keys, and what a test guards, in words."""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from usage_pipeline.rollup import Rollup


def read_manifest(rollup: Rollup) -> dict[str, Any]:
    """The project as dbt parsed it."""
    manifest: dict[str, Any] = json.loads(rollup.transformer.manifest_path().read_text())
    return manifest


def asset_key_of(node: Mapping[str, Any]) -> dg.AssetKey:
    """`usage/usage_daily` for a model, `landing/users` for a source."""
    folder = node["source_name"] if node["resource_type"] == "source" else node["fqn"][1]
    return dg.AssetKey([folder, node["name"]])


def tested_asset(manifest: Mapping[str, Any], test: Mapping[str, Any]) -> dg.AssetKey:
    """The asset that a data test shows with."""
    models = [name for name in test["depends_on"]["nodes"] if name.startswith("model.")]
    tested = test.get("attached_node") or models[0]
    return asset_key_of(manifest["nodes"][tested])


def described(test: Mapping[str, Any]) -> str:
    """What a data test guards, in words; those of the generic ones follow from their arguments."""
    generic = test.get("test_metadata") or {}
    arguments = generic.get("kwargs", {})
    column = test.get("column_name")
    words = {
        "unique_grain": "No two rows share {columns}, and no part of it is null that may not be.",
        "accepted_values": "{column} is one of {values}.",
        "relationships": "Each {column} is known in {to}; others are of accounts that are gone.",
    }.get(generic.get("name", ""), test.get("description") or "")
    return " ".join(
        words.format(
            column=column,
            columns=", ".join(arguments.get("columns", [])),
            values=", ".join(arguments.get("values", [])),
            to=str(arguments.get("to", "")).removeprefix("ref('").removesuffix("')"),
        ).split()
    )
