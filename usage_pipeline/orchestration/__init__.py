"""Dagster's view of the pipeline, one file per concept. The only code that imports Dagster."""

import warnings

from dagster import BetaWarning

# Owners and backfill policies are "beta"; the dependency range is pinned to one minor version.
warnings.filterwarnings("ignore", category=BetaWarning)
