"""The client's wheel: by itself in an empty environment, and beside the pipeline's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from usage_pipeline.settings import PROJECT_DIR

USE = """
import sys
from usage_pipeline.client import UsageClient, UsageError, log_usage, __file__ as place
client = UsageClient("http://127.0.0.1:1", exit_timeout=0)
assert client.log_usage("5f0c8c9e-8f6e-4d0e-9a44-0c1b2d3e4f50", "api_call")
ours = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(place, *sorted(ours - {"__main__"} - {n for n in ours if n.startswith("_")}))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built from a copy of the tree and without a network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("usage_pipeline", "clients"):
        ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        shutil.copytree(PROJECT_DIR / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT_DIR / name, tree)
    built = {}
    for name, project in (
        ("usage_pipeline", tree),
        ("usage_pipeline_client", tree / "clients/python"),
    ):
        to = tmp_path_factory.mktemp(name)
        pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", to, project)
        (built[name],) = to.glob("*.whl")
    return built


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def python_of(directory: Path) -> Path:
    venv.create(directory, with_pip=False, symlinks=True)
    return directory / "bin" / "python"


def install(python: Path, wheel: Path) -> None:
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)


def used(python: Path) -> list[str]:
    found = subprocess.run(
        [python, "-I", "-c", USE], capture_output=True, text=True, check=True, cwd="/"
    )
    return found.stdout.split()


def test_each_file_is_in_one_wheel(wheels: dict[str, Path]) -> None:
    client, pipeline = files(wheels["usage_pipeline_client"]), files(wheels["usage_pipeline"])
    folder = PROJECT_DIR / "usage_pipeline" / "client"
    names = {path.name for path in folder.iterdir() if path.suffix == ".py"} | {"py.typed"}
    assert client == {f"usage_pipeline/client/{name}" for name in names}
    assert {"usage_pipeline/__init__.py", "usage_pipeline/days.py"} <= pipeline
    assert not client & pipeline


def test_the_client_needs_nothing_else(wheels: dict[str, Path], tmp_path: Path) -> None:
    python = python_of(tmp_path)
    install(python, wheels["usage_pipeline_client"])
    place, *modules = used(python)
    assert Path(place).is_relative_to(tmp_path)
    assert modules == ["usage_pipeline"]


@pytest.mark.parametrize("order", [1, -1])
def test_both_wheels_are_at_home_in_one_place(
    wheels: dict[str, Path], tmp_path: Path, order: int
) -> None:
    """Whichever comes first, and one of them goes alone."""
    python = python_of(tmp_path)
    for wheel in list(wheels.values())[::order]:
        install(python, wheel)
    pipeline = [str(python), "-I", "-c", "import usage_pipeline.days as d; print(d.__file__)"]
    found = subprocess.run(pipeline, capture_output=True, text=True, check=True, cwd="/")
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)
    assert used(python)[1:] == ["usage_pipeline"]
    if order == 1:
        pip("--python", python, "uninstall", "--yes", "usage-pipeline-client")
        subprocess.run(pipeline, check=True, cwd="/", capture_output=True)
    else:
        pip("--python", python, "uninstall", "--yes", "usage-pipeline")
        assert used(python)[1:] == ["usage_pipeline"]


def test_the_wheels_have_one_version() -> None:
    versions = [
        tomllib.loads((PROJECT_DIR / path).read_text("utf-8"))["project"]["version"]
        for path in ("pyproject.toml", "clients/python/pyproject.toml")
    ]
    assert versions[0] == versions[1]
