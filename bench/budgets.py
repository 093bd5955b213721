"""The budgets of SPEC §9, each with its sentence. A budget is judged, never adjusted here."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Budget:
    """A limit that a figure has to keep.

    Attributes:
        sentence: of the specification.
        limit: the figure's greatest value, or its least.
        least: whether it is the least.
        unit: of the figure, as it is printed.
    """

    sentence: str
    limit: float
    least: bool = False
    unit: str = "×"

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.least else figure <= self.limit

    def __str__(self) -> str:
        limit = f"{self.limit:,.0f}" if self.limit >= 10 else f"{self.limit:.3g}"
        space = "" if self.unit == "×" else " "
        return f"{'≥' if self.least else '≤'} {limit}{space}{self.unit}"


LANDING_NARROW = Budget(
    "landing a day without event_data, against COPY … TO STDOUT (FORMAT binary) of the same rows, "
    "discarded, one connection: at most 1.4× its time",
    1.4,
)
LANDING_FULL = Budget("landing a day with event_data, likewise: at most 1.4×", 1.4)
DAILY_ENGINE = Budget(
    "daily rollup from landing (the engine's time), against INSERT … SELECT … GROUP BY … ON "
    "CONFLICT DO UPDATE in Postgres: at most 1/10 of its time",
    1 / 10,
)
TOGETHER_NARROW = Budget(
    "landing + daily + monthly rollup together, against the same: without event_data at most 0.6×",
    0.6,
)
TOGETHER_FULL = Budget(
    "landing + daily + monthly rollup together, against the same: with event_data not slower", 1.0
)
DLT = {
    "connectorx": Budget(
        "landing a day of 225,000 events with all columns, against dlt's fastest back-end "
        "(connectorx): at most 1/4",
        1 / 4,
    ),
    "pyarrow": Budget("likewise, against dlt's pyarrow: at most 1/15", 1 / 15),
    "sqlalchemy": Budget("likewise, against dlt's default: at most 1/50", 1 / 50),
}
HISTORY_ENGINE = Budget(
    "re-rollup of 90 days, 25,000,000 events, from landing (engine's time): at least 2,000,000 "
    "events/s",
    2_000_000,
    least=True,
    unit="events/s",
)
GROWTH = Budget(
    "a night's cost as history grows 1× → 30× (same day's events): flat within 15 %", 1.15
)
FIXED_OVERHEAD = Budget(
    "fixed overhead of a nightly run on a near-empty day, all processes, dbt and Dagster "
    "included: at most 15 s",
    15,
    unit="s",
)
EXPORTS = Budget(
    "per-user exports, 50,000 users: at least 5,000 files/s, memory bounded",
    5_000,
    least=True,
    unit="files/s",
)
PUBLISH_NEW = Budget(
    "publishing 1,000,000 changed aggregate rows to Postgres, keys and indexes kept: new rows at "
    "least 100,000/s",
    100_000,
    least=True,
    unit="rows/s",
)
PUBLISH_CHANGED = Budget("likewise: changed rows 60,000/s", 60_000, least=True, unit="rows/s")
PUBLISH_UNCHANGED = Budget("likewise: unchanged rows cost no write", 0, unit="rows written")
PEAK_MEMORY = Budget("peak memory of any process: at most 1.5 GiB", 1.5, unit="GiB")
SOURCE_WORK = Budget("work on the source database: at most that of the one COPY", 1.0)
SOURCE_LOCKS = Budget(
    "work on the source database: no long locks", 0, unit="locks but AccessShareLock"
)
DEMO = Budget("`make demo` after installation: at most 60 s", 60, unit="s")
