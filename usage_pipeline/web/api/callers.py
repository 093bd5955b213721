"""Who calls the API, and for whom: a user's token acts for that user, a service key for those that
it names, within its scopes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from usage_pipeline.web.api.problems import Problem, too_many
from usage_pipeline.web.credentials.service_keys import PREFIX, Scope
from usage_pipeline.web.credentials.tokens import BadToken
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.rates import PERSON, SERVICE, STRANGER
from usage_pipeline.web.state import FromWeb, Web

_bearer = HTTPBearer(
    auto_error=False,
    description="A token of the application's auth, or a service key (`uk_…`).",
)


def bearer(request: Request) -> str:
    """What was sent as `Authorization: Bearer …`; empty when nothing was."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def refused(request: Request, web: Web, detail: str) -> Problem:
    """For who does not prove who they are; too many of those from one address wait."""
    address = request.client.host if request.client else ""
    if wait := web.rates.take(f"address {address}", STRANGER):
        return too_many(wait)
    return Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _caller(request: Request, web: FromWeb, _: Annotated[object, Depends(_bearer)]) -> Identity:
    token = bearer(request)
    if not token:
        raise refused(request, web, "Send `Authorization: Bearer …`.")
    if token.startswith(PREFIX):
        key = web.service_keys.find(token)
        if key is None:
            raise refused(request, web, "The key is unknown, revoked or expired.")
        identity = Identity(None, scopes=frozenset(key.scopes), via="key", key_id=key.key_id)
        bucket, rate = f"key {key.key_id}", SERVICE
    else:
        try:
            identity = web.tokens.identity(token)
        except BadToken as error:
            raise refused(request, web, f"The token is not valid ({error}).") from None
        if not identity.user_id or not web.members.is_active(identity.user_id):
            raise refused(request, web, "The application has no such user.")
        bucket, rate = f"user {identity.user_id}", PERSON
    if wait := web.rates.take(bucket, rate):
        raise too_many(wait)
    return identity


Caller = Annotated[Identity, Depends(_caller)]


def _allowed(scope: Scope, who: Callable[[Identity], bool]) -> Callable[[Caller], Identity]:
    def check(identity: Caller) -> Identity:
        if not (scope in identity.scopes or (identity.via != "key" and who(identity))):
            raise Problem(403, f"This takes a service key with the scope {scope}.")
        return identity

    return check


Writer = Annotated[Identity, Depends(_allowed(Scope.EVENTS_WRITE, lambda who: True))]
UsageReader = Annotated[Identity, Depends(_allowed(Scope.USAGE_READ, lambda who: True))]
LinkMaker = Annotated[Identity, Depends(_allowed(Scope.PORTAL_WRITE, lambda who: False))]
Admin = Annotated[Identity, Depends(_allowed(Scope.ADMIN_READ, lambda who: who.is_admin))]

MONTH = r"^(19[7-9]|20[0-9])[0-9]-(0[1-9]|1[0-2])$"


# An instant where it has a zone; pydantic alone would take midnight in any zone for the day.
Day = Annotated[AwareDatetime | date, Field(union_mode="left_to_right")]


class Whose(BaseModel):
    """Whose usage is asked for; a name that is none of these is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID | None = Field(
        None, description="Whose usage. A user's token: absent, or its own."
    )
    org_id: UUID | None = Field(
        None, description="In which organisation; a user has to be one of its members."
    )


def for_whom(web: Web, caller: Identity, asked: Whose) -> UUID | None:
    """The user whose usage is asked for; None for an organisation alone, by a key or an admin.

    Raises:
        Problem: nobody is named, or somebody else, or an organisation that they are not of.
    """
    if caller.via == "key" or caller.is_admin:
        subject = asked.user_id or (None if asked.org_id else caller.user_id)
        if subject is None and asked.org_id is None:
            raise Problem(422, "Name a user_id or an org_id.")
        return subject
    if asked.user_id not in (None, caller.user_id):
        raise Problem(403, "A user's token acts for that user.")
    if asked.org_id and web.members.role(caller, asked.org_id) is None:
        raise Problem(403, "You are no member of this organisation.")
    return caller.user_id
