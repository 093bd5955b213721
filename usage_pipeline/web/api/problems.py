"""Errors of the API, as `application/problem+json` (RFC 9457). No stack trace is ever in one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.postgres import redact
from usage_pipeline.web.reader import NotPublished

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5  # after which a database that was away may be back


class Wrong(BaseModel):
    """What is wrong, and where."""

    loc: list[str | int]
    msg: str


class ProblemDetails(BaseModel):
    """Why there is no answer."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Wrong] | None = None


class Problem(HTTPException):
    """A failure with more to tell than its status.

    Args:
        errors: what is wrong with what was sent, one by one.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = errors


def too_many(seconds: float) -> Problem:
    """More than a caller may ask for."""
    wait = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return Problem(429, "Too many requests. Wait, and send it again.", headers=wait)


def problem(request: Request, error: Exception) -> JSONResponse:
    """The answer to a failure."""
    if isinstance(error, UsagePipelineError):
        return _unavailable(error)
    if isinstance(error, RequestValidationError):
        error = Problem(422, "What was sent is not valid.", errors=wrong(error.errors()))
    assert isinstance(error, HTTPException)
    errors = error.errors if isinstance(error, Problem) else ()
    return answer(error.status_code, str(error.detail), errors, error.headers)


def wrong(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pydantic's errors, without the values, which may be somebody's."""
    return [{"loc": [*map(_place, each["loc"])], "msg": each["msg"]} for each in errors]


def _place(part: str | int) -> str | int:
    """A name that was sent may be long, or no text at all."""
    return part if isinstance(part, int) else part[:100].encode(errors="replace").decode()


def answer(
    status: int,
    detail: str,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem as an answer."""
    content = content_of(status, detail, errors)
    return JSONResponse(content, status, dict(headers or {}), MEDIA_TYPE)


def content_of(
    status: int, detail: str, errors: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A problem as JSON."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return {**content, "errors": list(errors)} if errors else content


def _unavailable(error: UsagePipelineError) -> JSONResponse:
    """Names of hosts and databases are for who runs them, and stay in the log."""
    detail = "This cannot be answered at the moment. Try again later."
    if isinstance(error, NotPublished):
        detail = "Nothing is published yet."
    else:
        _log.warning("%s", redact(str(error)))
    return answer(503, detail, headers={"Retry-After": str(RETRY_SECONDS)})


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of failures: those of every operation, and these."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemDetails"},
                    "example": content_of(status, "What is wrong, in a sentence."),
                }
            },
        }
        for status in sorted({*statuses, 429, 503})
    }
