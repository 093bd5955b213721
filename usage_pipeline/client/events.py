"""One usage event: judged, and spelled as the API takes it, in the caller's thread."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any
from uuid import UUID, uuid4

Id = UUID | str
Quantity = int | Decimal | float | str

MAX_EVENT_DATA_BYTES = 16 * 1024
_EVENT_TYPE = re.compile(r"[a-z0-9_.-]{1,100}")
_NINE_DIGITS = Decimal("1e-9")
_EXACT = Context(prec=60)  # more than 29 digits before the point and 9 after it


class BadEventError(ValueError):
    """What is wrong with an event. Names the argument, never its value."""


@dataclass(slots=True, eq=False)
class Event:
    """An event on its way.

    Attributes:
        body: as JSON, in UTF-8.
        number: of the events of this process, in the order of the calls.
        blamed: it failed by itself, with an answer.
        strikes: how often it was, and then others were taken.
        due: when it is tried again after that, on the clock of `time.monotonic`.
    """

    id: UUID
    body: bytes
    number: int = 0
    blamed: bool = False
    strikes: int = 0
    due: float = 0.0


def make_event(
    user_id: Id,
    event_type: str,
    quantity: Quantity = 1,
    org_id: Id | None = None,
    event_data: Mapping[str, Any] | None = None,
    created_at: datetime | None = None,
    id: Id | None = None,
) -> Event:
    """The event as it is at this moment, whatever happens to the arguments later.

    Raises:
        BadEventError: the API would not take it.
    """
    if not isinstance(event_type, str) or not _EVENT_TYPE.fullmatch(event_type):
        raise BadEventError("event_type is not 1 to 100 characters of a-z, 0-9, _, . and -")
    known = uuid4() if id is None else _uuid("id", id)
    fields: dict[str, Any] = {
        "id": str(known),
        "event_type": event_type,
        "quantity": _quantity(quantity),
        "user_id": str(_uuid("user_id", user_id)),
        "created_at": _instant(created_at),
    }
    if org_id is not None:
        fields["org_id"] = str(_uuid("org_id", org_id))
    body = _json(fields)
    if event_data is not None:
        document = _event_data(event_data)
        body = body[:-1] + b',"event_data":' + document + b"}"
    return Event(known, body)


def _uuid(name: str, value: object) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        raise BadEventError(f"{name} is not a UUID") from None


def _quantity(value: object) -> str:
    """With at most nine digits after the point, as the pipeline rounds."""
    try:
        # A float is what it is printed as: 0.1, not the binary fraction next to it.
        number = Decimal(str(value) if isinstance(value, float) else value)  # type: ignore[arg-type]
    except (InvalidOperation, TypeError, ValueError):
        raise BadEventError("quantity is not a number") from None
    if not number.is_finite() or (number and number.adjusted() >= 29):
        raise BadEventError("quantity is not a finite number of at most 29 digits before the point")
    if not number:
        return "0"
    spelled = format(number.quantize(_NINE_DIGITS, ROUND_HALF_UP, _EXACT), "f")
    return spelled.rstrip("0").rstrip(".")


def _instant(value: datetime | None) -> str:
    if value is None:
        return datetime.now(UTC).isoformat()
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise BadEventError("created_at is not a datetime with a time zone")
    return value.astimezone(UTC).isoformat(timespec="microseconds")


def _event_data(value: object) -> bytes:
    if not isinstance(value, Mapping):
        raise BadEventError("event_data is not a mapping")
    try:
        document = _json(dict(value))
    except (TypeError, ValueError, RecursionError):
        raise BadEventError("event_data is not JSON") from None
    if len(document) > MAX_EVENT_DATA_BYTES:
        raise BadEventError(f"event_data has more than {MAX_EVENT_DATA_BYTES} bytes")
    return document


def _json(value: object) -> bytes:
    spelled = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_text
    )
    return spelled.encode()


def _as_text(value: object) -> str:
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(type(value).__name__)
