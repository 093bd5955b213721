"""Who gets what: every route of the application, asked by everybody."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi.routing import iter_route_contexts
from served import (
    ACME,
    ADMIN,
    CRON_SECRET,
    DELETED,
    FORMER,
    MANAGER,
    MEMBER,
    OWNER,
    STRANGER,
    Served,
    ServedFactory,
    bearer,
    by_token,
    token_of,
)
from starlette.requests import Request
from starlette.testclient import TestClient

from usage_pipeline.web.credentials.service_keys import Scope, ServiceKeys
from usage_pipeline.web.identity import Identity

AS_ADMIN = {"app_metadata": {"role": "admin"}}
EVENT = {"id": "e0000000-0000-4000-8000-000000000001", "event_type": "api_call"}

UNPROVEN = (
    "anonymous",
    "expired token",
    "token signed by another secret",
    "unsigned token",
    "token for another audience",
    "token of a deleted user",
    "token of nobody",
    "revoked key",
    "expired key",
    "unknown key",
    "wrong cron secret",
    "cron secret",
)
PEOPLE = ("member", "former member", "other org's owner", "org admin", "org owner", "admin")
OF_ACME = ("member", "org admin", "org owner")
SESSIONS = (
    "session",
    "org owner's session",
    "org admin's session",
    "other org's owner's session",
    "admin's session",
    "portal session",
    "org owner's portal session",
    "former member's portal session",
)
NO_SESSIONS = ("session of a deleted user", "forged session", "session without its signature")
KEYS = tuple(f"key for {scope}" for scope in Scope)
EVERYBODY = (*UNPROVEN, *PEOPLE, *SESSIONS, *NO_SESSIONS, *KEYS)


@dataclass(frozen=True)
class Row:
    """One question to a route.

    Attributes:
        otherwise: the status for whoever is not named in `statuses`.
    """

    statuses: Mapping[int, tuple[str, ...]]
    otherwise: int = 401
    query: str = ""
    json: Any = None
    form: Mapping[str, str] | None = None


def usage(query: str, **answered: tuple[str, ...]) -> Row:
    """A read of usage: who is not named and proven gets 403."""
    allowed = (*answered.get("ok", ()), "key for usage:read")
    proven = (*PEOPLE, *KEYS)
    unclear = answered.get("unclear", ())
    refused = tuple(who for who in proven if who not in (*allowed, *unclear))
    return Row(
        {200: tuple(w for w in allowed if w not in unclear), 422: unclear, 403: refused},
        query=query,
    )


def keys_only(scope: str, status: int, *people: str, **request: Any) -> Row:
    """Something that a key with a scope may, and these people."""
    allowed = (f"key for {scope}", *people)
    refused = tuple(who for who in (*PEOPLE, *KEYS) if who not in allowed)
    return Row({status: allowed, 403: refused}, **request)


OWN = usage("", ok=PEOPLE, unclear=("key for usage:read",))
OF_MEMBER = usage(f"?user_id={MEMBER}", ok=("member", "admin"))
OF_ORG = usage(f"?org_id={ACME}", ok=(*OF_ACME, "admin"))
OPEN = Row({}, otherwise=200)
MONTH = "month=2025-04"
EXPORT = [
    usage(f"?{MONTH}", ok=PEOPLE, unclear=("key for usage:read",)),
    usage(f"?{MONTH}&user_id={MEMBER}", ok=("member", "admin")),
    usage(f"?{MONTH}&org_id={ACME}", ok=(*OF_ACME, "admin")),
]
SCRAPED = Row({200: ("key for admin:read",), 403: tuple(k for k in KEYS if "admin" not in k)})


def page(*seen_by: str, query: str = "", **request: Any) -> Row:
    """A page: nobody learns that there is one which is not theirs, and strangers sign in first."""
    others = tuple(who for who in SESSIONS if who not in seen_by)
    return Row({200: seen_by, 404: others}, otherwise=303, query=query, **request)


# Whose link is for an organisation that they left see nothing at all.
USERS = SESSIONS[:-1]
MEMBERS = ("session", "org owner's session", "org admin's session", "portal session", USERS[-1])
MANAGE = ("org owner's session", "org admin's session", "admin's session", USERS[-1])
ACME_PAGES = [page(*USERS), page(*MEMBERS, query=f"?org={ACME}")]
# Without an organisation, since events of all are in one file.
WITH_EVENTS = ("session", "org owner's session", "other org's owner's session", "portal session")
REPLAY = {"message_id": str(UUID(int=1)), "recipient_id": str(UUID(int=2))}

TABLE: dict[str, list[Row]] = {
    "GET /": [Row({}, otherwise=303)],
    "GET /usage": ACME_PAGES,
    "GET /usage/totals.csv": ACME_PAGES,
    "GET /usage/days.csv": ACME_PAGES,
    "GET /usage/events.csv": [page(*WITH_EVENTS, query="?month=2025-04")],
    "GET /org/{org_id}": [page(*MANAGE)],
    "POST /org/{org_id}/replay": [
        Row(
            {303: MANAGE[:-1], 404: tuple(w for w in SESSIONS[:5] if w not in MANAGE)},
            otherwise=403,
            form=REPLAY,
        )
    ],
    "GET /platform": [page("admin's session", query="?month=2025-04")],
    "GET /why": [
        page(*USERS, query="?metric=api_call"),
        page(*MEMBERS, "admin's session", query=f"?metric=api_call&org={ACME}"),
        page("admin's session", query="?metric=api_call&org=platform"),
    ],
    "GET /docs/dbt": [page("admin's session")],
    "GET /charts.js": [OPEN],
    "GET /static": [Row({}, otherwise=404)],
    "GET /sign-in": [OPEN],
    "POST /sign-in/token": [
        Row({303: EVERYBODY}, form={"token": "of the member"}),
        Row({}, form={"token": "nonsense"}),
        Row({}, form={"token": "expired"}),
        Row({}, form={"token": "of a deleted user"}),
    ],
    "POST /sign-in/development": [
        Row({}, otherwise=303, form={"user_id": str(MEMBER)}),
        Row({}, otherwise=403, form={"user_id": str(DELETED)}),
    ],
    "GET /sign-in/oidc": [Row({}, otherwise=503)],
    "GET /sign-in/oidc/callback": [Row({}, otherwise=503)],
    "POST /sign-out": [Row({303: (*SESSIONS, "session of a deleted user")}, otherwise=403)],
    "GET /portal/{token}": [Row({}, otherwise=403)],
    "GET /api/openapi.json": [OPEN],
    "POST /api/usage/events": [
        Row(
            {
                200: PEOPLE,
                422: ("key for events:write",),
                403: tuple(k for k in KEYS if k != KEYS[0]),
            },
            json=EVENT,
        ),
        keys_only("events:write", 200, "member", json={**EVENT, "user_id": str(MEMBER)}),
        Row(
            {
                200: OF_ACME,
                422: ("key for events:write",),
                403: (*(w for w in PEOPLE if w not in OF_ACME), *(k for k in KEYS if k != KEYS[0])),
            },
            json={**EVENT, "org_id": str(ACME)},
        ),
    ],
    "POST /api/usage/ai": [
        keys_only(
            "events:write",
            200,
            "member",
            json={"id": EVENT["id"], "tokens": 1, "model": "m", "user_id": str(MEMBER)},
        )
    ],
    "GET /api/usage/summary": [OWN, OF_MEMBER, OF_ORG],
    "GET /api/usage/aggregated": [OWN, OF_MEMBER, OF_ORG],
    "GET /api/usage/limits": [OWN, OF_MEMBER, OF_ORG],
    "GET /api/usage/export": EXPORT,
    "POST /api/portal-links": [keys_only("portal:write", 200, json={"user_id": str(MEMBER)})],
    "POST /api/cron/aggregate-usage": [Row({202: ("cron secret",)})],
    "GET /api/admin/analytics": [keys_only("admin:read", 200, "admin", query=f"?{MONTH}")],
    "GET /healthz": [OPEN],
    "GET /readyz": [OPEN],
    "GET /metrics": [SCRAPED],
    "GET /api/healthz": [OPEN],
    "GET /api/readyz": [OPEN],
    "GET /api/metrics": [SCRAPED],
}


@pytest.fixture(scope="module")
def everything(serve: ServedFactory) -> Served:
    """With all ways to sign in, so that all routes are there."""
    return serve(
        USAGE_WEB_DEVELOPMENT="true",
        USAGE_OIDC_ISSUER="http://127.0.0.1:9",
        USAGE_OIDC_CLIENT_ID="usage",
    )


@pytest.fixture(scope="module")
def headers(everything: Served) -> dict[str, dict[str, str]]:
    """What each caller sends."""
    keys = ServiceKeys(everything.settings)
    revoked, revoked_token = keys.create("revoked", tuple(Scope), None)
    keys.revoke(revoked.key_id)
    _, expired_token = keys.create("expired", tuple(Scope), timedelta(seconds=-1))
    session = session_of(everything, Identity(MEMBER))
    unsigned = ".".join([*session["Cookie"].split(".")[:-1], "AAAA"])
    sent = {
        "anonymous": {},
        "expired token": by_token(MEMBER, exp=int(time.time()) - 60),
        "token signed by another secret": by_token(
            MEMBER, secret="another one of 32 characters ..."
        ),
        "unsigned token": bearer(unsigned_token()),
        "token for another audience": by_token(MEMBER, aud="somebody else"),
        "token of a deleted user": by_token(DELETED),
        "token of nobody": by_token(UUID(int=1)),
        "revoked key": bearer(revoked_token),
        "expired key": bearer(expired_token),
        "unknown key": bearer(f"uk_{revoked.key_id}_{'x' * 43}"),
        "wrong cron secret": bearer(CRON_SECRET + "x"),
        "cron secret": bearer(CRON_SECRET),
        "member": by_token(MEMBER),
        "former member": by_token(FORMER),
        "other org's owner": by_token(STRANGER),
        "org admin": by_token(MANAGER),
        "org owner": by_token(OWNER),
        "admin": by_token(ADMIN, **AS_ADMIN),
        "session": session,
        "org owner's session": session_of(everything, Identity(OWNER)),
        "org admin's session": session_of(everything, Identity(MANAGER)),
        "other org's owner's session": session_of(everything, Identity(STRANGER)),
        "admin's session": session_of(everything, Identity(ADMIN, is_admin=True)),
        "org owner's portal session": session_of(
            everything, Identity(OWNER, org_id=ACME, via="portal")
        ),
        "portal session": session_of(everything, Identity(MEMBER, via="portal")),
        "former member's portal session": session_of(
            everything, Identity(FORMER, org_id=ACME, via="portal")
        ),
        "session of a deleted user": session_of(everything, Identity(DELETED)),
        "forged session": {"Cookie": "usage_session=eyJ1c2VyIjoxfQ.aaaaaa.bbbbbbbbbbbbbbbbbbb"},
        "session without its signature": {"Cookie": unsigned},
    }
    for scope in Scope:
        _, token = keys.create(scope, [scope], None)
        sent[f"key for {scope}"] = bearer(token)
    assert sent.keys() == {*EVERYBODY}
    return sent


def session_of(served: Served, identity: Identity) -> dict[str, str]:
    """The cookie of who signed in, and the token of their forms."""
    from starlette.responses import Response

    response = Response()
    sessions = served.app.state.web.sessions
    sessions.begin(response, identity)
    cookie = [c for c in response.headers.getlist("set-cookie") if "Max-Age=0" not in c][-1]
    sent = cookie.partition(";")[0]
    request = Request({"type": "http", "headers": [(b"cookie", sent.encode())]})
    return {"Cookie": sent, "X-CSRF-Token": sessions.csrf_token(request)}


def unsigned_token() -> str:
    header = urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{header}.{token_of(MEMBER).split('.')[1]}."


def routes(served: Served) -> set[str]:
    found = set()
    for route in iter_route_contexts(served.app.routes):
        for method in route.methods or {"GET"}:
            if method != "HEAD":
                found.add(f"{method} {route.path}")
    return found


def test_every_route_has_a_row(everything: Served) -> None:
    assert routes(everything) == TABLE.keys()


@pytest.mark.parametrize("route", TABLE)
def test_everybody_gets_what_is_theirs(
    everything: Served, headers: Mapping[str, Mapping[str, str]], route: str
) -> None:
    tokens: dict[str, Callable[[], str]] = {
        "of the member": lambda: token_of(MEMBER),
        "expired": lambda: token_of(MEMBER, exp=int(time.time()) - 60),
        "of a deleted user": lambda: token_of(DELETED),
    }
    method, _, path = route.replace("{org_id}", str(ACME)).partition(" ")
    # From another machine's name, so that the metrics are not of this machine; but the picker is.
    host = "http://127.0.0.1" if "development" in path else "http://usage.example.com"
    with everything.client(base_url=host) as client:
        for row in TABLE[route]:
            form = dict(row.form or {})
            if form.get("token") in tokens:
                form["token"] = tokens[form["token"]]()
            got = {
                who: ask(client, method, path + row.query, headers[who], json=row.json, form=form)
                for who in EVERYBODY
            }
            named = {who: status for status, group in row.statuses.items() for who in group}
            assert got == {who: named.get(who, row.otherwise) for who in EVERYBODY}, row


def ask(
    client: TestClient,
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    json: Any,
    form: Mapping[str, str],
) -> int:
    client.cookies.clear()
    answer = client.request(method, url, headers=dict(headers), json=json, data=form or None)
    assert "Traceback" not in answer.text
    return answer.status_code
