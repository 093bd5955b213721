"""OpenID Connect for people of the company: code flow with PKCE, state and nonce, by Authlib.

Who has the admin claim looks at the platform. They are nobody of the application's `users`.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.deprecate import AuthlibDeprecationWarning
from fastapi import APIRouter, HTTPException, Request
from joserfc.errors import JoseError
from starlette.responses import RedirectResponse, Response

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.credentials.claims import has_claim
from usage_pipeline.web.identity import Identity
from usage_pipeline.web.state import FromWeb

_log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False)
COOKIE, COOKIE_PATH, COOKIE_SECONDS = (
    "usage_oidc",
    "/sign-in/oidc",
    600,
)  # on the way there and back
# What a provider says that it signs with may have `none` among it.
_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")


def oidc_client(settings: Settings) -> Any:
    """The client of `USAGE_OIDC_ISSUER`; None when there is none.

    Raises:
        UsagePipelineError: there is an issuer, but no client's id.
    """
    if not settings.oidc_issuer:
        return None
    if not settings.oidc_client_id:
        raise UsagePipelineError("USAGE_OIDC_CLIENT_ID is not set", "Set it beside the issuer")
    # Of httpx, which Authlib imports itself, and says so to who cannot help it.
    warnings.simplefilter("ignore", AuthlibDeprecationWarning)
    from authlib.integrations.starlette_client import OAuth

    secret = settings.oidc_client_secret
    return OAuth().register(
        "company",
        client_id=settings.oidc_client_id,
        client_secret=secret.get_secret_value() if secret else None,
        server_metadata_url=f"{settings.oidc_issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid profile", "code_challenge_method": "S256", "timeout": 10},
    )


@router.get(COOKIE_PATH)
async def leave(request: Request, web: FromWeb) -> Response:
    """To the provider."""
    await _metadata(web)
    response: Response = await web.oidc.authorize_redirect(
        request, f"{web.settings.web_url}{COOKIE_PATH}/callback"
    )
    return response


@router.get(f"{COOKIE_PATH}/callback")
async def come_back(request: Request, web: FromWeb) -> Response:
    """From the provider."""
    metadata = await _metadata(web)
    exactly = {
        "iss": {"essential": True, "value": metadata["issuer"]},
        "aud": {"essential": True, "value": web.settings.oidc_client_id},
        "exp": {"essential": True},
    }
    try:
        token = await web.oidc.authorize_access_token(request, claims_options=exactly)
    except httpx.HTTPError:
        raise _not_now() from None
    except (AuthlibBaseError, JoseError, ValueError, TypeError, LookupError) as error:
        _log.warning("A sign-in by OIDC was refused (%s)", type(error).__name__)
        raise HTTPException(403, "The sign-in was not completed. Begin again.") from None
    claims = token.get("userinfo")
    if not claims or not has_claim(claims, web.settings.oidc_admin_claim):
        raise HTTPException(403, "You are signed in there, but are no admin here.")
    response = RedirectResponse("/platform", status_code=303)
    web.sessions.begin(response, Identity(user_id=None, is_admin=True, via="oidc"))
    return response


def _not_now() -> HTTPException:
    return HTTPException(503, "The sign-in of the company does not answer. Try again later.")


async def _metadata(web: FromWeb) -> dict[str, Any]:
    """What the provider says of itself, cut to what is taken from it."""
    try:
        metadata: dict[str, Any] = await web.oidc.load_server_metadata()
    except (httpx.HTTPError, ValueError) as error:
        _log.warning("USAGE_OIDC_ISSUER does not answer (%s)", type(error).__name__)
        raise _not_now() from None
    if str(metadata.get("issuer")).rstrip("/") != str(web.settings.oidc_issuer).rstrip("/"):
        _log.error("USAGE_OIDC_ISSUER is another issuer than the one that answers there")
        raise _not_now()
    named = metadata.get("id_token_signing_alg_values_supported") or []
    taken = [algorithm for algorithm in named if algorithm in _ALGORITHMS]
    metadata["id_token_signing_alg_values_supported"] = taken or ["RS256"]
    return metadata
