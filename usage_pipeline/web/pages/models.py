"""dbt's own pages of the models, for admins: columns, lineage, tests, and who uses what."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from usage_pipeline.web.pages.base import SignedIn, not_there
from usage_pipeline.web.state import FromWeb

router = APIRouter(include_in_schema=False)

# One file with scripts and styles inside it, which are not ours: it runs them in an origin of its
# own, where no cookie is, and talks to nobody.
_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline' "
    "'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@router.get("/docs/dbt")
def models(web: FromWeb, identity: SignedIn) -> Response:
    """Made when the project changed since."""
    if not identity.is_admin:
        raise not_there()
    return FileResponse(
        web.actions.document_models(),
        media_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "private, no-cache"},
    )
