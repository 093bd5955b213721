"""How rows of published tables are answered: exact numbers as strings, and not again to who has
them already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from usage_pipeline.web.identity import Identity
from usage_pipeline.web.reader import Published
from usage_pipeline.web.state import Web

_HEADERS = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}


def plain(value: Any) -> Any:
    """A value as JSON has it: decimals as strings without zeros at their end, instants in UTC."""
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date | UUID):
        return str(value)
    return value


def rows_as_json(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows, column by column."""
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def of_snapshot(
    request: Request,
    web: Web,
    identity: Identity,
    answer: Callable[[Published], Mapping[str, Any]],
) -> Response:
    """What is published, with its `snapshot_id`; 304 to who has the answer of this snapshot."""
    with web.reader.open() as published:
        snapshot_id = published.snapshot.snapshot_id
        who = [str(identity.user_id), identity.key_id, sorted(identity.scopes), identity.is_admin]
        asked = [snapshot_id, who, request.url.path, request.url.query]
        etag = f'"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": etag}
        known = request.headers.get("if-none-match", "").split(",")
        if {etag, "*"} & {each.strip().removeprefix("W/") for each in known}:
            return Response(status_code=304, headers=headers)
        content = {**answer(published), "snapshot_id": snapshot_id}
    return JSONResponse(content, headers=headers)
