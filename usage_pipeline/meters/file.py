"""The meters file: read and validated, with errors that name file, line and key."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import yaml

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.meters.event_data import PATH_STEP, spelled_number
from usage_pipeline.meters.meter import AGGREGATIONS, ALERT_AT, Meter
from usage_pipeline.settings import Settings

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_EVENT_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,127}")
_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?) ?(%?)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_KEYS = {
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


def load_meters(settings: Settings) -> list[Meter]:
    """Read and validate `USAGE_METERS_FILE`.

    Raises:
        UsagePipelineError: names file, line and key of the first mistake, or the meters that need
            `event_data` although `USAGE_LAND_EVENT_DATA` is false.
    """
    meters = parse_meters(settings.meters_file)
    if not settings.land_event_data:
        readers = [meter.key for meter in meters if meter.reads_event_data]
        if readers:
            raise UsagePipelineError(
                f"Meters {', '.join(readers)} read event_data, which USAGE_LAND_EVENT_DATA=false "
                "does not land",
                f"Set USAGE_LAND_EVENT_DATA=true, or remove their paths in {settings.meters_file}",
            )
    return meters


def parse_meters(path: Path) -> list[Meter]:
    """The meters of a file, in its order; see `load_meters`."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsagePipelineError(
            f"The meters file {path} cannot be read ({error.strerror})",
            "Set USAGE_METERS_FILE to an existing file",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsagePipelineError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})",
            "Correct the file",
        ) from None
    return _Parser(path).meters(root)


class _Parser:
    """Walks YAML nodes rather than plain data, because nodes know their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, node: yaml.Node | None, key: str, problem: str, remedy: str) -> NoReturn:
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        raise UsagePipelineError(f"{self.path}{line}: {key}: {problem}", remedy)

    def mapping(self, node: yaml.Node, key: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, key, "must be a mapping", "Write `name: value` pairs")
        result: dict[str, yaml.Node] = {}
        for name_node, value in node.value:
            name = str(name_node.value)
            if name in result:
                self.fail(name_node, name, "is given twice", "Remove one of the two")
            result[name] = value
        return result

    def text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
            self.fail(node, key, "must be a single value", "Write one value, not a list or nothing")
        if node.tag == "tag:yaml.org,2002:bool":
            return str(yaml.SafeLoader("").construct_yaml_bool(node)).lower()
        return str(node.value)

    def compared(self, node: yaml.Node, key: str) -> str:
        """A value as event_data is compared with it; in quotes, a number is text like any other."""
        text = self.text(node, key)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return spelled_number(text) if plain and _NUMBER.fullmatch(text) else text

    def json_path(self, node: yaml.Node, key: str, text: str) -> str:
        steps = PATH_STEP.findall(text[1:])
        rebuilt = "".join(f".{name}" if name else f"[{index}]" for name, index in steps)
        if not steps or text != "$" + rebuilt:
            self.fail(node, key, f"{text!r} is not a path", "Write paths like $.usage.total")
        return text

    def meters(self, root: yaml.Node | None) -> list[Meter]:
        if root is None:
            self.fail(None, "meters", "the file is empty", "List at least one meter")
        top = self.mapping(root, "meters")
        for name, node in top.items():
            if name != "meters":
                self.fail(node, name, "is not known here", "The only top-level key is `meters`")
        listing = top.get("meters")
        if not isinstance(listing, yaml.SequenceNode) or not listing.value:
            self.fail(listing or root, "meters", "must be a list", "List at least one meter")
        result: list[Meter] = []
        for node in listing.value:
            meter = self.meter(node)
            if meter.key in {other.key for other in result}:
                self.fail(node, meter.key, "this key is used twice", "Give each meter its own key")
            result.append(meter)
        return result

    def meter(self, node: yaml.Node) -> Meter:
        fields = self.mapping(node, "meter")
        for name, value in fields.items():
            if name not in _KEYS:
                self.fail(value, name, "is not known", f"Use {', '.join(sorted(_KEYS))}")
        for name in ("key", "event_type", "aggregation"):
            if name not in fields:
                self.fail(node, name, "is missing", f"Give the meter a `{name}`")
        key = self.text(fields["key"], "key")
        if not _SNAKE_CASE.fullmatch(key):
            self.fail(fields["key"], "key", f"{key!r} is not snake_case", "Use a-z, 0-9 and _")
        event_type = self.text(fields["event_type"], "event_type")
        if not _EVENT_TYPE.fullmatch(event_type):
            self.fail(
                fields["event_type"],
                "event_type",
                f"{event_type!r} is not an event type",
                "Use letters, digits and _ . : -",
            )
        aggregation = self.text(fields["aggregation"], "aggregation")
        if aggregation not in AGGREGATIONS:
            self.fail(
                fields["aggregation"],
                "aggregation",
                f"{aggregation!r} is not known",
                f"Use one of {', '.join(AGGREGATIONS)}",
            )
        every = fields.get("alert_every")
        return Meter(
            key=key,
            event_type=event_type,
            aggregation=aggregation,
            value=self.value(node, fields.get("value"), aggregation),
            filter=self.filter(fields.get("filter")),
            dimensions=self.dimensions(fields.get("dimensions")),
            unit=self.text(fields["unit"], "unit") if "unit" in fields else "",
            description=(
                self.text(fields["description"], "description") if "description" in fields else ""
            ),
            alert_at=self.shares(fields.get("alert_at")),
            alert_every=self.share(every, "alert_every") if every else None,
        )

    def value(self, meter: yaml.Node, node: yaml.Node | None, aggregation: str) -> str | None:
        if aggregation == "count":
            return None  # counting needs no value, so none can make an event invalid
        if node is None:
            self.fail(meter, "value", "is missing", "Write `value: quantity` or a path like $.n")
        text = self.text(node, "value")
        return None if text == "quantity" else self.json_path(node, "value", text)

    def filter(self, node: yaml.Node | None) -> dict[str, list[str]]:
        result: dict[str, list[str]] = {}
        for path, values in (self.mapping(node, "filter") if node else {}).items():
            self.json_path(values, "filter", path)
            accepted = values.value if isinstance(values, yaml.SequenceNode) else [values]
            if not accepted:
                self.fail(values, "filter", f"{path} accepts nothing", "List at least one value")
            result[path] = [self.compared(value, f"filter {path}") for value in accepted]
        return result

    def dimensions(self, node: yaml.Node | None) -> dict[str, str]:
        result: dict[str, str] = {}
        for name, path in (self.mapping(node, "dimensions") if node else {}).items():
            if not _SNAKE_CASE.fullmatch(name):
                self.fail(path, "dimensions", f"{name!r} is not snake_case", "Use a-z, 0-9 and _")
            result[name] = self.json_path(path, f"dimension {name}", self.text(path, name))
        return result

    def shares(self, node: yaml.Node | None) -> tuple[Decimal, ...]:
        if node is None:
            return ALERT_AT
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, "alert_at", "must be a list", "Write shares such as [80%, 100%]")
        result: list[Decimal] = []
        for item in node.value:
            share = self.share(item, "alert_at")
            if share in result:
                self.fail(item, "alert_at", f"{item.value} is given twice", "Remove one of the two")
            result.append(share)
        return tuple(result)

    def share(self, node: yaml.Node, key: str) -> Decimal:
        """A share of a limit, `0.8` or `80%`."""
        text = self.text(node, key)
        found = _SHARE.fullmatch(text)
        share = Decimal(found[1]) / (100 if found[2] else 1) if found else Decimal(0)
        if not share or share != round(share, 9):
            self.fail(
                node,
                key,
                f"{text!r} is not a share of a limit",
                "Write a number above 0 such as 0.8 or 80%",
            )
        return share
