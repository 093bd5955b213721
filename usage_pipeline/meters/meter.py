"""What is measured: a meter."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

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
ALERT_AT = (Decimal("0.8"), Decimal(1))
REPEATS = 100  # of a repeating threshold; who used so many times the step has been told


@dataclass(frozen=True)
class Meter:
    """One measured metric; `key` becomes `metric_type` in every table.

    Attributes:
        value: None for the event's quantity, else a path into event_data.
        filter: path → accepted values as text; all paths must match.
        dimensions: name → path, the break-downs in `usage_daily_by_dimension`.
        alert_at: shares of a plan's limit whose crossing is an alert; 1 is the limit.
        alert_every: one more, that repeats: at it, at twice it, and so on.
    """

    key: str
    event_type: str
    aggregation: str
    value: str | None = None
    filter: dict[str, list[str]] = field(default_factory=dict)
    dimensions: dict[str, str] = field(default_factory=dict)
    unit: str = ""
    description: str = ""
    alert_at: tuple[Decimal, ...] = ALERT_AT
    alert_every: Decimal | None = None

    @property
    def reads_event_data(self) -> bool:
        return bool(self.paths)

    @property
    def paths(self) -> list[str]:
        """The paths into event_data that a number or a break-down depends on."""
        value = [self.value] if self.value else []
        return [*value, *self.filter, *self.dimensions.values()]

    @property
    def adds_up(self) -> bool:
        """Whether totals of days, users and organisations add up to those of all of them."""
        return self.aggregation in ("sum", "count")

    @property
    def counts_every_event(self) -> bool:
        """Whether each valid event of the type counts, with its quantity."""
        return not (self.value or self.filter)

    @property
    def alert_thresholds(self) -> list[Decimal]:
        """All shares of a limit whose crossing is an alert, ascending."""
        every = self.alert_every
        repeated = [every * times for times in range(1, REPEATS + 1)] if every else []
        return sorted({*self.alert_at, *repeated})
