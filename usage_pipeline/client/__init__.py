"""What an application imports: log usage without waiting for it, and read what was made of it.

    from usage_pipeline.client import log_usage

    log_usage(user_id, "api_call")

Nothing but the standard library is needed, and psycopg2 for going straight to Postgres.
"""

from usage_pipeline.client.answers import (
    MetricSummary,
    UsageAggregation,
    UsageLimit,
    UsageSummary,
)
from usage_pipeline.client.client import AsyncUsageClient, UsageClient
from usage_pipeline.client.errors import UsageError
from usage_pipeline.client.shared import (
    configure,
    get_aggregated_usage,
    get_usage_limits,
    get_usage_summary,
    log_usage,
    shared_client,
    trigger_usage_aggregation,
)

__all__ = [
    "AsyncUsageClient",
    "MetricSummary",
    "UsageAggregation",
    "UsageClient",
    "UsageError",
    "UsageLimit",
    "UsageSummary",
    "configure",
    "get_aggregated_usage",
    "get_usage_limits",
    "get_usage_summary",
    "log_usage",
    "shared_client",
    "trigger_usage_aggregation",
]
