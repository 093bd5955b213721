"""Where a portal link leads: a browser is signed in as the link says."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from starlette.responses import RedirectResponse, Response

from usage_pipeline.web.state import FromWeb

router = APIRouter(include_in_schema=False)


@router.get("/portal/{token}")
def portal(token: str, web: FromWeb) -> Response:
    """Sign a browser in as the link says."""
    identity = web.portal_links.identity(token)
    if identity is None or not identity.user_id or not web.members.is_active(identity.user_id):
        raise HTTPException(403, "This link is over. Open it again from the application.")
    address = f"/usage?org={identity.org_id}" if identity.org_id else "/usage"
    response = RedirectResponse(address, status_code=303)
    web.sessions.begin(response, identity)
    return response
