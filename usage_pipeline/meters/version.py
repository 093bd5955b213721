"""The forms in which dbt and readers get the meters, and what tells one state from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from usage_pipeline.meters.event_data import json_path
from usage_pipeline.meters.meter import EVENT_TYPES, Meter


def dbt_vars(meters: list[Meter]) -> dict[str, Any]:
    """What the dbt project gets as `vars` when it runs."""
    return {
        "meters": [
            {
                "key": m.key,
                "event_type": m.event_type,
                "aggregation": m.aggregation,
                "value": json_path(m.value) if m.value else None,
                "filter": [
                    {"path": json_path(path), "values": values} for path, values in m.filter.items()
                ],
                "dimensions": [
                    {"name": name, "path": json_path(path)} for name, path in m.dimensions.items()
                ],
            }
            for m in meters
        ],
        "event_types": sorted({*EVENT_TYPES, *(m.event_type for m in meters)}),
    }


def meters_version(meters: list[Meter]) -> str:
    """A hash that changes when a number could: key, type, aggregation, paths; not the prose."""
    return hashlib.sha256(json.dumps(dbt_vars(meters), sort_keys=True).encode()).hexdigest()[:16]


# What a number is made by, and said with; not who is told of it.
_PUBLISHED = (
    "key",
    "event_type",
    "aggregation",
    "value",
    "filter",
    "dimensions",
    "unit",
    "description",
)


def spelled_meters(meters: Iterable[Meter]) -> str:
    """Meters as JSON, prose included, as they are published with the numbers made by them."""
    return json.dumps([{name: getattr(m, name) for name in _PUBLISHED} for m in meters])


def read_meters(spelled: str) -> list[Meter]:
    """The meters of `spelled_meters`."""
    return [Meter(**fields) for fields in json.loads(spelled)]
