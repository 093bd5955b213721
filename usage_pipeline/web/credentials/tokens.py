"""Tokens of the application's own auth: JWTs by a shared secret, or by keys that it publishes.

Which algorithms count is said by the settings: the secret verifies HS256 and nothing else, a
published key its own kind and nothing else. What a token says of itself chooses among these alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, KeySet, OctKey
from joserfc.jws import JWSRegistry

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.credentials.claims import has_claim
from usage_pipeline.web.identity import Identity

_log = logging.getLogger(__name__)

_BY_SECRET = JWSRegistry(algorithms=["HS256"], strict_check_header=False)
_BY_KEY = JWSRegistry(algorithms=["RS256", "ES256", "EdDSA", "Ed25519"], strict_check_header=False)
_PUBLIC_KINDS = ("RSA", "EC", "OKP")
_SKEW_SECONDS = 10  # between the clocks of who issues and who checks
_FRESH_SECONDS = 600  # after which published keys are asked for again, so that withdrawn ones go
_BETWEEN_SECONDS = 60  # for who sends unknown key ids must not make us ask each time
_UNTIL_RETRY_SECONDS = 5  # while there is no key at all
_TIMEOUT_SECONDS = 5.0


class BadToken(Exception):
    """A token that proves nothing; the words are for who sent it."""


class Tokens:
    """Reads tokens as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._admin_claim = settings.jwt_admin_claim
        self._secret = (
            OctKey.import_key(settings.jwt_secret.get_secret_value())
            if settings.jwt_secret
            else None
        )
        self._published = PublishedKeys(settings.jwks_url) if settings.jwks_url else None
        wanted: dict[str, Any] = {"exp": {"essential": True}, "sub": {"essential": True}}
        for claim, value in (("iss", settings.jwt_issuer), ("aud", settings.jwt_audience)):
            if value:
                wanted[claim] = {"essential": True, "value": value}
        self._claims = jwt.JWTClaimsRegistry(leeway=_SKEW_SECONDS, **wanted)

    def identity(self, token: str) -> Identity:
        """Who a token says that its sender is; not whether the application still has them.

        Raises:
            BadToken: it is not valid.
            UsagePipelineError: the keys cannot be had.
        """
        claims = self._verified(token)
        try:
            self._claims.validate(claims)
            user_id = UUID(claims["sub"])
        except (JoseError, ValueError, TypeError) as error:
            raise BadToken(_words(error)) from None
        return Identity(user_id, is_admin=has_claim(claims, self._admin_claim), via="token")

    def _verified(self, token: str) -> dict[str, Any]:
        error: Exception = JoseError("no token is taken here")
        if self._secret:
            try:
                return jwt.decode(token, self._secret, registry=_BY_SECRET).claims
            except (JoseError, ValueError, TypeError) as failure:
                error = failure
        if self._published:
            keys = self._published
            try:
                found = jwt.decode(
                    token, lambda sent: keys.having(sent.headers().get("kid")), registry=_BY_KEY
                )
                return found.claims
            except (JoseError, ValueError, TypeError) as failure:
                error = failure
        raise BadToken(_words(error))


class PublishedKeys:
    """The public keys at a URL, kept a while."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._clock = url, clock
        self._lock = threading.Lock()
        self._keys = KeySet([])
        self._asked = self._fetched = float("-inf")

    def having(self, kid: str | None) -> KeySet:
        """The keys, asked for again when they are old, or none has this id.

        Raises:
            UsagePipelineError: there are none.
        """
        with self._lock:
            now = self._clock()
            known = kid is None or any(key.kid == kid for key in self._keys)
            wait = _BETWEEN_SECONDS if self._keys else _UNTIL_RETRY_SECONDS
            due = not known or now - self._fetched > _FRESH_SECONDS
            if due and now - self._asked >= wait:
                self._asked = now
                self._fetch(now)
            if not self._keys:
                raise UsagePipelineError(
                    "The keys of the application's tokens cannot be had",
                    "Check USAGE_JWKS_URL, and that it answers",
                )
            return self._keys

    def _fetch(self, now: float) -> None:
        try:
            answer = httpx.get(self._url, timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
            keys = [
                JWKRegistry.import_key(key)
                for key in answer.json()["keys"]
                if key.get("kty") in _PUBLIC_KINDS and key.get("use", "sig") == "sig"
            ]
        except (httpx.HTTPError, JoseError, ValueError, TypeError, LookupError) as error:
            _log.warning("USAGE_JWKS_URL gives no keys (%s)", type(error).__name__)
            return
        self._keys, self._fetched = KeySet(keys), now


def _words(error: Exception) -> str:
    """What is wrong, without what a library quotes of the token."""
    return getattr(error, "error", "") or "invalid_token"
