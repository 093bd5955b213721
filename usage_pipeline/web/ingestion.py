"""Events that callers send: read exactly, judged one by one, and written at once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from usage_pipeline.app_db.incoming import Event, insert_events
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.infra.postgres_pool import Pool
from usage_pipeline.settings import FIRST_POSSIBLE_DAY, Settings

MOST_EVENTS = 1_000
MOST_DATA_BYTES = 16 * 1024
_DEPTH = 32
_LARGEST_EXPONENT = 1_000  # of numbers in event_data; Postgres holds more, readers hardly
_FUTURE = timedelta(minutes=5)  # how far clocks of callers may be ahead
_MOST_DIGITS = 1_000  # of a quantity, which is written as it came; the pipeline rounds it
_TOO_LARGE = Decimal("99999999999999999999999999999.9999999995")  # and would not hold this
_NUMBER = r"^-?[0-9]{1,40}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,3})?$"
_PLAIN_NUMBER = r"^-?[0-9]{1,29}(\.[0-9]{1,9})?$"
_UUID = r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
_MOMENT = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)


class NotUnderstood(ValueError):
    """A body that is no JSON, or no event or list of them."""


def _text_like(pattern: str, what: str) -> BeforeValidator:
    """Only text of this shape; pydantic alone would take numbers and other spellings, too."""

    def check(value: object) -> object:
        if value is not None and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise ValueError(what)
        return value

    return BeforeValidator(check)


def _quantity(value: object) -> Decimal:
    if (isinstance(value, str) and re.fullmatch(_NUMBER, value)) or (
        isinstance(value, int) and not isinstance(value, bool)
    ):
        value = Decimal(value)
    if not isinstance(value, Decimal):
        raise ValueError("a number, or a string that holds one")
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or max(len(digits), -exponent) > _MOST_DIGITS:
        raise ValueError("a number of fewer digits")
    if not value:
        return Decimal(0)
    if value.adjusted() > 28 or not value.copy_abs() < _TOO_LARGE:
        raise ValueError("at most 29 digits before the point")
    return value


def _moment(value: datetime) -> datetime:
    if value.year < FIRST_POSSIBLE_DAY.year:
        raise ValueError(f"not before {FIRST_POSSIBLE_DAY}")
    if value > datetime.now(UTC) + _FUTURE:
        raise ValueError("in the future, by more than 5 minutes")
    return value.astimezone(UTC)  # offsets of a day are none to Postgres


Uuid = Annotated[UUID, _text_like(_UUID, "a UUID, such as 7f1c9d52-0000-4000-8000-000000000000")]
Quantity = Annotated[
    Decimal,
    BeforeValidator(_quantity),
    Field(
        json_schema_extra={
            "anyOf": [
                {"type": "number", "minimum": -1e28, "maximum": 1e28},
                {"type": "string", "pattern": _PLAIN_NUMBER},
            ],
        }
    ),
]
Moment = Annotated[
    datetime,
    AfterValidator(_moment),
    _text_like(_MOMENT, "a moment with its zone, such as 2026-05-03T10:15:00Z"),
]


class IncomingEvent(BaseModel):
    """One use of something."""

    model_config = ConfigDict(extra="forbid")

    id: Uuid = Field(
        default_factory=uuid4,
        description="Sent again with the same id, an event counts once. Absent, one is made.",
    )
    event_type: str = Field(pattern=r"^[a-z0-9_.-]+$", min_length=1, max_length=100)
    quantity: Quantity = Decimal(1)
    user_id: Uuid | None = Field(
        None, description="Whose use. A user's token: absent, or its own. A service key: required."
    )
    org_id: Uuid | None = Field(None, description="Within which organisation; null is personal.")
    event_data: dict[str, Any] | None = Field(
        None, description="Anything else, at most 16 KiB of JSON."
    )
    created_at: Moment = Field(
        default_factory=lambda: datetime.now(UTC), description="When; absent, now."
    )


class IncomingTokens(BaseModel):
    """Tokens that a model used."""

    model_config = ConfigDict(extra="forbid")

    tokens: Quantity
    model: str = Field(min_length=1, max_length=200)
    id: Uuid = Field(default_factory=uuid4)
    user_id: Uuid | None = None
    org_id: Uuid | None = None
    created_at: Moment = Field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Written:
    """What became of an event."""

    id: UUID
    status: Literal["accepted", "duplicate", "rejected"]


class Ingestion:
    """Writes to the source, as a role of its own."""

    def __init__(self, settings: Settings) -> None:
        own = settings.ingest_database_url
        self._pool = Pool(
            own.get_secret_value() if own else app_database_url(settings),
            "USAGE_INGEST_DATABASE_URL",
            read_only=False,
        )

    @property
    def in_use(self) -> int:
        """Connections that somebody writes with at this moment."""
        return self._pool.in_use

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def write(self, events: Sequence[Event]) -> list[Written]:
        """Write events in one transaction; what became of each, in their order. Of several with one
        id the first counts.

        Raises:
            UsagePipelineError: the source is away; then none of them is written, or, where it went
                away on committing, perhaps all.
        """
        first = {event.id: event for event in reversed(events)}
        with self._pool.connect() as connection:
            new, refused = insert_events(connection, [*first.values()][::-1])
            connection.commit()
        written = []
        for event in events:
            if event.id in refused:
                written.append(Written(event.id, "rejected"))
            else:
                written.append(Written(event.id, "accepted" if event.id in new else "duplicate"))
                new.discard(event.id)
        return written


def takes_events(settings: Settings) -> bool:
    """Whether there is a role to write with: the setting's, or the embedded Postgres' owner."""
    return bool(settings.ingest_database_url) or not settings.app_database_url


def read_json(body: bytes) -> Any:
    """A document with its numbers as they are written.

    Raises:
        NotUnderstood: it is no JSON.
    """
    try:
        return json.loads(
            body, parse_float=Decimal, parse_int=_whole_number, parse_constant=_no_number
        )
    except (ValueError, ArithmeticError, RecursionError):
        raise NotUnderstood("The body is not JSON") from None


def _whole_number(digits: str) -> int | Decimal:
    # Python refuses to read an int of thousands of digits, and takes long for fewer.
    return int(digits) if len(digits) < 100 else Decimal(digits)


def _no_number(word: str) -> Any:
    raise ValueError(word)


def as_document(data: dict[str, Any]) -> str:
    """`event_data` as JSON with its numbers as they were written.

    Raises:
        ValueError: Postgres or readers could not hold it.
    """
    text = _as_json(data, _DEPTH)
    if len(text.encode()) > MOST_DATA_BYTES:
        raise ValueError(f"event_data has more than {MOST_DATA_BYTES} bytes")
    return text


def _as_json(value: Any, depth: int) -> str:
    if isinstance(value, dict | list) and not depth:
        raise ValueError(f"event_data has more than {_DEPTH} levels")
    if isinstance(value, dict):
        inside = (f"{_string(key)}:{_as_json(each, depth - 1)}" for key, each in value.items())
        return f"{{{','.join(inside)}}}"
    if isinstance(value, list):
        return f"[{','.join(_as_json(each, depth - 1) for each in value)}]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int) or max(abs(exponent), abs(value.adjusted())) > (
            _LARGEST_EXPONENT
        ):
            raise ValueError("a number in event_data has too many digits")
        return str(value)
    return json.dumps(value)


def _string(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("event_data holds a character that Postgres does not")
    return json.dumps(text, ensure_ascii=False)
