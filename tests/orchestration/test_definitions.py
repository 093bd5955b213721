"""The asset graph as Dagster sees it, without running anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from usage_pipeline.audit.gate import LANDING_EQUALS_SOURCE, ROLLUP_EQUALS_LANDING
from usage_pipeline.definitions import build_defs
from usage_pipeline.orchestration.checks.audit import GATE
from usage_pipeline.orchestration.jobs import DELIVERY, EXPORTS, MONTHLY, NIGHTLY
from usage_pipeline.settings import Settings

GROUPS = {"app_db", "landing", "staging", "usage", "platform", "reporting", "publishing"}
NOWHERE = "postgresql://ada:hunter2@127.0.0.1:1/app"


@pytest.fixture(scope="module")
def settings(make_settings: Any) -> Settings:
    made: Settings = make_settings(USAGE_APP_DATABASE_URL=NOWHERE, DAGSTER_PG_URL=NOWHERE)
    return made


@pytest.fixture(scope="module")
def defs(settings: Settings) -> dg.Definitions:
    return build_defs(settings)


@pytest.fixture(scope="module")
def graph(defs: dg.Definitions) -> Any:
    return defs.resolve_asset_graph()


@pytest.fixture(scope="module")
def manifest(settings: Settings, defs: dg.Definitions) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((settings.dbt_target_dir / "manifest.json").read_text())
    return loaded


_LOAD = """
from usage_pipeline.definitions import defs
loaded = defs()
import dagster as dg
dg.Definitions.validate_loadable(loaded)
print(len(loaded.resolve_asset_graph().get_all_asset_keys()))
"""


def test_definitions_load_in_a_fresh_interpreter_with_no_database_reachable(
    tmp_path: Path,
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "USAGE_HOME": str(tmp_path / "home"),
        "USAGE_APP_DATABASE_URL": NOWHERE,
        "USAGE_PUBLISH_DATABASE_URL": NOWHERE,
        "DAGSTER_PG_URL": NOWHERE,
    }
    result = subprocess.run(
        [sys.executable, "-c", _LOAD],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30
    assert "hunter2" not in result.stdout + result.stderr


def test_every_asset_has_description_owner_kinds_and_one_of_the_seven_groups(graph: Any) -> None:
    groups = set()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert list(node.owners) == ["team:data"], key
        assert node.kinds, key
        groups.add(node.group_name)
    assert groups == GROUPS


def test_every_served_table_and_output_is_an_asset(graph: Any) -> None:
    names = {key.path[-1] for key in graph.materializable_asset_keys}
    assert {"usage_daily", "usage_monthly", "usage_summary"} <= names
    assert {"snapshot", "parquet", "postgres", "user_exports", "usage_events"} <= names


def test_what_is_published_links_to_the_page_that_shows_it(graph: Any) -> None:
    pages = {
        key.to_user_string(): graph.get(key).metadata["page"].value
        for key in graph.materializable_asset_keys
        if "page" in graph.get(key).metadata
    }
    site = "http://127.0.0.1:8000"
    assert pages["usage/usage_daily"] == f"{site}/usage"
    assert pages["reporting/usage_summary"] == f"{site}/usage"
    assert pages["platform/platform_metrics_daily"] == f"{site}/platform"
    assert pages["reporting/usage_anomalies"] == f"{site}/platform"
    assert pages["publishing/snapshot"] == f"{site}/platform#health"
    assert not {"landing/usage_events", "usage/usage_partials_daily"} & pages.keys()


def test_every_model_is_an_asset_and_every_dbt_test_a_check(
    graph: Any, manifest: dict[str, Any]
) -> None:
    nodes = manifest["nodes"].values()
    models = {
        node["name"]
        for node in nodes
        if node["resource_type"] == "model" and node["config"]["materialized"] != "ephemeral"
    }
    assert models <= {key.path[-1] for key in graph.materializable_asset_keys}
    tests = {node["name"] for node in nodes if node["resource_type"] == "test"}
    checks = {key.name for key in graph.asset_check_keys}
    assert tests <= checks
    assert checks - tests == {
        GATE.name,
        ROLLUP_EQUALS_LANDING,
        LANDING_EQUALS_SOURCE,
        "yesterday_is_published",
        "no_events_lost",
        "row_count_is_usual",
        "source_schema_is_unchanged",
        "event_types_are_known",
        "alerts_are_raised",
        "no_message_is_dead",
        "changed_days_are_told",
    }


def test_every_check_says_in_words_what_it_guards_and_whether_it_blocks(graph: Any) -> None:
    for key in graph.asset_check_keys:
        description = graph.get(key).description or ""
        assert len(description.split()) > 3, key
        assert not description.startswith("dbt test"), key
        assert "{" not in description, key
    audit = [graph.get(key).description for key in graph.asset_check_keys]
    assert sum("Blocks publishing." in description for description in audit) > 30


def test_the_gate_blocks_publishing(defs: dg.Definitions, graph: Any) -> None:
    (gate,) = [key for key in graph.asset_check_keys if key.name == GATE.name]
    assert gate == GATE
    (audit,) = [d for d in defs.asset_checks or [] if gate in d.check_keys]
    assert audit.get_spec_for_check_key(gate).blocking
    for name in ("snapshot", "parquet", "postgres"):
        assert GATE.asset_key in graph.get(dg.AssetKey(["publishing", name])).parent_keys


def test_partitions_are_daily_and_monthly_and_a_range_is_one_run(graph: Any) -> None:
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        grain = node.tags.get("grain")
        if grain in ("daily", "monthly"):
            kind = {
                "daily": dg.DailyPartitionsDefinition,
                "monthly": dg.MonthlyPartitionsDefinition,
            }
            assert isinstance(node.partitions_def, kind[grain]), key
            assert node.backfill_policy == dg.BackfillPolicy.single_run(), key
    events = graph.get(dg.AssetKey(["landing", "usage_events"]))
    assert isinstance(events.partitions_def, dg.DailyPartitionsDefinition)
    assert events.backfill_policy == dg.BackfillPolicy.single_run()


def test_a_month_needs_all_its_days(graph: Any) -> None:
    days = graph.get(dg.AssetKey(["usage", "usage_partials_daily"]))
    months = graph.get(dg.AssetKey(["usage", "usage_partials_monthly"]))
    mapping = graph.get_partition_mapping(months.key, days.key)
    mapped = mapping.get_upstream_mapped_partitions_result_for_partitions(
        months.partitions_def.subset_with_partition_keys(["2024-02-01"]),
        months.partitions_def,
        days.partitions_def,
    )
    keys = sorted(mapped.partitions_subset.get_partition_keys())
    assert keys == [f"2024-02-{day:02}" for day in range(1, 30)]


def test_days_feed_the_month_that_holds_them(graph: Any) -> None:
    days = graph.get(dg.AssetKey(["usage", "usage_partials_daily"]))
    months = graph.get(dg.AssetKey(["usage", "usage_partials_monthly"]))
    mapping = graph.get_partition_mapping(months.key, days.key)
    subset = mapping.get_downstream_partitions_for_partitions(
        days.partitions_def.subset_with_partition_keys(["2024-02-29", "2024-03-01"]),
        days.partitions_def,
        months.partitions_def,
    )
    assert sorted(subset.get_partition_keys()) == ["2024-02-01", "2024-03-01"]


def test_what_opens_the_warehouse_to_write_holds_the_pool(defs: dg.Definitions) -> None:
    steps: list[Any] = [
        node.definition
        for job in (NIGHTLY, MONTHLY)
        for node in defs.resolve_job_def(job).nodes_in_topological_order
    ]
    pools = {step.name: step.pool for step in steps}
    writers = {"staging_views", "daily_models", "monthly_models", "current_models"}
    writers |= {"publish", "audit"}
    assert writers <= pools.keys()
    assert {name for name, pool in pools.items() if pool == "warehouse"} == writers


def test_job_selections(defs: dg.Definitions) -> None:
    selected = {
        name: {key.path[-1] for key in defs.resolve_job_def(name).asset_layer.selected_asset_keys}
        for name in (NIGHTLY, MONTHLY, EXPORTS, DELIVERY)
    }
    assert {"usage_events", "users", "stg_usage_events", "usage_daily"} <= selected[NIGHTLY]
    assert not selected[NIGHTLY] & {"usage_monthly", "usage_summary", "snapshot"}
    assert {"usage_monthly", "usage_summary"} <= selected[MONTHLY]
    assert {"snapshot", "parquet", "postgres"} <= selected[MONTHLY]
    assert not selected[MONTHLY] & {"usage_events", "usage_daily", "user_exports", "deliveries"}
    assert selected[EXPORTS] == {"user_exports"}
    assert selected[DELIVERY] == {"deliveries"}
    materializable = set().union(*selected.values())
    graph = defs.resolve_asset_graph()
    assert materializable == {key.path[-1] for key in graph.materializable_asset_keys}


def test_resources_can_be_replaced(settings: Settings) -> None:
    sentinel = object()
    replaced = build_defs(settings, {"rollup": sentinel}).resources or {}
    assert replaced["rollup"] is sentinel
