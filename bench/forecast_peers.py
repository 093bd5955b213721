"""Forecasts by `statsforecast` of the series that the pipeline tested its own on.

Runs in an environment of its own, since statsforecast wants an older pandas: reads the Parquet file
that `bench.forecast --statsforecast` writes, and prints a table. Each model sees a series from its
first day with an event to the forecast's, however long; the pipeline sees 56 days.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from statistics import mean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from statsforecast.models import MSTL, AutoETS, DynamicOptimizedTheta, SeasonalNaive

SEASON = 7
SCALED_DAYS = 56  # over which the pipeline measures what a seasonal difference is


def main(path: str) -> None:
    """Print the mean error and the share within the band of 80 %, by scope and horizon."""
    warnings.simplefilter("ignore")
    models = {
        "AutoETS": AutoETS(season_length=SEASON),
        "DynamicOptimizedTheta": DynamicOptimizedTheta(season_length=SEASON),
        "MSTL": MSTL(season_length=SEASON, trend_forecaster=AutoETS(model="ZZN")),
    }
    found: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for series in pq.read_table(path).to_pylist():
        days = np.array(series["quantities"], dtype=float)
        values = np.nan_to_num(days)
        history, coming = values[: -series["horizon"]], values[-series["horizon"] :]
        used = np.flatnonzero(~np.isnan(days[: -series["horizon"]][-SCALED_DAYS:]))
        recent = history[-SCALED_DAYS:][used[0] :]
        scale = float(np.mean(np.abs(recent[SEASON:] - recent[:-SEASON])))
        naive = SeasonalNaive(season_length=SEASON).forecast(history, len(coming))["mean"]
        naive_mase = float(np.mean(np.abs(naive - coming))) / scale
        # So both compare the same days by the same measure.
        assert abs(naive_mase - series["naive_mase"]) < 1e-6, (naive_mase, series)
        at = series["scope"], series["horizon"]
        found[*at, "usage-pipeline"].append((series["mase"], series["within"]))
        found[*at, "seasonal naive"].append((naive_mase, float("nan")))
        for name, model in models.items():
            found[*at, name].append(_outcome(model, history, coming, scale))
    print("| scope | days ahead | model | MASE | within the band | series |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (scope, horizon, name), outcomes in sorted(found.items()):
        mase = mean(error for error, _ in outcomes)
        within = mean(share for _, share in outcomes)
        band = "" if name == "seasonal naive" else f"{within:.0%}"
        print(f"| {scope} | {horizon} | {name} | {mase:.2f} | {band} | {len(outcomes):,} |")


def _outcome(model: Any, history: Any, coming: Any, scale: float) -> tuple[float, float]:
    """Error, in seasonal differences, and share within the band; as the pipeline's, not below 0
    where the series never was."""
    made = model.forecast(history, len(coming), level=[80])
    least = 0.0 if history.min() >= 0 else -np.inf
    expected, low = np.maximum(made["mean"], least), np.maximum(made["lo-80"], least)
    within = (low <= coming) & (coming <= made["hi-80"])
    return float(np.mean(np.abs(expected - coming))) / scale, float(np.mean(within))


if __name__ == "__main__":
    main(sys.argv[1])
