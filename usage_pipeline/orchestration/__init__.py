"""Dagster's view of the pipeline, one file per concept. The only code that imports Dagster."""

import atexit
import gc
import warnings

from dagster import BetaWarning

# Owners and backfill policies are "beta"; the dependency range is pinned to one minor version.
warnings.filterwarnings("ignore", category=BetaWarning)

# Dagster and dbt are half a million objects that live to the end. Searching them for garbage at
# Python's default pace, and once more at the end, takes a tenth of a night without events.
gc.set_threshold(50_000)
atexit.register(gc.freeze)
