"""The documentation against the code: names that drift apart fail here."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from docs import generate
from usage_pipeline.meters.file import parse_meters
from usage_pipeline.meters.meter import AGGREGATIONS
from usage_pipeline.serving.tables import SERVED_TABLES
from usage_pipeline.settings import DBT_PROJECT_DIR, PROJECT_DIR, Settings

README = (PROJECT_DIR / "README.md").read_text("utf-8")
REFERENCE = (PROJECT_DIR / "docs" / "reference.md").read_text("utf-8")
METERS = (PROJECT_DIR / "docs" / "meters.md").read_text("utf-8")
page = pytest.mark.parametrize(
    "path", generate.PAGES, ids=lambda p: str(p.relative_to(PROJECT_DIR))
)


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


@page
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    text = path.read_text("utf-8")
    assert generate.generated(text) == text, "run `make docs`"


def test_the_order_of_imports_is_that_of_the_contract() -> None:
    text = (PROJECT_DIR / "docs" / "architecture.md").read_text("utf-8")
    told = re.search(r"^Imports run one way: (.+)\.$", text, re.M)
    assert told
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text("utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]["layers"]
    layers = [set(re.findall(r"`(\w+)`", layer)) for layer in told[1].split("→")]
    assert layers == [set(re.findall(r"\w+", layer)) for layer in contract]


def test_a_changed_figure_is_written_into_the_text() -> None:
    row = "make demo, installed | usage-pipeline | budget"
    text = f"<!-- figure: {row} -->3 days<!-- /figure -->"
    assert generate.generated(text) == f"<!-- figure: {row} -->≤ 60 s<!-- /figure -->"


def test_a_figure_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="has 0 figures"):
        generate.generated("<!-- figure: a flight | usage-pipeline | median --><!-- /figure -->")


def test_settings_table_names_exactly_the_settings() -> None:
    rows = _rows(_section(REFERENCE, "Settings"))
    variables = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert sorted(row[0] for row in rows) == sorted(variables)


def test_settings_table_gives_the_defaults() -> None:
    documented = {row[0]: row[1] for row in _rows(_section(REFERENCE, "Settings"))}
    for field in Settings.model_fields.values():
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is None:
            default = "unset"
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
    tables = {table.name: ", ".join(table.key) for table in SERVED_TABLES}
    assert documented == {
        **tables,
        "usage_aggregations": "id",
        "usage_forecast": "scope, user_id, org_id, metric_type, forecast_date",
        "usage_limit_status": "scope, user_id, org_id, metric_type",
        "usage_alerts": "scope, user_id, org_id, metric_type, month, threshold",
    }


def test_commands_fit_into_the_list_of_help() -> None:
    described = {row[0]: row[1] for row in _rows(_section(README, "Commands"))}
    assert len(described) == 24
    assert {name: text for name, text in described.items() if len(text) > 60} == {}


@page
def test_commands_in_the_documentation_exist(path: Path) -> None:
    commands = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in generate.command_line()
    }
    for typed in re.findall(r"(?:^|`|bin/)(usage-pipeline [a-z][^`\n|]*)", path.read_text(), re.M):
        words = typed.split()
        groups = ("alerts", "app-db", "keys", "meters", "webhooks")
        name = " ".join(words[: 3 if words[1] in groups else 2])
        assert name in commands, typed
        used = {word for word in words if word.startswith("--")} - {"--help", "--debug"}
        assert used <= commands[name], typed


@page
def test_make_targets_in_the_documentation_exist(path: Path) -> None:
    makefile = (PROJECT_DIR / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text("utf-8"), re.M))
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
def test_speed_is_claimed_by_figures_only(path: Path) -> None:
    if path.parent.name == "decisions":
        return  # which keep what was measured when they were made
    unit = r"\d[\d.,]*\s?(?:(?:events|rows|files)/s|MiB|GiB|s)\b"
    assert re.findall(unit, generate.without_generated(path.read_text("utf-8"))) == []


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
        "alert_at",
        "alert_every",
    }
    listed = " ".join(row[0] for row in _rows(_section(METERS, "Aggregations")))
    assert set(re.findall(r"\w+", listed)) == set(AGGREGATIONS)


def test_columns_are_named_for_their_types() -> None:
    naming = (PROJECT_DIR / "docs" / "naming.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?) \| ([A-Z]+)", _section(naming, "Columns"), re.M)
    kinds = {ending: kind.lower() for row, kind in rows for ending in re.findall("`(.+?)`", row)}
    texts = ("event_id", "run_id", "snapshot_id")
    seen = set()
    for path in DBT_PROJECT_DIR.glob("models/[upr]*/*.yml"):
        for model in yaml.safe_load(path.read_text("utf-8")).get("models", ()):
            if model["name"] == "invalid_usage_events":
                continue  # as it arrived: text
            for column in model["columns"]:
                name, kind = column["name"], column["data_type"].partition("(")[0]
                endings = [ending for ending in kinds if name.endswith(ending)]
                if endings and not name.endswith(texts):
                    assert kind == kinds[max(endings, key=len)], f"{model['name']}.{name}"
                    seen.update(endings)
    assert {"_id", "_at", "_quantity", "_count", "month"} <= seen


def test_changelog_has_the_version_of_the_package() -> None:
    project = (PROJECT_DIR / "pyproject.toml").read_text("utf-8")
    version = re.search(r'^version = "(.+)"', project, re.M)
    assert version
    assert f"## [{version[1]}]" in (PROJECT_DIR / "CHANGELOG.md").read_text("utf-8")
