"""Tokens of the application's own auth, by a secret and by published keys of a real server."""

from __future__ import annotations

import hmac
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import SettingsFactory
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from served import ADMIN, JWT_SECRET, MEMBER, token_of

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.web.credentials.claims import has_claim
from usage_pipeline.web.credentials.tokens import BadToken, PublishedKeys, Tokens

RSA, OTHER_RSA = (RSAKey.generate_key(2048, {"kid": kid}) for kid in ("rsa", "other"))
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})


class KeyServer:
    """Publishes keys, and counts who asks."""

    def __init__(self, *keys: Key) -> None:
        self.keys, self.asked, self.status = list(keys), 0, 200
        self.extra: list[dict[str, Any]] = []
        self.url = ""


@contextmanager
def key_server(*keys: Key) -> Iterator[KeyServer]:
    published = KeyServer(*keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            published.asked += 1
            self.send_response(published.status)
            self.end_headers()
            rows = [key.as_dict(private=False) for key in published.keys] + published.extra
            self.wfile.write(json.dumps({"keys": rows}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    published.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
    try:
        yield published
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def signed(key: Key, algorithm: str, *, kid: str | None = None, **claims: Any) -> str:
    held = {"sub": str(MEMBER), "exp": int(time.time()) + 600, **claims}
    header = {"alg": algorithm, "kid": key.kid if kid is None else kid}
    return jwt.encode(header, held, key, algorithms=[algorithm])


def forged(secret: bytes) -> str:
    """HS256 by hand, since the library does not sign with the text of a public key."""
    parts = ({"alg": "HS256", "kid": "rsa"}, {"sub": str(MEMBER), "exp": 2**33})
    text = b".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(secret, text, "sha256")).rstrip(b"=")
    return (text + b"." + signature).decode()


@pytest.fixture
def by_secret(make_settings: SettingsFactory) -> Tokens:
    return Tokens(make_settings(USAGE_JWT_SECRET=JWT_SECRET, USAGE_JWT_AUDIENCE="authenticated"))


def test_a_token_of_supabase_works_as_it_comes(by_secret: Tokens) -> None:
    identity = by_secret.identity(token_of(MEMBER))
    assert (identity.user_id, identity.is_admin, identity.org_id) == (MEMBER, False, None)
    assert by_secret.identity(token_of(ADMIN, app_metadata={"role": "admin"})).is_admin
    assert not by_secret.identity(token_of(ADMIN, user_metadata={"role": "admin"})).is_admin
    assert not by_secret.identity(token_of(ADMIN, role="admin")).is_admin


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": None}, "missing_claim"),
        ({"exp": "tomorrow"}, "invalid_claim"),
        ({"exp": int(time.time()) - 60}, "expired_token"),
        ({"nbf": int(time.time()) + 600}, "invalid_claim"),
        ({"aud": "somebody"}, "invalid_claim"),
        ({"aud": None}, "missing_claim"),
        ({"sub": None}, "missing_claim"),
        ({"sub": "1"}, "invalid_token"),
        ({"sub": ["30000000-0000-4000-8000-000000000000"]}, "invalid_claim"),
        ({"secret": "of somebody else, with 32 letters."}, "bad_signature"),
    ],
)
def test_a_token_that_proves_nothing_is_refused(
    by_secret: Tokens, claims: dict[str, Any], why: str
) -> None:
    token = token_of(claims.get("sub", MEMBER) or MEMBER, **claims)
    if isinstance(claims.get("sub"), list):
        token = signed(
            OctKey.import_key(JWT_SECRET), "HS256", kid="x", aud="authenticated", **claims
        )
    with pytest.raises(BadToken, match=why):
        by_secret.identity(token)


def test_the_audience_may_be_one_of_several_and_the_issuer_is_exact(
    make_settings: SettingsFactory,
) -> None:
    issuer = "https://example.supabase.co/auth/v1"
    tokens = Tokens(
        make_settings(
            USAGE_JWT_SECRET=JWT_SECRET,
            USAGE_JWT_AUDIENCE="authenticated",
            USAGE_JWT_ISSUER=issuer,
        )
    )
    assert tokens.identity(token_of(MEMBER, aud=["x", "authenticated"])).user_id == MEMBER
    for other in (None, "https://evil.example.com", issuer + "/"):
        with pytest.raises(BadToken):
            tokens.identity(token_of(MEMBER, iss=other))


def test_no_bytes_but_a_token_pass(by_secret: Tokens) -> None:
    good = token_of(MEMBER)
    head, body, signature = good.split(".")
    broken = ["", ".", "..", "a.b.c", good[:-2], f"{head}.{body}.", f"{head}..{signature}"]
    broken += [f"{good}.x", "é" + good, "\x00", good.replace(".", "..", 1), "Ω.Ω.Ω", "x" * 200_000]
    for token in broken:
        with pytest.raises(BadToken):
            by_secret.identity(token)


def test_the_secret_verifies_one_algorithm(by_secret: Tokens) -> None:
    for algorithm in ("HS384", "HS512"):
        with pytest.raises(BadToken, match="unsupported_algorithm"):
            by_secret.identity(signed(OctKey.import_key(JWT_SECRET), algorithm, kid="x"))


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")])
def test_each_kind_of_published_key_verifies(
    make_settings: SettingsFactory, key: Key, algorithm: str
) -> None:
    with key_server(RSA, EC, ED) as server:
        tokens = Tokens(make_settings(USAGE_JWKS_URL=server.url))
        assert tokens.identity(signed(key, algorithm)).user_id == MEMBER
        with pytest.raises(BadToken):
            tokens.identity(signed(OTHER_RSA, "RS256", kid="rsa"))
        with pytest.raises(BadToken, match="invalid_key_id"):
            tokens.identity(signed(OTHER_RSA, "RS256"))


def test_a_public_key_is_no_secret(make_settings: SettingsFactory) -> None:
    """Who signs HS256 with the bytes of a public key, or publishes no signature at all."""
    with key_server(RSA) as server:
        server.extra = [{"kty": "oct", "kid": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]
        for settings in (
            make_settings(USAGE_JWKS_URL=server.url),
            make_settings(USAGE_JWKS_URL=server.url, USAGE_JWT_SECRET=JWT_SECRET),
        ):
            tokens = Tokens(settings)
            pem = RSA.as_pem(private=False)
            for public in (pem, pem.strip(), json.dumps(RSA.as_dict(private=False)).encode()):
                with pytest.raises(BadToken):
                    tokens.identity(forged(public))
            weak = OctKey.import_key(b"secretsecretsecretsecret", {"kid": "oct"})
            with pytest.raises(BadToken):
                tokens.identity(signed(weak, "HS256"))
            unsigned = token_of(MEMBER).split(".")[1]
            with pytest.raises(BadToken):
                tokens.identity(f"eyJhbGciOiJub25lIiwia2lkIjoicnNhIn0.{unsigned}.")
        assert tokens.identity(token_of(MEMBER)).user_id == MEMBER


def test_keys_are_kept_and_asked_for_again_at_a_limited_rate() -> None:
    now = 0.0
    with key_server(RSA) as server:
        keys = PublishedKeys(server.url, clock=lambda: now)
        assert [key.kid for key in keys.having("rsa")] == ["rsa"]
        keys.having("rsa")
        assert server.asked == 1
        server.keys.append(EC)
        for _ in range(50):
            keys.having("ec")  # unknown, but asked for a moment ago
        assert server.asked == 1
        now = 61.0
        assert {key.kid for key in keys.having("ec")} == {"rsa", "ec"}
        assert server.asked == 2
        server.keys.remove(RSA)
        now = 700.0
        assert {key.kid for key in keys.having("ec")} == {"ec"}, "a withdrawn key goes"
        server.status = 500
        now = 1400.0
        assert {key.kid for key in keys.having("ec")} == {"ec"}, "an outage keeps what is known"


def test_without_any_key_nobody_is_let_in(make_settings: SettingsFactory) -> None:
    with key_server() as server:
        tokens = Tokens(make_settings(USAGE_JWKS_URL=server.url))
        with pytest.raises(UsagePipelineError, match="USAGE_JWKS_URL"):
            tokens.identity(signed(RSA, "RS256"))


def test_without_a_setting_no_token_counts(make_settings: SettingsFactory) -> None:
    with pytest.raises(BadToken):
        Tokens(make_settings()).identity(token_of(MEMBER))


def test_a_claim_is_found_by_its_path() -> None:
    claims = {
        "app_metadata": {"role": "admin", "n": 1, "ok": True, "roles": ["a", "admin"]},
        "https://example.com/roles": ["admin"],
        "groups": "admin",
    }
    for wanted in (
        "app_metadata.role=admin",
        "app_metadata.roles=admin",
        "app_metadata.n=1",
        "app_metadata.ok=true",
        "https://example.com/roles=admin",
        "groups=admin",
    ):
        assert has_claim(claims, wanted), wanted
    for wanted in (
        "app_metadata.role=adm",
        "app_metadata=admin",
        "app_metadata.ok=1",
        "app_metadata.ok=True",
        "role=admin",
        "groups.x=admin",
        "app_metadata.role.x=admin",
        ".=admin",
    ):
        assert not has_claim(claims, wanted), wanted
