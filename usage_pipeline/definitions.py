"""What Dagster loads (`workspace.yaml`). Assembly only; no logic."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from usage_pipeline.infra.permissions import UMASK
from usage_pipeline.infra.processes import collect_rarely
from usage_pipeline.orchestration import assets, checks, jobs, maintenance, schedules, sensors
from usage_pipeline.orchestration.partitions import Partitions
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings, load_settings


def build_defs(
    settings: Settings | None = None, overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """All definitions for one set of settings.

    Args:
        settings: read from the environment when not given.
        overrides: resources that tests replace, by name.

    Raises:
        UsagePipelineError: a setting or the meters file is not valid.
    """
    settings = settings or load_settings()
    rollup = Rollup(settings)
    partitions = Partitions(settings)
    job_list = jobs.build_jobs()
    with warnings.catch_warnings():
        # Backfill policies are "beta"; the dependency range is pinned to one minor version.
        warnings.simplefilter("ignore", dg.BetaWarning)
        asset_list = assets.build_assets(rollup, partitions)
    return dg.Definitions(
        assets=asset_list,
        asset_checks=checks.build_checks(rollup),
        jobs=[*job_list, maintenance.build_maintenance()],
        schedules=schedules.build_schedules(settings, partitions),
        sensors=sensors.build_sensors(settings, job_list),
        resources={"rollup": rollup, **(overrides or {})},
        # In one process: a multiprocess job would import Dagster and dbt again for each step.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Built when Dagster asks, not at import."""
    os.umask(UMASK)  # of the code server and of each run's process, whoever started it
    collect_rarely()
    return build_defs()
