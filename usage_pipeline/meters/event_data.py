"""Paths and numbers of `event_data`, as meters read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from usage_pipeline.meters.meter import Meter

PATH_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\[(\d{1,4})\]")


def json_path(path: str) -> str:
    """`$.usage.total-ms[0]` as the engine takes it: every name quoted."""
    steps = PATH_STEP.findall(path[1:])
    return "$" + "".join(f'."{name}"' if name else f"[{index}]" for name, index in steps)


def spelled_number(text: str) -> str:
    """A JSON number as filters, dimensions and distinct values have it: `1.50` and `15e-1` are
    `1.5`. The macro of this name in `engine.sql` spells the numbers of `event_data` alike."""
    plain = format(Decimal(text), "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain == "-0" else plain


def event_data_reducer(
    meters: list[Meter],
) -> Callable[[str | None, str | None], str | None]:
    """A function of event type and event_data that gives what the meters read of it, as JSON.

    It gives None when no meter reads anything of such events. Numbers keep all their digits.
    """
    trees: dict[str, _Tree] = {}
    for meter in meters:
        for path in meter.paths:
            tree = trees.setdefault(meter.event_type, {})
            for name, index in PATH_STEP.findall(path[1:]):
                tree = tree.setdefault(name or int(index), {})
            tree[_WHOLE] = {}

    def reduce(event_type: str | None, event_data: str | None) -> str | None:
        if event_type not in trees or event_data is None:
            return None
        try:
            data = json.loads(event_data, parse_int=_as_marked_text, parse_float=_as_marked_text)
        except ValueError:
            return None
        reduced = json.dumps(_reduced(data, trees[event_type]), ensure_ascii=False)
        return re.sub(r'"\\u0000([-+.0-9eE]+)"', r"\1", reduced)

    return reduce


# A step of a path (name or index) and what follows it; `_WHOLE` where a path ends.
_Tree = dict[Any, "_Tree"]
_WHOLE = ""


def _as_marked_text(digits: str) -> str:
    """A number as text that no JSON from Postgres holds, since jsonb refuses the character."""
    return f"\0{digits}"


def _reduced(value: Any, tree: _Tree) -> Any:
    if _WHOLE in tree:
        return value
    if isinstance(value, dict):
        return {name: _reduced(value[name], tree[name]) for name in value if name in tree}
    if isinstance(value, list):
        return [_reduced(item, tree[i]) if i in tree else None for i, item in enumerate(value)]
    return None
