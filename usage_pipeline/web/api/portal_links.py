"""Links that the application shows to its users, as a page or in a frame."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from usage_pipeline.web.api.answers import plain
from usage_pipeline.web.api.callers import LinkMaker
from usage_pipeline.web.api.problems import Problem, documented
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.ingestion import Uuid
from usage_pipeline.web.state import FromWeb

router = APIRouter(prefix="/api", tags=["portal"])


def _no_text(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("a number")
    return value


class Wanted(BaseModel):
    """For whom, and for how long."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"user_id": "7f1c9d52-0000-4000-8000-000000000000"}},
    )

    user_id: Uuid
    org_id: Uuid | None = Field(None, description="Show this organisation, and no other.")
    expires_in: Annotated[int, BeforeValidator(_no_text)] = Field(
        300, ge=10, le=3600, description="Seconds in which it can be opened."
    )


class Link(BaseModel):
    """A link that signs a browser in as the user, to look and change nothing, for an hour."""

    url: str
    expires_at: datetime


@router.post(
    "/portal-links",
    response_model=Link,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "url": "https://usage.example.com/portal/W10.b2s",
                        "expires_at": "2026-05-03T10:20:00Z",
                    }
                }
            }
        },
        **documented(400, 401, 403, 413, 422),
    },
)
def make_link(web: FromWeb, caller: LinkMaker, wanted: Wanted) -> Response:
    """Make a link for a user, of the application, who is signed in there."""
    if not web.members.is_active(wanted.user_id):
        raise Problem(422, "The application has no such user.")
    if wanted.org_id and not _is_of(web, wanted.user_id, wanted.org_id):
        raise Problem(422, "The user is no member of this organisation.")
    url, until = web.portal_links.make(wanted.user_id, wanted.org_id, wanted.expires_in)
    return JSONResponse(
        {"url": url, "expires_at": plain(until)}, headers={"Cache-Control": "no-store"}
    )


def _is_of(web: FromWeb, user_id: UUID, org_id: UUID) -> bool:
    return web.members.role(Identity(user_id), org_id) is not None
