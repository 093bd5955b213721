"""Private names of Dagster: where they are used, and that an upgrade has not moved one."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.context.metadata_logging import OutputMetadataAccumulator
from dagster._core.execution.context.system import StepExecutionContext
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage

from usage_pipeline.orchestration import internals
from usage_pipeline.orchestration.internals.storage import (
    BulkEventLogStorage,
    PooledPostgresStorage,
)
from usage_pipeline.settings import PROJECT_DIR

INTERNALS = Path(internals.__path__[0])
# What `dagster dev` and `dagster api` load is named in files and commands, not imported.
PRIVATE = ("dagster._", "dagster_dbt.", "dagster_postgres.", "dagster_webserver.")


def private_imports(path: Path) -> set[str]:
    """Names of Dagster in a module that are not of its public packages."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    from_ = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    plain = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return {name for name in from_ | plain if name.startswith(PRIVATE)}


def test_private_names_are_imported_in_one_folder_only() -> None:
    found = {path: private_imports(path) for path in (PROJECT_DIR / "usage_pipeline").rglob("*.py")}
    assert any(found[path] for path in found if path.parent == INTERNALS)
    elsewhere = {path.name: names for path, names in found.items() if path.parent != INTERNALS}
    allowed = {"launch.py": {"dagster_postgres.utils"}}  # the error that its storage raises
    assert {name: names for name, names in elsewhere.items() if names} == allowed


@pytest.mark.parametrize("module", sorted(path.stem for path in INTERNALS.glob("[a-z]*.py")))
def test_an_internal_module_finds_all_its_names(module: str) -> None:
    importlib.import_module(f"{internals.__name__}.{module}")


@pytest.mark.parametrize(
    ("ours", "base", "names"),
    [
        (
            BulkEventLogStorage,
            PostgresEventLogStorage,
            {"__init__", "has_table", "has_asset_key_col", "store_event_batch"},
        ),
        (
            PooledPostgresStorage,
            DagsterPostgresStorage,
            {"__init__", "config_type", "from_config_value"},
        ),
    ],
)
def test_what_we_replace_is_still_asked_for(ours: type, base: type, names: set[str]) -> None:
    assert {name for name, what in vars(ours).items() if callable(what) or name in names} == names
    for name in names - {"__init__"}:
        theirs = inspect.signature(getattr(base, name)).parameters
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(theirs), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("prepare_insert_event_batch", ["self", "events"]),
        ("_store_asset_event_tags", ["self", "conn", "events", "event_ids"]),
        ("_store_asset_event", ["self", "conn", "event", "event_id"]),
        ("index_transaction", ["self"]),
        ("_connect", ["self"]),
    ],
)
def test_what_a_bulk_write_is_made_of(name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(PostgresEventLogStorage, name)).parameters)
    assert found[: len(parameters)] == parameters


def test_batches_are_as_large_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        size: Any = instance._get_event_batch_size
        monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "17")
        assert size() == 17


def test_metadata_of_partitions_is_kept_where_we_put_it() -> None:
    """`record_partitions` replaces what this attribute holds; Dagster reads it back."""
    context = StepExecutionContext
    assert "_metadata_accumulator" in inspect.getsource(context.__init__)
    assert "_metadata_accumulator" in inspect.getsource(context.get_asset_metadata)
    fields = OutputMetadataAccumulator.empty()
    assert fields.per_output_metadata == {}


def test_the_storages_that_are_pooled_are_there() -> None:
    source = inspect.getsource(DagsterPostgresStorage.__init__)
    for name in ("_event_log_storage", "_run_storage", "_schedule_storage"):
        assert f"self.{name} = " in source
