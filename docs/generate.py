"""`make docs`: writes the parts of the documents that the code and the benchmark decide.

A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, a figure between
`<!-- figure: WHAT | WHO | COLUMN -->` and `<!-- /figure -->`: the cell of the row of
docs/benchmarks.json whose `what` begins so. `<!-- figure: MEASUREMENT | NAME -->` is the median of
what its measurements have under that name, in seconds.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer
import yaml

from usage_pipeline.alerts import limits
from usage_pipeline.alerts.events import EVENTS, Payload
from usage_pipeline.cli.main import app
from usage_pipeline.serving.tables import SERVED_TABLES
from usage_pipeline.serving.views import VIEWS
from usage_pipeline.settings import DBT_PROJECT_DIR, PROJECT_DIR, Settings

DOCS = PROJECT_DIR / "docs"
PAGES = sorted([*PROJECT_DIR.glob("*.md"), *DOCS.rglob("*.md")])
_BLOCK = re.compile(r"(<!-- ([a-z-]+):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)
_BENCH = re.compile(
    r"<!-- made by make bench: begin -->.*<!-- made by make bench: end -->", re.DOTALL
)
_FIGURE = re.compile(r"(<!-- figure: (.+?) -->).*?(<!-- /figure -->)", re.DOTALL)


def settings() -> str:
    """Every variable with its default and what it means."""
    rows = []
    for field in Settings.model_fields.values():
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, Path) and default.is_absolute():
            default = default.relative_to(PROJECT_DIR)
        spelled = str(default).lower() if isinstance(default, bool) else default
        shown = "unset" if default is None else f"`{spelled}`"
        rows.append((f"`{field.validation_alias}`", shown, field.description or ""))
    return _table(("variable", "default", "meaning"), rows)


def commands() -> str:
    """Every command in one line."""
    rows = ((f"`{name}`", _first_sentence(command.help)) for name, command in command_line())
    return _table(("command", "does"), rows)


def command_reference() -> str:
    """Every command with all that `--help` says."""
    sections = []
    for name, command in command_line():
        rows = []
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            shown = parameter.opts[0] if is_option else parameter.metavar
            if getattr(parameter, "hidden", False):
                continue
            default = "" if parameter.default in (None, False) else f"`{parameter.default}`"
            rows.append((f"`{shown}`", default, parameter.help))
        options = f"\n\n{_table(('option', 'default', 'meaning'), rows)}" if rows else ""
        sections.append(f"### {name}\n\n{command.help}{options}")
    return "\n\n".join(sections)


def outputs() -> str:
    """Every published table, with its key."""
    models = {
        model["name"]: model["description"]
        for path in DBT_PROJECT_DIR.glob("models/**/*.yml")
        for model in yaml.safe_load(path.read_text("utf-8")).get("models", ())
    }
    rows = (
        (
            f"`{table.name}`",
            ", ".join(table.key),
            _first_sentence(table.description or models[table.name]),
        )
        for table in SERVED_TABLES
    )
    others = (
        *((f"`{v.name}`", ", ".join(v.key), _first_sentence(v.description)) for v in VIEWS),
        (f"`{limits.NAME}`", ", ".join(limits.KEY), limits.DESCRIPTION),
    )
    return _table(("table", "key", "holds"), [*rows, *others])


def events() -> str:
    """Every event, in one sentence."""
    return _table(("event", "says"), ((f"`{name}`", event.says) for name, event in EVENTS.items()))


def event_schemas() -> str:
    """Every payload, with its JSON schema."""
    sections = []
    for payload in dict.fromkeys(event.payload for event in EVENTS.values()):
        names = ", ".join(f"`{name}`" for name, event in EVENTS.items() if event.payload is payload)
        schema = json.dumps(schema_of(payload), indent=2)
        sections.append(f"### {names}\n\n```json\n{schema}\n```")
    return "\n\n".join(sections)


def schema_of(payload: type[Payload]) -> dict[str, Any]:
    """The JSON schema of an event's `data`. It allows other fields, since some may be added."""

    def plain(schema: Any) -> Any:
        if isinstance(schema, list):
            return [plain(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        return {
            key: " ".join(part.split()) if key == "description" else plain(part)
            for key, part in schema.items()
            if not (key == "title" and isinstance(part, str)) and part is not False
        }

    return dict(plain(payload.model_json_schema(mode="serialization")))


def decisions() -> str:
    """Every decision record, with its status and date."""
    rows = []
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        title, _, status = path.read_text("utf-8").splitlines()[:3]
        number, _, name = title.removeprefix("# ").partition(". ")
        state, _, day = status.removeprefix("Status: ").rpartition(", ")
        rows.append((number, f"[{name}]({path.name})", state, day))
    return _table(("number", "decision", "status", "date"), rows)


def missed() -> str:
    """The budgets that the benchmark missed."""
    rows = [
        (row["what"], row["who"], row["ratio"] or _median(row), row["budget"])
        for row in _benchmarks()["rows"]
        if row["verdict"] == "MISSED"
    ]
    return _table(("what", "who", "measured", "budget"), rows) if rows else "No budget is missed."


def rounds() -> str:
    """In how many rounds things were measured, since ranges in the table are of so many."""
    times: dict[int, list[str]] = {}
    for name, measured in _benchmarks()["measurements"].items():
        rounds = {m.get("round", number) for number, m in enumerate(measured)}
        times.setdefault(len(rounds), []).append(f"`{name}`")
    (most, _), *fewer = sorted(times.items(), reverse=True)
    rest = "".join(f"; {_often(count)}: {', '.join(names)}" for count, names in fewer)
    return f"Each measurement was made {_often(most)}{rest and ', but' + rest[1:]}."


def _often(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "command-reference": command_reference,
    "outputs": outputs,
    "decisions": decisions,
    "events": events,
    "event-schemas": event_schemas,
    "missed": missed,
    "rounds": rounds,
}


def figure(words: str) -> str:
    """A figure of docs/benchmarks.json.

    Raises:
        ValueError: not exactly one figure has this name.
    """
    names = words.split(" | ")
    if len(names) == 2:
        measured = _benchmarks()["measurements"][names[0]]
        values = [_figures(m["figures"])[names[1]] for m in measured]
        return f"{statistics.median(values):.1f} s"
    what, who, column = names
    cells = {
        _median(row) if column == "median" else row[column]
        for row in _benchmarks()["rows"]
        if row["what"].startswith(what) and row["who"] == who and row[column]
    }
    if len(cells) != 1:
        raise ValueError(f"docs/benchmarks.json has {len(cells)} figures of {words!r}, not one")
    return str(cells.pop())


def _figures(figures: dict[str, Any]) -> dict[str, float]:
    """Figures with those of stages and runs beside them."""
    inner = [value for value in figures.values() if isinstance(value, dict)]
    return {name: value for named in (figures, *inner) for name, value in named.items()}


def generated(text: str) -> str:
    """A document with all its blocks and figures as they have to be."""
    text = _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)
    return _FIGURE.sub(lambda found: found[1] + figure(found[2]) + found[3], text)


def without_generated(text: str) -> str:
    """What is left of a document for people to write."""
    return _BLOCK.sub("", _FIGURE.sub("", _BENCH.sub("", text)))


def command_line() -> list[tuple[str, Any]]:
    """Every command as it is typed, with click's object of it."""
    found = []

    def walk(command: Any, words: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{words} {name}")
        if not hasattr(command, "commands"):
            found.append((words, command))

    walk(typer.main.get_command(app), "usage-pipeline")
    return found


def _benchmarks() -> Any:
    return json.loads((DOCS / "benchmarks.json").read_text("utf-8"))


def _median(row: dict[str, str]) -> str:
    return row["median"].partition(" (")[0]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for path in PAGES:
        known = path.read_text("utf-8")
        if (now := generated(known)) != known:
            path.write_text(now, "utf-8")
            print(f"{path.relative_to(PROJECT_DIR)} is written anew")
