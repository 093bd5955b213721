"""Whether the claims of a token make an admin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_claim(claims: Mapping[str, Any], wanted: str) -> bool:
    """Whether claims have a value at a path, or it is one of a list there.

    Args:
        wanted: `path=value`, the path's names with dots between them, such as
            `app_metadata.role=admin`; a name may have dots itself, as in a URL.
    """
    path, _, value = wanted.partition("=")
    return any(_is(found, value) for found in _at(claims, path))


def _at(claims: object, path: str) -> list[object]:
    if not isinstance(claims, Mapping):
        return []
    found: list[object] = [claims[path]] if path in claims else []
    for place, character in enumerate(path):
        if character == "." and path[:place] in claims:
            found += _at(claims[path[:place]], path[place + 1 :])
    return found


def _is(found: object, value: str) -> bool:
    if isinstance(found, list):
        return any(_is(each, value) for each in found if not isinstance(each, list))
    if isinstance(found, bool):
        return value == str(found).lower()
    return isinstance(found, str | int) and str(found) == value
