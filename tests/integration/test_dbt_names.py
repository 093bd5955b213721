"""Names of dbt that are not documented, in warehouse/transform.py: an upgrade has not moved one."""

from __future__ import annotations

import inspect
from dataclasses import fields

from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.duckdb.utils import SourceConfig
from dbt.artifacts.schemas.results import TimingInfo
from dbt.artifacts.schemas.run import RunResult
from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest
from dbt.contracts.graph.nodes import ModelNode, SourceDefinition


def test_a_manifest_is_handed_on_from_command_to_command() -> None:
    assert "manifest" in inspect.signature(dbtRunner).parameters
    assert callable(Manifest.write)


def test_what_an_invocation_compiled_is_taken_back_out_of_the_manifest() -> None:
    names = {field.name for field in fields(ModelNode)}
    assert {"compiled", "compiled_code", "extra_ctes", "extra_ctes_injected"} <= names


def test_where_a_source_is_can_be_said_after_the_parse() -> None:
    """dbt-duckdb reads `meta`; what was parsed stays in the configuration."""
    assert "source.meta" in inspect.getsource(SourceConfig.create_from_source)
    assert {"meta", "config"} <= {field.name for field in fields(SourceDefinition)}


def test_all_connections_are_closed_at_once() -> None:
    assert not inspect.signature(DuckDBConnectionManager.close_all_connections).parameters


def test_a_result_says_how_long_and_how_it_went() -> None:
    names = {field.name for field in fields(RunResult)}
    assert {"status", "timing", "execution_time", "message", "failures", "node"} <= names
    assert {"started_at", "completed_at"} <= {field.name for field in fields(TimingInfo)}
