"""Events that applications send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from usage_pipeline.app_db.incoming import Event
from usage_pipeline.web.api.callers import Writer
from usage_pipeline.web.api.problems import Problem, ProblemDetails, content_of, documented, wrong
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.ingestion import (
    MOST_EVENTS,
    IncomingEvent,
    IncomingTokens,
    Ingestion,
    NotUnderstood,
    Written,
    as_document,
    read_json,
)
from usage_pipeline.web.state import FromWeb, Web

router = APIRouter(prefix="/api/usage", tags=["events"])
_REFUSALS = (401, 403, 413, 415, 422)


class Result(BaseModel):
    """What became of one event."""

    index: int
    id: UUID | None
    status: Literal["accepted", "duplicate", "rejected"]
    error: ProblemDetails | None = None


class Results(BaseModel):
    """What became of all, in the order given."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[Result]


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {
                "example": {
                    "accepted": 1,
                    "duplicates": 0,
                    "rejected": 0,
                    "results": [
                        {
                            "index": 0,
                            "id": "0b6e1f9e-3c0e-4a55-9d0f-6a3f0f4f1a10",
                            "status": "accepted",
                        }
                    ],
                }
            }
        }
    },
    **documented(*_REFUSALS),
}
# A few events of 29 digits would make totals that nobody can hold, of their organisation and of the
# platform as well.
_MOST_BY_TOKEN = Decimal(10**18)
_ONE = {"$ref": "#/components/schemas/IncomingEvent"}
_EVENTS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        _ONE,
                        {"type": "array", "items": _ONE, "minItems": 1, "maxItems": MOST_EVENTS},
                    ]
                },
                "example": [
                    {
                        "id": "0b6e1f9e-3c0e-4a55-9d0f-6a3f0f4f1a10",
                        "event_type": "api_call",
                        "quantity": 3,
                        "user_id": "7f1c9d52-0000-4000-8000-000000000000",
                    }
                ],
            }
        },
    }
}
_TOKENS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/IncomingTokens"},
                "example": {"tokens": 1200, "model": "gpt-4o"},
            }
        },
    }
}


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "Send JSON, with Content-Type: application/json.")
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


class _Rejected(ValueError):
    """An event that is not taken: with its status, and what is wrong with it."""

    def __init__(self, status: int, detail: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        self.status, self.detail, self.errors = status, detail, errors


@router.post("/events", response_model=Results, responses=_ANSWERS, openapi_extra=_EVENTS_BODY)
def log_events(caller: Writer, web: FromWeb, body: Body) -> Response:
    """Log one event, or up to 1,000. The answer tells what became of each; 200 also where some are
    rejected. Send the same ids again after a failure: an id that is there is a duplicate."""
    ingestion = _ingestion(web)
    sent = _understood(body)
    if isinstance(sent, dict):
        return _one(web, ingestion, caller, IncomingEvent, sent)
    if not isinstance(sent, list) or not 0 < len(sent) <= MOST_EVENTS:
        raise Problem(422, f"Send an event, or a list of 1 to {MOST_EVENTS}.")
    rejected: dict[int, _Rejected] = {}
    events: dict[int, Event] = {}
    orgs: dict[UUID, bool] = {}
    for index, item in enumerate(sent):
        try:
            events[index] = _event(web, caller, IncomingEvent, item, orgs)
        except _Rejected as error:
            rejected[index] = error
    written = dict(zip(events, ingestion.write([*events.values()]), strict=True)) if events else {}
    results = [
        _result(index, written[index]) if index in written else _refusal(index, rejected[index])
        for index in range(len(sent))
    ]
    return _answer(web, results)


@router.post("/ai", response_model=Results, responses=_ANSWERS, openapi_extra=_TOKENS_BODY)
def log_tokens(caller: Writer, web: FromWeb, body: Body) -> Response:
    """Log tokens that a model used: the event `ai_tokens_used` of that quantity."""
    ingestion = _ingestion(web)
    return _one(web, ingestion, caller, IncomingTokens, _understood(body))


def _ingestion(web: Web) -> Ingestion:
    if web.ingestion is None:
        raise Problem(503, "Events are not taken here.", headers={"Retry-After": "3600"})
    return web.ingestion


def _understood(body: bytes) -> Any:
    try:
        return read_json(body)
    except NotUnderstood as error:
        raise Problem(422, f"{error}.") from None


Kind = type[IncomingEvent] | type[IncomingTokens]


def _event(
    web: Web,
    caller: Identity,
    kind: Kind,
    sent: object,
    orgs: dict[UUID, bool],
) -> Event:
    """What is written of an event.

    Args:
        orgs: whether the caller is of an organisation, so that each is asked for once a batch.

    Raises:
        _Rejected: it is not taken.
    """
    try:
        if kind is IncomingTokens:
            sent = _as_event(IncomingTokens.model_validate(sent), cast("dict[str, Any]", sent))
        incoming = IncomingEvent.model_validate(sent)
        data = incoming.event_data
        document = None if data is None else as_document(data)
    except ValidationError as error:
        raise _Rejected(422, "The event is not valid.", wrong(error.errors())) from None
    except ValueError as error:
        raise _Rejected(422, f"{error}.", [{"loc": ["event_data"], "msg": str(error)}]) from None
    return Event(
        id=incoming.id,
        user_id=_whose(web, caller, incoming, orgs),
        org_id=incoming.org_id,
        event_type=incoming.event_type,
        event_data=document,
        quantity=incoming.quantity,
        created_at=incoming.created_at,
    )


def _as_event(tokens: IncomingTokens, sent: Mapping[str, Any]) -> dict[str, Any]:
    same = {name: sent[name] for name in sent if name not in ("tokens", "model")}
    return {
        **same,
        "event_type": "ai_tokens_used",
        "quantity": tokens.tokens,
        "event_data": {"model": tokens.model},
    }


def _whose(web: Web, caller: Identity, event: IncomingEvent, orgs: dict[UUID, bool]) -> UUID:
    """A key logs for those that it names; who has a user's token logs own use, and takes none
    back, since what they send is what they are billed for."""
    if caller.via == "key":
        if event.user_id is None:
            raise _Rejected(422, "Name a user_id.", [{"loc": ["user_id"], "msg": "required"}])
        return event.user_id
    assert caller.user_id
    if event.user_id not in (None, caller.user_id):
        raise _Rejected(403, "A user's token logs that user's events.")
    if event.quantity < Decimal(0):
        raise _Rejected(403, "Corrections below zero take a service key.")
    if event.quantity > _MOST_BY_TOKEN:
        raise _Rejected(403, f"Quantities above {_MOST_BY_TOKEN:,f} take a service key.")
    if event.org_id:
        if event.org_id not in orgs:
            orgs[event.org_id] = web.members.role(caller, event.org_id) is not None
        if not orgs[event.org_id]:
            raise _Rejected(403, "You are no member of this organisation.")
    return caller.user_id


def _one(web: Web, ingestion: Ingestion, caller: Identity, kind: Kind, sent: object) -> Response:
    try:
        event = _event(web, caller, kind, sent, {})
    except _Rejected as error:
        web.metrics.events.labels("rejected").inc()
        raise Problem(error.status, error.detail, errors=error.errors) from None
    (written,) = ingestion.write([event])
    result = _result(0, written)
    if written.status == "rejected":
        web.metrics.events.labels("rejected").inc()
        raise Problem(422, result["error"]["detail"])
    return _answer(web, [result])


def _result(index: int, written: Written) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index, "id": str(written.id), "status": written.status}
    if written.status == "rejected":
        found["error"] = content_of(422, "The application's database refuses the event.")
    return found


def _refusal(index: int, error: _Rejected) -> dict[str, Any]:
    return {
        "index": index,
        "id": None,
        "status": "rejected",
        "error": content_of(error.status, error.detail, error.errors),
    }


def _answer(web: Web, results: list[dict[str, Any]]) -> Response:
    statuses = [result["status"] for result in results]
    counts = {status: statuses.count(status) for status in ("accepted", "duplicate", "rejected")}
    for status, count in counts.items():
        web.metrics.events.labels(status).inc(count)
    return JSONResponse(
        {
            "accepted": counts["accepted"],
            "duplicates": counts["duplicate"],
            "rejected": counts["rejected"],
            "results": results,
        }
    )
