"""What `make lint` has to refuse, and that the hooks before a commit run the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from usage_pipeline.settings import PROJECT_DIR


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    makefile = (PROJECT_DIR / "Makefile").read_text("utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", makefile, re.M)
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    config = yaml.safe_load((PROJECT_DIR / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_a_module_on_the_wrong_side_fails(tmp_path: Path) -> None:
    """One violation of each contract, in a copy of the package."""
    shutil.copytree(PROJECT_DIR / "usage_pipeline", tmp_path / "usage_pipeline")
    shutil.copy(PROJECT_DIR / "pyproject.toml", tmp_path)
    wrong = {
        "stray.py": "import json",  # in no layer
        "landing/extraction.py": "import usage_pipeline.publishing.publisher",  # against the flow
        "cli/users.py": "import usage_pipeline.cli.health",
        "cli/show.py": "import usage_pipeline.client",
        "client/errors.py": "import usage_pipeline.days",
        "orchestration/jobs.py": "import usage_pipeline.orchestration.sensors; import dbt.version",
        "operations/status.py": "import dagster_postgres",
        "rollup.py": "import dagster",
        "warehouse/transform.py": "import dagster_dbt",
        "web/figures.py": "import usage_pipeline.landing.landed_days",
        "web/rates.py": "import usage_pipeline.web.state",
    }
    for module, statement in wrong.items():
        with (tmp_path / "usage_pipeline" / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{statement}\n")
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "0 kept, 8 broken" in found.stdout
    said = " ".join(found.stdout.split())
    for imported in (
        "landing.extraction -> usage_pipeline.publishing.publisher",
        "cli.users -> usage_pipeline.cli.health",
        "cli.show -> usage_pipeline.client",
        "client.errors -> usage_pipeline.days",
        "orchestration.jobs -> usage_pipeline.orchestration.sensors",
        "orchestration.jobs -> dbt",
        "web.figures -> usage_pipeline.landing.landed_days",
        "web.rates -> usage_pipeline.web.state",
        "operations.status -> dagster_postgres",
        "rollup -> dagster",
        "warehouse.transform -> dagster_dbt",
        "stray",
    ):
        assert imported in said


@pytest.mark.parametrize(
    ("module", "statement", "allowed"),
    [
        ("usage_pipeline/rollup.py", "import dagster", False),
        ("usage_pipeline/landing/extraction.py", "from dagster_dbt import dbt_assets", False),
        ("usage_pipeline/cli/rollups.py", "from dagster_postgres import x", False),
        ("usage_pipeline/operations/status.py", "from dbt.cli.main import dbtRunner", False),
        ("usage_pipeline/orchestration/jobs.py", "import dagster", True),
        ("usage_pipeline/definitions.py", "import dagster", True),
        ("usage_pipeline/warehouse/transform.py", "from dbt.cli.main import dbtRunner", True),
    ],
)
def test_who_imports_dagster_or_dbt_elsewhere_is_told_why(
    module: str, statement: str, allowed: bool
) -> None:
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--no-cache", "--quiet"]
    found = subprocess.run(
        [*ruff, "--select", "TID251", "--stdin-filename", str(PROJECT_DIR / module), "-"],
        input=f"{statement}\n",
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode == 0) == allowed, found.stdout
