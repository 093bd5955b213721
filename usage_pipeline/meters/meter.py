"""What is measured: a meter."""

from __future__ import annotations

from dataclasses import dataclass, field

EVENT_TYPES = (
    "record_created",
    "api_call",
    "automation_run",
    "storage_used",
    "schedule_executed",
    "ai_tokens_used",
    "user_active",
)
AGGREGATIONS = ("sum", "count", "unique_count", "max", "min", "avg", "latest")


@dataclass(frozen=True)
class Meter:
    """One measured metric; `key` becomes `metric_type` in every table.

    Attributes:
        value: None for the event's quantity, else a path into event_data.
        filter: path → accepted values as text; all paths must match.
        dimensions: name → path, the break-downs in `usage_daily_by_dimension`.
    """

    key: str
    event_type: str
    aggregation: str
    value: str | None = None
    filter: dict[str, list[str]] = field(default_factory=dict)
    dimensions: dict[str, str] = field(default_factory=dict)
    unit: str = ""
    description: str = ""

    @property
    def reads_event_data(self) -> bool:
        return bool(self.paths)

    @property
    def paths(self) -> list[str]:
        """The paths into event_data that a number or a break-down depends on."""
        value = [self.value] if self.value else []
        return [*value, *self.filter, *self.dimensions.values()]

    @property
    def counts_every_event(self) -> bool:
        """Whether each valid event of the type counts, with its quantity."""
        return not (self.value or self.filter)
