"""Checks: the audit before publishing, and what the audit cannot see."""

import dagster as dg

from usage_pipeline.orchestration.checks.audit import audit
from usage_pipeline.orchestration.checks.delivery import no_message_is_dead
from usage_pipeline.orchestration.checks.freshness import yesterday_is_published
from usage_pipeline.orchestration.checks.source import (
    event_types_are_known,
    no_events_lost,
    row_count_is_usual,
    source_schema_is_unchanged,
)
from usage_pipeline.orchestration.dbt_nodes import read_manifest
from usage_pipeline.rollup import Rollup


def build_checks(rollup: Rollup) -> list[dg.AssetChecksDefinition]:
    """All checks; the audit is one step."""
    return [
        audit(read_manifest(rollup)),
        yesterday_is_published,
        no_events_lost,
        row_count_is_usual,
        source_schema_is_unchanged,
        event_types_are_known,
        no_message_is_dead,
    ]
