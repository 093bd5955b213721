"""What differs between two versions of the meters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from usage_pipeline.meters.meter import Meter

_DEFINITION = ("event_type", "aggregation", "value", "filter", "dimensions")
_PROSE = ("unit", "description")


@dataclass(frozen=True)
class Comparison:
    """Meters by what became of them; pairs are old and new.

    Attributes:
        renamed: defined alike under another key.
        redefined: another definition under the same key.
        reworded: only unit or description differ; no number does.
    """

    added: list[Meter] = field(default_factory=list)
    removed: list[Meter] = field(default_factory=list)
    renamed: list[tuple[Meter, Meter]] = field(default_factory=list)
    redefined: list[tuple[Meter, Meter]] = field(default_factory=list)
    reworded: list[tuple[Meter, Meter]] = field(default_factory=list)

    @property
    def changes_numbers(self) -> bool:
        return bool(self.added or self.removed or self.renamed or self.redefined)


def compare_meters(old: Sequence[Meter], new: Sequence[Meter]) -> Comparison:
    """What became of each meter; one that goes while another comes with its definition, too."""
    before, found = {meter.key: meter for meter in old}, Comparison()
    gone = [meter for meter in old if meter.key not in {other.key for other in new}]
    for meter in new:
        if known := before.get(meter.key):
            if _definition(known) != _definition(meter):
                found.redefined.append((known, meter))
            elif differences(known, meter):
                found.reworded.append((known, meter))
        elif alike := [other for other in gone if _definition(other) == _definition(meter)]:
            gone.remove(alike[0])
            found.renamed.append((alike[0], meter))
        else:
            found.added.append(meter)
    found.removed.extend(gone)
    return found


def differences(old: Meter, new: Meter) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, but for the key, with the old and the new value."""
    return {
        name: (getattr(old, name), getattr(new, name))
        for name in (*_DEFINITION, *_PROSE)
        if _plain(getattr(old, name)) != _plain(getattr(new, name))
    }


def _definition(meter: Meter) -> list[Any]:
    return [_plain(getattr(meter, name)) for name in _DEFINITION]


def _plain(value: Any) -> Any:
    """Accepted values of a filter have no order."""
    if isinstance(value, dict):
        return {k: sorted(v) if isinstance(v, list) else v for k, v in value.items()}
    return value
