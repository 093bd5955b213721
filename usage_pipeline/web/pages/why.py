"""Why a number is what it is, for those who may see it."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.web import figures
from usage_pipeline.web.figures import Subject
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.pages.base import SignedIn, not_there, render, require_patience
from usage_pipeline.web.pages.subjects import choices, managed, month_of
from usage_pipeline.web.state import FromWeb, Told, Web

router = APIRouter(include_in_schema=False)


@router.get("/why")
def why(
    request: Request,
    web: FromWeb,
    identity: SignedIn,
    *,
    metric: str,
    org: str | None = None,
    month: str | None = None,
) -> Response:
    """The answer of `explain`: events, days, proof, and what was restated."""
    name, subject = _subject(web, identity, org)
    with web.reader.open() as published:
        state = figures.state(published)
        when = month_of(state, month)
    require_patience(web, identity, "why")
    told: Told = []
    problem = ""
    try:
        told = web.actions.explain(metric, when, subject.user_id, subject.org_id)
    except UsagePipelineError as error:
        problem = error.problem
    return render(
        request,
        "why.html",
        404 if problem else 200,
        meter=state.meter(metric),
        month=when,
        name=name,
        org=org,
        problem=problem,
        state=state,
        told=told,
    )


def _subject(web: Web, identity: Identity, org: str | None) -> tuple[str, Subject]:
    """One of the reader's choices; of admins also the platform, and any organisation."""
    if org == "platform" and identity.is_admin:
        return "The platform", Subject("platform")
    if identity.user_id:
        memberships = web.members.orgs_of(identity.user_id)
        for choice in choices(identity, memberships):
            if org in (None, choice.key):
                is_org = choice.subject.scope == "org"
                return choice.name if is_org else "Personal and in organisations", choice.subject
    try:
        org_id = UUID(org or "")
    except ValueError:
        raise not_there() from None
    return managed(web, identity, org_id), Subject("org", org_id=org_id)
