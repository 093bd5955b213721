"""The documentation against the code: names that drift apart fail here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
import yaml

from usage_pipeline.cli import app
from usage_pipeline.meters.file import parse_meters
from usage_pipeline.meters.meter import AGGREGATIONS
from usage_pipeline.serving.tables import SERVED_TABLES
from usage_pipeline.settings import DBT_PROJECT_DIR, PROJECT_DIR, Settings

README = (PROJECT_DIR / "README.md").read_text("utf-8")
METERS = (PROJECT_DIR / "docs" / "meters.md").read_text("utf-8")
BENCHMARKS = PROJECT_DIR / "docs" / "benchmarks.md"
PAGES = sorted([*PROJECT_DIR.glob("*.md"), *(PROJECT_DIR / "docs").rglob("*.md")])
page = pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(PROJECT_DIR)))


def _section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {heading!r}"
    return found[1]


def _rows(markdown: str) -> list[list[str]]:
    """The cells of all table rows without their back-ticks, headings left out."""
    lines = re.findall(r"^\|(.+)\|\n", markdown, re.M)
    rows = [[cell.strip().strip("`") for cell in line.split("|")] for line in lines]
    rules = [at for at, row in enumerate(rows) if all(re.fullmatch(":?-+:?", c) for c in row)]
    return [row for at, row in enumerate(rows) if at not in rules and at + 1 not in rules]


def _anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def _commands() -> dict[str, set[str]]:
    """Every command as it is typed, with its options."""
    found = {}

    def walk(command: object, words: list[str]) -> None:
        children = getattr(command, "commands", None)
        if children:
            for name, child in children.items():
                walk(child, [*words, name])
        else:
            options = {o for p in getattr(command, "params", []) for o in p.opts if o[:2] == "--"}
            found[" ".join(words)] = options - {"--help"}

    walk(typer.main.get_command(app), ["usage-pipeline"])
    return found


def test_settings_table_names_exactly_the_settings() -> None:
    rows = _rows(_section(README, "Settings"))
    variables = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert sorted(row[0] for row in rows) == sorted(variables)


def test_settings_table_gives_the_defaults() -> None:
    documented = {row[0]: row[1] for row in _rows(_section(README, "Settings"))}
    for field in Settings.model_fields.values():
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is None:
            continue  # described in words
        if isinstance(default, Path) and default.is_absolute():
            default = default.relative_to(PROJECT_DIR)
        expected = str(default).lower() if isinstance(default, bool) else str(default)
        assert documented[str(field.validation_alias)] == expected


def test_example_environment_names_exactly_the_settings() -> None:
    example = (PROJECT_DIR / ".env.example").read_text("utf-8")
    variables = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert sorted(re.findall(r"^# ?([A-Z_]+)=", example, re.M)) == sorted(variables)


def test_outputs_table_is_the_served_tables_with_their_grain() -> None:
    documented = {row[0]: row[1] for row in _rows(_section(README, "Outputs"))}
    grains = {table.name: ", ".join(table.key) for table in SERVED_TABLES}
    # its key is an id made of the grain
    grains["usage_aggregations"] = "user_id, org_id, period_type, period_start, metric_type"
    assert documented == grains


def test_every_command_and_option_is_documented() -> None:
    section = _section(README, "Commands")
    for command, options in _commands().items():
        examples = re.findall(rf"`({re.escape(command)}(?: [^`]*)?)`", section)
        assert examples, f"README has no example of {command}"
        for option in options:
            assert any(option in example for example in examples), f"{command} {option}"


@page
def test_commands_in_the_documentation_exist(path: Path) -> None:
    commands = _commands()
    for typed in re.findall(r"(?:^|`|bin/)(usage-pipeline [a-z][^`\n|]*)", path.read_text(), re.M):
        words = typed.split()
        name = " ".join(words[: 3 if words[1] == "app-db" else 2])
        assert name in commands, typed
        used = {word for word in words if word.startswith("--")} - {"--help", "--debug"}
        assert used <= commands[name], typed


@page
def test_make_targets_in_the_documentation_exist(path: Path) -> None:
    makefile = (PROJECT_DIR / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text("utf-8"), re.M))
    assert named <= targets


@page
def test_relative_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / unquote(target)).resolve() if target else path
        assert file.exists(), link
        if anchor:
            assert anchor in _anchors(file.read_text("utf-8")), link


@page
def test_speed_is_claimed_in_benchmarks_only(path: Path) -> None:
    if path == BENCHMARKS:
        return
    measured = BENCHMARKS.read_text("utf-8") if BENCHMARKS.exists() else ""
    for claim in re.findall(r"\d[\d,.]*\s*events/s\b", path.read_text("utf-8")):
        assert claim in measured, claim


@page
def test_shell_examples_parse(path: Path) -> None:
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text("utf-8"), re.M | re.S):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_default_meters_are_documented_as_they_are() -> None:
    rows = _rows(_section(METERS, "The default meters"))
    meters = parse_meters(DBT_PROJECT_DIR / "meters.yml")
    assert rows == [
        [m.key, m.event_type, m.aggregation, m.value or "quantity", m.unit] for m in meters
    ]


def test_meter_example_is_accepted_and_complete(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", METERS, re.M | re.S)
    path = tmp_path / "meters.yml"
    path.write_text(example, "utf-8")
    assert len(parse_meters(path)) == len(yaml.safe_load(example)["meters"])


def test_every_key_and_aggregation_of_a_meter_is_documented() -> None:
    keys = {row[0] for row in _rows(_section(METERS, "Keys"))}
    assert keys == {
        "key",
        "event_type",
        "aggregation",
        "value",
        "filter",
        "dimensions",
        "unit",
        "description",
    }
    listed = " ".join(row[0] for row in _rows(_section(METERS, "Aggregations")))
    assert set(re.findall(r"\w+", listed)) == set(AGGREGATIONS)


def test_changelog_has_the_version_of_the_package() -> None:
    project = (PROJECT_DIR / "pyproject.toml").read_text("utf-8")
    version = re.search(r'^version = "(.+)"', project, re.M)
    assert version
    assert f"## [{version[1]}]" in (PROJECT_DIR / "CHANGELOG.md").read_text("utf-8")
