"""Browsers: sessions and their cookies, forms, portal links, the picker, OpenID Connect."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from fastapi.routing import iter_route_contexts
from httpx import Response
from joserfc import jwt
from joserfc.jwk import RSAKey
from served import (
    ACME,
    ADMIN,
    DELETED,
    FORMER,
    MEMBER,
    OWNER,
    STRANGER,
    Served,
    ServedFactory,
    bearer,
    token_of,
)
from starlette.requests import Request
from starlette.responses import Response as Answer
from starlette.testclient import TestClient

from usage_pipeline.web.guard import security_headers
from usage_pipeline.web.identity import Identity

HTTPS = {"USAGE_WEB_URL": "https://usage.example.com"}
FRAMED = {**HTTPS, "USAGE_FRAME_ORIGINS": "https://app.example.com"}
AS_ADMIN = {"app_metadata": {"role": "admin"}}


def cookies(answer: Response) -> dict[str, str]:
    """Those that were set, not removed: by name, value and attributes."""
    lines = answer.headers.get_list("set-cookie")
    found = dict(line.split("=", 1) for line in lines)
    return {name: rest for name, rest in found.items() if "Max-Age=0" not in rest}


def signed_in(client: TestClient, user: UUID, **claims: Any) -> Response:
    return client.post("/sign-in/token", data={"token": token_of(user, **claims)})


def portal_link(served: Served, client: TestClient, **wanted: Any) -> str:
    headers = bearer(served.key("portal:write"))
    answer = client.post("/api/portal-links", json=wanted, headers=headers)
    assert answer.status_code == 200, answer.text
    return urlsplit(answer.json()["url"]).path


def csrf_of(served: Served, client: TestClient) -> str:
    sent = client.build_request("GET", "/").headers["cookie"]
    return str(served.app.state.web.sessions.csrf_token(request_with(sent)))


def request_with(cookie: str) -> Request:
    return Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})


def test_a_token_makes_a_session_and_sign_out_ends_it(served: Served) -> None:
    with served.client() as client:
        answer = signed_in(client, MEMBER)
        assert (answer.status_code, answer.headers["location"]) == (303, "/usage")
        (cookie,) = cookies(answer).values()
        assert cookie.partition("; ")[2] == "Max-Age=43200; Path=/; HttpOnly; SameSite=Lax"
        assert client.get("/usage").status_code == 200
        assert client.post("/sign-out").status_code == 403
        answer = client.post("/sign-out", data={"csrf_token": csrf_of(served, client)})
        assert answer.status_code == 303
        assert client.get("/usage").headers["location"] == "/sign-in"


def test_a_session_is_new_each_time(served: Served) -> None:
    """A cookie that somebody planted before is replaced, and nothing of it is taken over."""
    with served.client() as client:
        client.cookies.set("usage_session", "planted")
        first, second = (cookies(signed_in(client, MEMBER)) for _ in range(2))
        assert first["usage_session"] != second["usage_session"]


def test_over_https_the_cookie_is_of_this_host_alone(serve: ServedFactory) -> None:
    with serve(**HTTPS).client(base_url="https://usage.example.com") as client:
        answer = signed_in(client, MEMBER)
        ((name, cookie),) = cookies(answer).items()
        assert name == "__Host-usage_session"
        assert cookie.endswith("; Path=/; HttpOnly; SameSite=Lax; Secure")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_a_deleted_user_is_out_at_once(served: Served) -> None:
    with served.client() as client:
        signed_in(client, OWNER)
        assert client.get("/usage").status_code == 200
        served.source.execute("update users set deleted_at = now() where id = %s", [str(OWNER)])
        try:
            assert client.get("/usage").status_code == 303
            assert signed_in(client, OWNER).status_code == 401
        finally:
            served.source.execute("update users set deleted_at = null where id = %s", [str(OWNER)])


def test_a_portal_link_shows_one_user_and_changes_nothing(served: Served) -> None:
    with served.client() as client:
        link = portal_link(served, client, user_id=str(MEMBER), org_id=str(ACME))
        signed_in(client, ADMIN, **AS_ADMIN)
        answer = client.get(link)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/usage?org={ACME}")
        assert answer.headers["cache-control"] == "no-store"
        (name,) = cookies(answer)
        assert name == "usage_portal"
        assert "usage_session" not in client.cookies, "who was signed in before is not any more"
        assert client.get("/usage").status_code == 200
        assert client.get("/api/usage/summary").status_code == 401
        answer = client.post("/sign-out", data={"csrf_token": csrf_of(served, client)})
        assert answer.status_code == 303
        assert client.get("/usage").status_code == 303


def test_a_portal_session_is_never_an_admins(served: Served) -> None:
    response, sessions = Answer(), served.app.state.web.sessions
    sessions.begin(response, Identity(ADMIN, is_admin=True, via="portal"))
    cookie = response.headers.getlist("set-cookie")[-1].partition(";")[0]
    identity = sessions.identity(request_with(cookie))
    assert identity == Identity(ADMIN, is_admin=False, via="portal")


def test_the_two_kinds_of_session_do_not_take_each_others_cookie(served: Served) -> None:
    with served.client() as client:
        link = portal_link(served, client, user_id=str(MEMBER))
        portal = cookies(client.get(link))["usage_portal"].partition(";")[0]
        own = cookies(signed_in(client, MEMBER))["usage_session"].partition(";")[0]
        for name, value in (("usage_session", portal), ("usage_portal", own)):
            client.cookies.clear()
            assert client.get("/usage", headers={"Cookie": f"{name}={value}"}).status_code == 303
        token = link.rpartition("/")[2]
        for name in ("usage_session", "usage_portal"):
            assert client.get("/usage", headers={"Cookie": f"{name}={token}"}).status_code == 303
        assert client.get(f"/portal/{portal}").status_code == 403


def test_a_portal_link_ends(served: Served) -> None:
    links = served.app.state.web.portal_links
    url, _ = links.make(MEMBER, None, 0)
    with served.client() as client:
        assert client.get(urlsplit(url).path).status_code == 403
        url, _ = links.make(MEMBER, None, 60)
        changed = urlsplit(url).path[:-3] + "abc"
        assert client.get(changed).status_code == 403
        url, _ = links.make(DELETED, None, 60)
        assert client.get(urlsplit(url).path).status_code == 403


@pytest.mark.parametrize(
    "wanted",
    [
        {"user_id": str(DELETED)},
        {"user_id": str(UUID(int=5))},
        {"user_id": str(FORMER), "org_id": str(ACME)},
        {"user_id": str(MEMBER), "expires_in": 3601},
        {"user_id": str(MEMBER), "expires_in": "60"},
        {"user_id": str(MEMBER), "is_admin": True},
        {},
    ],
)
def test_no_link_is_made_for_whom_there_is_none(served: Served, wanted: dict[str, Any]) -> None:
    with served.client() as client:
        headers = bearer(served.key("portal:write"))
        answer = client.post("/api/portal-links", json=wanted, headers=headers)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_link_narrows_to_its_organisation(served: Served) -> None:
    members = served.app.state.web.members
    served.source.execute(
        "insert into org_members values (%s, %s, 'owner', now())",
        ["00000000-0000-4000-8000-0000000000ff", str(OWNER)],
    )
    try:
        narrowed = Identity(OWNER, org_id=ACME, via="portal")
        assert [org.org_id for org in members.shown_to(narrowed)] == [ACME]
        assert len(members.shown_to(Identity(OWNER))) == 2
        assert members.role(narrowed, UUID("00000000-0000-4000-8000-0000000000ff")) is None
    finally:
        served.source.execute(
            "delete from org_members where org_id = %s and user_id = %s",
            ["00000000-0000-4000-8000-0000000000ff", str(OWNER)],
        )


def test_a_frame_of_an_allowed_origin_gets_a_cookie_of_its_own(serve: ServedFactory) -> None:
    served = serve(**FRAMED)
    with served.client(base_url="https://usage.example.com") as client:
        answer = client.get(portal_link(served, client, user_id=str(MEMBER)))
        ((name, cookie),) = cookies(answer).items()
        assert name == "__Host-usage_portal"
        assert cookie.partition("; ")[2] == (
            "Max-Age=3600; Path=/; HttpOnly; SameSite=None; Secure; Partitioned"
        )
        policy = answer.headers["content-security-policy"]
        assert policy.endswith("frame-ancestors https://app.example.com")


def test_no_frame_without_the_setting(served: Served) -> None:
    policy = security_headers(served.settings)["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors 'none'")
    assert "unsafe" not in policy


def test_nothing_changes_by_a_form_of_another_site(served: Served) -> None:
    """Every form but those that sign in asks for the session's own token; and none takes one that a
    page of another site sends."""
    signing_in = {"/sign-in/token", "/sign-in/development"}
    posts = [
        route.path
        for route in iter_route_contexts(served.app.routes)
        if route.path and not route.path.startswith("/api/") and "POST" in (route.methods or ())
    ]
    assert "/sign-out" in posts
    with served.client() as client:
        signed_in(client, MEMBER)
        for path in posts:
            address = path.replace("{", "").replace("}", "")
            assert path in signing_in or client.post(address).status_code == 403, path
            own = {"X-CSRF-Token": csrf_of(served, client)}
            for origin in ("https://evil.example.com", "null", "http://127.0.0.1:81"):
                answer = client.post(address, headers={**own, "Origin": origin})
                assert answer.status_code == 403, (path, origin)
        other = csrf_of(served, client)
        signed_in(client, STRANGER)
        answer = client.post("/sign-out", data={"csrf_token": other})
        assert answer.status_code == 403, "of a session before"
        own = {"X-CSRF-Token": csrf_of(served, client), "Origin": "http://127.0.0.1"}
        assert client.post("/sign-out", headers=own).status_code == 303


def test_a_token_may_come_from_a_page_of_the_application(serve: ServedFactory) -> None:
    served = serve(**FRAMED)
    with served.client(base_url="https://usage.example.com") as client:
        form = {"token": token_of(MEMBER)}
        for origin, status in (("https://app.example.com", 303), ("https://evil.example.com", 403)):
            answer = client.post("/sign-in/token", data=form, headers={"Origin": origin})
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("client", "base_url", "headers"),
    [
        ("10.0.0.5", "http://127.0.0.1:8000", {}),
        ("127.0.0.1", "http://usage.example.com", {}),
        ("127.0.0.1", "http://127.0.0.1.example.com", {}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"Forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"X-Real-IP": "127.0.0.1"}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"X-Forwarded-Host": "usage.example.com"}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"Via": "1.1 proxy"}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"Origin": "https://evil.example.com"}),
        ("unix", "http://127.0.0.1:8000", {}),
    ],
)
def test_the_picker_is_for_this_machine(
    serve: ServedFactory, client: str, base_url: str, headers: dict[str, str]
) -> None:
    served = serve(USAGE_WEB_DEVELOPMENT="true")
    form = {"user_id": str(MEMBER), "admin": "true"}
    with served.client(base_url="http://localhost:8000") as here:
        answer = here.post("/sign-in/development", data=form)
        assert answer.status_code == 303
        assert str(MEMBER) in here.get("/sign-in").text
        session = cookies(answer)["usage_session"].partition(";")[0]
    with served.client(base_url=base_url, client=(client, 1)) as elsewhere:
        answer = elsewhere.post("/sign-in/development", data=form, headers=headers)
        assert answer.status_code == 403
        if "Origin" not in headers:
            assert str(MEMBER) not in elsewhere.get("/sign-in", headers=headers).text
            taken = {**headers, "Cookie": f"usage_session={session}"}
            assert elsewhere.get("/usage", headers=taken).status_code == 303


def test_there_is_no_picker_beside_another_sign_in(served: Served) -> None:
    assert not served.settings.development
    with served.client() as client:
        form = {"user_id": str(MEMBER)}
        assert client.post("/sign-in/development", data=form).status_code == 404


KEY = RSAKey.generate_key(2048, {"kid": "provider"})
OTHER_KEY = RSAKey.generate_key(2048, {"kid": "provider"})


@dataclass
class Provider:
    """An OpenID Connect provider: what it says of itself, and of who signs in."""

    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    key: RSAKey = field(default_factory=lambda: KEY)
    nonce: str = ""
    challenge: str = ""
    without_id_token: bool = False

    def described(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "id_token_signing_alg_values_supported": ["none", "HS256", "RS256"],
            **self.metadata,
        }

    def token(self, form: dict[str, list[str]]) -> dict[str, Any]:
        digest = hashlib.sha256(form["code_verifier"][0].encode()).digest()
        assert urlsafe_b64encode(digest).rstrip(b"=").decode() == self.challenge
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "somebody",
            "aud": "usage",
            "iat": now,
            "exp": now + 60,
            "nonce": self.nonce,
            "groups": ["usage-admins"],
            **self.claims,
        }
        id_token = jwt.encode({"alg": "RS256", "kid": "provider"}, claims, self.key)
        if claims.get("unsigned"):
            header = urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
            id_token = f"{header}.{id_token.split('.')[1]}."
        held = {"access_token": "x", "token_type": "Bearer", "id_token": id_token}
        return {k: v for k, v in held.items() if k != "id_token" or not self.without_id_token}


@pytest.fixture(scope="module")
def provider_server() -> Iterator[list[Provider]]:
    current: list[Provider] = [Provider()]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys = {"keys": [KEY.as_dict(private=False)]}
            self._answer(keys if self.path == "/jwks" else current[0].described())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            self._answer(current[0].token(parse_qs(body)))

        def _answer(self, content: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    current[0].url = f"http://127.0.0.1:{server.server_port}"
    yield current
    server.shutdown()
    thread.join()
    server.server_close()


def through_the_provider(
    serve: ServedFactory, current: list[Provider], **changed: Any
) -> tuple[Response, dict[str, list[str]]]:
    provider = Provider(url=current[0].url, **changed)
    current[0] = provider
    served = serve(USAGE_OIDC_ISSUER=provider.url, USAGE_OIDC_CLIENT_ID="usage")
    with served.client() as client:
        left = client.get("/sign-in/oidc")
        assert left.status_code == 302, left.text
        asked = parse_qs(urlsplit(left.headers["location"]).query)
        provider.challenge = asked["code_challenge"][0]
        provider.nonce = provider.nonce or asked["nonce"][0]
        callback = f"/sign-in/oidc/callback?code=c&state={asked['state'][0]}"
        return client.get(callback), asked


def test_people_of_the_company_sign_in_by_oidc(
    serve: ServedFactory, provider_server: list[Provider]
) -> None:
    answer, asked = through_the_provider(serve, provider_server)
    assert (answer.status_code, answer.headers["location"]) == (303, "/platform")
    assert "usage_session" in cookies(answer)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == ["http://127.0.0.1:8000/sign-in/oidc/callback"]
    assert asked["response_type"] == ["code"]


@pytest.mark.parametrize(
    "changed",
    [
        {"claims": {"groups": ["others"]}},
        {"claims": {"groups": None}},
        {"claims": {"aud": "another client"}},
        {"claims": {"aud": ["another client", "usage"]}},
        {"claims": {"iss": "https://evil.example.com"}},
        {"claims": {"exp": 1}},
        {"claims": {"unsigned": True}},
        {"nonce": "of another browser"},
        {"key": OTHER_KEY},
        {"without_id_token": True},
    ],
)
def test_an_id_token_that_proves_nothing_is_refused(
    serve: ServedFactory, provider_server: list[Provider], changed: dict[str, Any]
) -> None:
    answer, _ = through_the_provider(serve, provider_server, **changed)
    assert answer.status_code == 403
    assert not {"usage_session", "__Host-usage_session"} & cookies(answer).keys()


def test_oidc_needs_the_browser_that_left(
    serve: ServedFactory, provider_server: list[Provider]
) -> None:
    provider = provider_server[0] = Provider(url=provider_server[0].url)
    served = serve(USAGE_OIDC_ISSUER=provider.url, USAGE_OIDC_CLIENT_ID="usage")
    with served.client() as client:
        left = client.get("/sign-in/oidc")
        state = parse_qs(urlsplit(left.headers["location"]).query)["state"][0]
        for query in ("", "?code=c", f"?code=c&state={state}x", "?error=access_denied"):
            assert client.get(f"/sign-in/oidc/callback{query}").status_code == 403, query
    with served.client() as another:
        assert another.get(f"/sign-in/oidc/callback?code=c&state={state}").status_code == 403


def test_another_issuer_than_the_setting_is_no_provider(
    serve: ServedFactory, provider_server: list[Provider]
) -> None:
    url = provider_server[0].url
    provider_server[0] = Provider(url=url, metadata={"issuer": "https://evil.example.com"})
    served = serve(USAGE_OIDC_ISSUER=url, USAGE_OIDC_CLIENT_ID="usage")
    with served.client() as client:
        assert client.get("/sign-in/oidc").status_code == 503
