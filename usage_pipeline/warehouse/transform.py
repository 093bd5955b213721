"""Transforming: dbt, run inside this process. What is built is said in the dbt project.

dbt's parse is done once per change of the project, which knows no meters until it runs, and kept
under USAGE_HOME/dbt; running in-process with that manifest saves the seconds a dbt command needs to
start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import duckdb
import yaml

from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.infra.disk import no_room, replace_text, scratch
from usage_pipeline.infra.duckdb_files import open_duckdb
from usage_pipeline.infra.timings import Timings
from usage_pipeline.meters.file import load_meters
from usage_pipeline.meters.version import dbt_vars, meters_version
from usage_pipeline.serving.landed_events import EXTRACT_AGAIN, is_unreadable, landed_events
from usage_pipeline.settings import DBT_PROJECT_DIR, Settings
from usage_pipeline.warehouse.pending import PendingDays

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest


DBT = "dbt's start and end"  # the stage around its models and tests

# What a parse puts in the place of this home's: paths and meters are not known before a model is
# compiled, so a process parses once for all homes. The warehouse's name is that of its database.
_NOWHERE = {
    "USAGE_DBT_WAREHOUSE": "warehouse.duckdb",
    "USAGE_DBT_LANDING": "<landing>",
    "USAGE_DBT_LANDED_EVENTS": "<landed events>",
    "USAGE_DBT_SNAPSHOT": "published.duckdb",
}
_PARSED: dict[str, Manifest] = {}  # of the project as it is, by its hash

# Stands in the SQL of `usage_daily_models` for the list of landed files.
LANDED_FILES = "'landed files'"


@dataclass(frozen=True)
class NodeResult:
    """What dbt says of one model or test.

    Attributes:
        unique_id: dbt's id, such as `model.usage_pipeline.usage_daily`.
        status: `success`, `pass`, `warn`, `fail` or `error`.
        seconds: its run time.
        failures: rows a test found, None for models.
        message: dbt's own words.
    """

    unique_id: str
    status: str
    seconds: float
    failures: int | None
    message: str

    @property
    def name(self) -> str:
        return self.unique_id.split(".")[2]


class Transformer:
    """The dbt project bound to one warehouse.

    Args:
        settings: paths, time zone and meters file.

    Attributes:
        timings: of dbt; its own start counts apart from the nodes that it runs.

    Raises:
        UsagePipelineError: the meters file is not valid.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.timings = Timings()
        self.meters = load_meters(settings)

    @property
    def needs_event_data(self) -> bool:
        return any(meter.reads_event_data for meter in self.meters)

    @cached_property
    def version(self) -> str:
        """Identifies what warehouse rows are built with; another version means: rebuild."""
        parts = [
            _models_hash(),
            meters_version(self.meters),
            self.settings.timezone,
            self.settings.start_date.isoformat(),
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    def pending(
        self, landed: Callable[[], Iterable[date]], lost: Callable[[], Iterable[date]]
    ) -> PendingDays:
        return PendingDays(self.settings, self.version, landed, lost)

    def manifest_path(self) -> Path:
        """dbt's manifest.json, made by a parse when absent or older than the project."""
        path = self.settings.dbt_target_dir / "manifest.json"
        stamp = self.settings.dbt_target_dir / "parsed_version"
        current = self._project
        if not path.exists() or not stamp.exists() or stamp.read_text() != current:
            path.parent.mkdir(parents=True, exist_ok=True)  # the parse may have been another home's
            # By rename: a kill must not leave half a manifest, nor another process read it.
            with scratch(self.settings) as work:
                self._loaded_manifest().write(str(work / path.name))
                (work / stamp.name).write_text(current)
                (work / path.name).replace(path)
                (work / stamp.name).replace(stamp)
        return path

    def run(self, selection: str, days: DayRange | None = None) -> list[NodeResult]:
        """Build the models of a selection, for a window of days where one is given.

        Raises:
            UsagePipelineError: a model failed; names it and what the engine said.
        """
        window = (
            ["--event-time-start", str(days.start), "--event-time-end", str(days.end)]
            if days
            else []
        )
        results = self._invoke("run", "--select", selection, *window)
        failed = [result for result in results if result.status == "error"]
        if failed:
            raise self._failure(f"The model {failed[0].name} failed", failed[0].message)
        return results

    def test(self, days: DayRange) -> list[NodeResult]:
        """Run the data tests over a window; failures are results, not exceptions."""
        # Not `dbt build`, which makes tests wait for each other and skips some when others fail.
        # `dbt test` knows no event times, so the window comes as a variable.
        window = {"window_start": days.start.isoformat(), "window_end": days.end.isoformat()}
        results = self._invoke("test", "--resource-type", "test", variables=window)
        found = {r.unique_id for r in results if r.status != "skipped"}
        silent = self.data_tests() - found
        return [
            *(result for result in results if result.unique_id in found),
            *(
                NodeResult(unique_id, "error", 0.0, None, "dbt gave no result of this test")
                for unique_id in sorted(silent)
            ),
        ]

    def count_anew(self) -> None:
        """Empty the running sums, which carry over from run to run: the next build of the summaries
        counts all days. The caller is the single writer."""
        with (
            open_duckdb(self.settings, self.settings.warehouse_path) as db,
            suppress(duckdb.CatalogException),  # there are none yet
        ):
            db.execute("delete from usage_trailing_partials")

    def data_tests(self) -> set[str]:
        """The ids of all data tests of the project."""
        nodes = self._loaded_manifest().nodes.values()
        return {node.unique_id for node in nodes if node.resource_type == "test"}

    def documentation(self) -> Path:
        """dbt's pages of the project in one file, made when absent or older than the project.

        Columns and types come from the models' contracts: the warehouse is not opened.
        """
        path, manifest = self.settings.dbt_target_dir / "static_index.html", self.manifest_path()
        if not path.exists() or path.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
            self._dbt(["docs", "generate", "--static", "--empty-catalog", "--no-compile"])
        return path

    def usage_daily_models(self) -> dict[str, str]:
        """`usage_daily` and the models it is made of, each as the statement that creates it in a
        database `warehouse`, in the order in which they build.

        For all of time, with `LANDED_FILES` where the landed files go. Kept beside the manifest:
        compiling takes a second.
        """
        path = self.settings.dbt_target_dir / "usage_daily_models.json"
        current = self._stamp
        with suppress(FileNotFoundError, ValueError, KeyError):
            kept = json.loads(path.read_text())
            if kept["version"] == current:
                return cast("dict[str, str]", kept["models"])
        # No selector may hold a model's name: dbt prints the SQL of models it is asked for by name.
        selected = [f"tag:{tag},resource_type:model" for tag in ("staging", "daily")]
        # As on an empty warehouse, so that none of them asks what an earlier build left there.
        arguments = ["compile", "--select", *selected, "--no-populate-cache", "--full-refresh"]
        with self.timings.stage(DBT):
            results = self._dbt(arguments).results
        nodes = {result.node.unique_id: result.node for result in results}
        wanted = ["model.usage_pipeline.usage_daily"]
        for unique_id in wanted:  # grows while its parents are found
            parents = nodes[unique_id].depends_on.nodes
            wanted += [parent for parent in parents if parent in nodes and parent not in wanted]
        models = {
            node.name: f"create {'view' if node.config.materialized == 'view' else 'table'}"
            f" warehouse.main.{node.name} as "
            + node.compiled_code.replace(self._all_landed_files, LANDED_FILES)
            for unique_id, node in nodes.items()
            if unique_id in wanted
        }
        replace_text(self.settings, path, json.dumps({"version": current, "models": models}))
        return models

    @cached_property
    def _project(self) -> str:
        """Identifies what dbt parses."""
        return _project_hash()

    @cached_property
    def _stamp(self) -> str:
        """Identifies what dbt renders: its SQL holds what it reads, and where."""
        return f"{self.version} {self._project} {landed_events(self._all_landed_files)}"

    @property
    def _all_landed_files(self) -> str:
        return f"'{self.settings.events_dir}/*/part-*.parquet'"

    def _invoke(
        self, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> list[NodeResult]:
        with self.timings.stage(DBT):
            results = self._dbt(list(arguments), variables).results
            marks = [mark for result in results for mark in result.timing]
            if marks:  # from the first node's start to the last one's end
                nodes = max(m.completed_at for m in marks) - min(m.started_at for m in marks)
                self.timings.hand_up(nodes.total_seconds())
        return [
            NodeResult(
                unique_id=result.node.unique_id,
                status=str(result.status),
                seconds=result.execution_time,
                failures=result.failures,
                message=result.message or "",
            )
            for result in results
        ]

    def _dbt(self, arguments: list[str], variables: Mapping[str, str] | None = None) -> Any:
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager
        from dbt.cli.main import dbtRunner

        interrupts.quiet_tracker()
        manifest, given = None, {}
        if arguments == ["parse"]:
            os.environ.update(_NOWHERE)
        else:
            manifest = self._bound(self._loaded_manifest())
            given = {**self.dbt_vars(), **(variables or {})}
        self.settings.dbt_target_dir.mkdir(parents=True, exist_ok=True)
        outcome = dbtRunner(manifest=manifest).invoke(
            [
                "--log-level",  # its words are in the results; a failure is told once, by us
                "none",
                "--log-level-file",
                "none",
                "--no-version-check",
                "--no-write-json",
                *arguments,
                "--project-dir",
                str(DBT_PROJECT_DIR),
                "--profiles-dir",
                str(DBT_PROJECT_DIR),
                "--target",
                "warehouse",
                "--target-path",
                str(self.settings.dbt_target_dir),
                "--log-path",  # nothing is logged there, but dbt makes the directory
                str(self.settings.dbt_target_dir),
                "--vars",
                json.dumps(given),
            ]
        )
        # Open from the first to the last node, not once for each; closed, because only one process
        # can have it open.
        DuckDBConnectionManager.close_all_connections()
        if outcome.exception:
            failure = self._failure(f"dbt {arguments[0]} failed", str(outcome.exception))
            raise failure from outcome.exception
        return outcome.result

    def _failure(self, what: str, words: str) -> UsagePipelineError:
        return no_room(words, self.settings.home) or UsagePipelineError(
            f"{what}: {_first_line(words)}", _remedy(words)
        )

    def dbt_vars(self) -> dict[str, Any]:
        return {
            **dbt_vars(self.meters),
            "start_date": self.settings.start_date.isoformat(),
        }

    def _loaded_manifest(self) -> Manifest:
        if self._project not in _PARSED:
            with self.timings.stage(DBT):
                # quick in a home where nothing changed: dbt reuses its partial parse
                parsed = cast("Manifest", self._dbt(["parse"]))
            _PARSED.clear()
            _PARSED[self._project] = parsed
        return _PARSED[self._project]

    def _bound(self, manifest: Manifest) -> Manifest:
        """The manifest as parsed, with this home's places.

        What an invocation before compiled into it is taken out, since dbt takes that for its own:
        ephemeral models would keep the first window, or be missing.
        """
        settings = self.settings
        here = {
            "USAGE_DBT_WAREHOUSE": str(settings.warehouse_path),
            "USAGE_DBT_LANDING": str(settings.landing_dir),
            "USAGE_DBT_LANDED_EVENTS": landed_events(self._all_landed_files),
            "USAGE_DBT_SNAPSHOT": str(settings.published_path),
        }
        os.environ.update(here)

        def somewhere(text: str) -> str:
            for name, nowhere in _NOWHERE.items():
                text = text.replace(nowhere, here[name])
            return text

        for node in cast("Iterable[Any]", manifest.nodes.values()):
            node.compiled, node.extra_ctes, node.extra_ctes_injected = False, [], False
        for source in cast("Iterable[Any]", manifest.sources.values()):
            source.meta = {key: somewhere(text) for key, text in source.config.meta.items()}
        return manifest


def _project_files(*folders: str) -> list[Path]:
    """Files of the dbt project that dbt reads, in an order that does not depend on the disk."""
    found = [path for folder in folders for path in (DBT_PROJECT_DIR / folder).rglob("*.*")]
    return [*sorted(found), DBT_PROJECT_DIR / "dbt_project.yml"]


def _project_hash() -> str:
    """Changes with anything in the project, tests and descriptions included."""
    digest = hashlib.sha256()
    for path in _project_files("models", "macros", "tests"):
        digest.update(str(path.relative_to(DBT_PROJECT_DIR)).encode() + path.read_bytes())
    return digest.hexdigest()


# Text in quotes first, so that what looks like a comment in it is none.
_SQL_PIECES = re.compile(r"('(?:[^']|'')*')|--[^\n]*|/\*.*?\*/|\{#.*?#\}|\s+", re.DOTALL)
_PROSE = (
    *("description", "data_tests", "unit_tests"),
    *("exposures", "semantic_models", "metrics", "time_spine", "granularity"),
)


def _models_hash() -> str:
    """Changes when a number could: with the code of models and macros and what configures them,
    not with comments, layout, descriptions, tests, and what is said of finished tables."""
    digest = hashlib.sha256()
    for path in _project_files("models", "macros"):
        text = path.read_text("utf-8")
        if path.suffix == ".sql":
            meaning = _SQL_PIECES.sub(lambda piece: piece.group(1) or " ", text)
            meaning = " ".join(meaning.split())
        else:
            meaning = json.dumps(_without_prose(yaml.load(text, _YAML)), default=str)
        digest.update(f"{path.relative_to(DBT_PROJECT_DIR)}\n{meaning}\n".encode())
    return digest.hexdigest()


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it


def _without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_prose(value[key]) for key in value if key not in _PROSE}
    return [_without_prose(item) for item in value] if isinstance(value, list) else value


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    # dbt puts the kind of error first and the engine's words second, below a headline or not.
    lines = [line for line in lines if line not in ("", "Runtime Error")]
    return " ".join(lines[:2]) if lines else "no message"


def _remedy(message: str) -> str:
    if is_unreadable(message):
        return EXTRACT_AGAIN
    if "out of disk" in message.lower():
        return "Free disk space and run again; what is published stays as it was"
    if "Could not set lock" in message or "Conflicting lock" in message:
        return "Close whatever has warehouse.duckdb open; read serving/usage.duckdb instead"
    return "Correct the cause and run again; what is published stays as it was"
