"""The budgets of speed and size, each with its sentence; judged here, and never adjusted."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Budget:
    """A limit that a figure has to keep, and one that it is to come to.

    Attributes:
        sentence: of the specification.
        limit: the figure's greatest value, or its least.
        aim: what is better still; None where the limit is all that is asked.
        least: whether limit and aim are least values.
        unit: of the figure, as it is printed.
    """

    sentence: str
    limit: float
    aim: float | None = None
    least: bool = False
    unit: str = "×"

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.least else figure <= self.limit

    def __str__(self) -> str:
        return self._spelled(self.limit)

    def spelled_aim(self) -> str:
        return "" if self.aim is None else self._spelled(self.aim)

    def _spelled(self, value: float) -> str:
        limit = f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
        space = "" if self.unit == "×" else " "
        return f"{'≥' if self.least else '≤'} {limit}{space}{self.unit}"


_LANDING = (
    "landing a day against COPY … TO STDOUT (FORMAT binary) of the same rows, discarded, {} "
    "event_data"
)
LANDING_NARROW = Budget(_LANDING.format("without"), 1.1, 1.0)
LANDING_FULL = Budget(_LANDING.format("with"), 1.2, 1.0)
DAILY_ENGINE = Budget(
    "daily rollup from landing (the engine's time), against INSERT … SELECT … GROUP BY … ON "
    "CONFLICT DO UPDATE in Postgres",
    0.13,
    0.10,
)
_TOGETHER = "landing + daily + monthly together, against the same, {} event_data"
TOGETHER_NARROW = Budget(_TOGETHER.format("without"), 0.6, 0.5)
TOGETHER_FULL = Budget(_TOGETHER.format("with"), 0.8, 0.6)
_DLT = "landing a day of 225,000 events with all columns, against dlt's {}"
DLT = {
    "connectorx": Budget(_DLT.format("connectorx"), 1 / 4, 1 / 6),
    "pyarrow": Budget(_DLT.format("pyarrow"), 1 / 15, 1 / 20),
    "sqlalchemy": Budget(_DLT.format("default back-end"), 1 / 50, 1 / 100),
}
HISTORY_ENGINE = Budget(
    "re-rollup of 90 days, 25,000,000 events, from landing (engine's time)",
    1_000_000,
    2_000_000,
    least=True,
    unit="events/s",
)
_PUBLISH = "1,000,000 rows of usage_aggregations published to Postgres, {}"
PUBLISH_NEW = Budget(_PUBLISH.format("new"), 150_000, 250_000, least=True, unit="rows/s")
PUBLISH_CHANGED = Budget(_PUBLISH.format("changed"), 130_000, 200_000, least=True, unit="rows/s")
PUBLISH_UNCHANGED = Budget(_PUBLISH.format("unchanged: they cost no write"), 0, unit="rows written")
GROWTH = Budget(
    "a night after 30× history against 1× (same day of 5,000,000 events)",
    1.3,
    1.1,
)
_NIGHT = "a whole night of 5,000,000 events against the in-database function alone, {}"
NIGHT_FRESH = Budget(_NIGHT.format("fresh"), 2.8, 2.0)
NIGHT_GROWN = Budget(_NIGHT.format("after 90 days"), 3.5, 2.2)
FIXED_OVERHEAD = Budget(
    "near-empty night, whole process, dbt and Dagster included", 12, 8, unit="s"
)
BACKFILL = Budget("backfill of 90 days, 25,000,000 events", 300, 180, unit="s")
SOURCE_WORK = Budget(
    "work on the source, landing and nightly proof, CPU, against one COPY of the same columns",
    1.5,
    1.2,
)
SOURCE_LOCKS = Budget(
    "work on the source: no locks but AccessShareLock", 0, unit="locks but AccessShareLock"
)
EXPORTS = Budget("per-user exports, 50,000 users", 5_000, 8_000, least=True, unit="files/s")
ON_TOP = Budget("limits, forecast, anomalies, alerts on top of a night", 15, 5, unit="%")
PAGES = Budget(
    "usage page, first byte to complete on the server, 200 concurrent readers during a publish, "
    "p95",
    0.5,
    0.2,
    unit="s",
)
PEAK_MEMORY = Budget("peak memory of any process", 1.5, 1.0, unit="GiB")
DEMO = Budget("`make demo` after installation", 60, 30, unit="s")
