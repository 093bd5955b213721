"""Portal links: an application asks for one and shows it, and the browser is signed in as its user.

A link is signed for this purpose alone, short-lived, and makes a session that looks and changes
nothing. It may be opened more than once while it lives, as a frame is that is loaded again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from itsdangerous import BadSignature, URLSafeSerializer

from usage_pipeline.settings import Settings
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.session import web_secret


class PortalLinks:
    """Makes links, and reads them."""

    def __init__(self, settings: Settings) -> None:
        self._signer = URLSafeSerializer(web_secret(settings), salt="portal link")
        self._web_url = settings.web_url

    def make(self, user_id: UUID, org_id: UUID | None, seconds: int) -> tuple[str, datetime]:
        """A link for a user, narrowed to an organisation where one is given, and its end."""
        until = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
        held = [str(user_id), org_id and str(org_id), int(until.timestamp())]
        return f"{self._web_url}/portal/{self._signer.dumps(held)}", until

    def identity(self, token: str) -> Identity | None:
        """Whom a link signs in; None when it is not ours, or over."""
        try:
            user, org, until = self._signer.loads(token)
        except BadSignature:
            return None
        if datetime.now(UTC).timestamp() >= until:
            return None
        return Identity(UUID(user), org_id=UUID(org) if org else None, via="portal")
