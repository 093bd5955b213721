"""The web application on a source of a few people, and what they call it with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import OctKey
from starlette.testclient import TestClient
from support import AppDatabase

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.credentials.service_keys import Scope, ServiceKeys

ACME = UUID("00000000-0000-4000-8000-0000000000ac")
OTHER_ORG = UUID("00000000-0000-4000-8000-0000000000ff")
OWNER = UUID("10000000-0000-4000-8000-000000000000")
MANAGER = UUID("20000000-0000-4000-8000-000000000000")
MEMBER = UUID("30000000-0000-4000-8000-000000000000")
FORMER = UUID("40000000-0000-4000-8000-000000000000")
STRANGER = UUID("50000000-0000-4000-8000-000000000000")
ADMIN = UUID("60000000-0000-4000-8000-000000000000")
DELETED = UUID("70000000-0000-4000-8000-000000000000")
JWT_SECRET = "the secret of the application's own tokens"
CRON_SECRET = "a secret of the scheduler"
RUN = "5b6a2c0e-7d0b-4d0f-9f6b-0e2f3a4b5c6d"

ACCOUNTS = f"""
    insert into users (id, email, created_at, deleted_at) values
        ('{OWNER}', 'owner@example.com', '2025-03-01', null),
        ('{MANAGER}', 'manager@example.com', '2025-03-01', null),
        ('{MEMBER}', 'member@example.com', '2025-03-01', null),
        ('{FORMER}', 'former@example.com', '2025-03-01', null),
        ('{STRANGER}', 'stranger@example.com', '2025-03-01', null),
        ('{ADMIN}', 'admin@example.com', '2025-03-01', null),
        ('{DELETED}', 'deleted@example.com', '2025-03-01', '2025-03-15');
    insert into orgs (id, name, created_at) values
        ('{ACME}', 'Acme', '2025-03-01'), ('{OTHER_ORG}', 'Other', '2025-03-01');
    insert into org_members (org_id, user_id, role, created_at) values
        ('{ACME}', '{OWNER}', 'owner', '2025-03-01'),
        ('{ACME}', '{MANAGER}', 'admin', '2025-03-01'),
        ('{ACME}', '{MEMBER}', 'member', '2025-03-01'),
        ('{OTHER_ORG}', '{STRANGER}', 'owner', '2025-03-01');
    insert into subscriptions (id, user_id, org_id, plan, status, created_at) values
        (gen_random_uuid(), null, '{ACME}', 'pro', 'active', '2025-03-01');
    insert into plan_limits (plan, metric_type, limit_quantity) values
        ('free', 'api_call', 10), ('pro', 'api_call', 1000);
"""
# Two days; the sums are by hand in the tests that ask for them.
EVENTS = f"""
    insert into usage_events (user_id, org_id, event_type, quantity, created_at, event_data) values
        ('{MEMBER}', null, 'api_call', 2.5, '2025-04-01 10:00Z', null),
        ('{MEMBER}', '{ACME}', 'api_call', 100, '2025-04-01 11:00Z', '{{"a": "=1+1"}}'),
        ('{MEMBER}', '{ACME}', 'api_call', 0.000000001, '2025-04-02 11:00Z', null),
        ('{MEMBER}', null, 'ai_tokens_used', 12345678901234567890123456789.123456789,
            '2025-04-02 12:00Z', '{{"model": "gpt-4"}}'),
        ('{OWNER}', '{ACME}', 'api_call', 50, '2025-04-02 09:00Z', null),
        ('{STRANGER}', null, 'api_call', 8, '2025-04-02 09:00Z', null);
"""


@dataclass
class Done:
    """What the application had done by way of the pipeline."""

    models: Path
    started: list[tuple[date, date]] = field(default_factory=list)
    away: bool = False

    def start_rollup(self, start: date, end: date) -> str:
        if self.away:
            raise UsagePipelineError("Dagster does not answer", "Start it")
        self.started.append((start, end))
        return RUN


@dataclass(frozen=True)
class Served:
    """The application and what is behind it."""

    settings: Settings
    source: AppDatabase
    app: FastAPI
    done: Done

    @contextmanager
    def client(self, **options: Any) -> Iterator[TestClient]:
        base = {"base_url": "http://127.0.0.1", "client": ("127.0.0.1", 50_000)}
        with TestClient(self.app, follow_redirects=False, **{**base, **options}) as client:
            yield client

    def key(self, *scopes: str) -> str:
        """A new service key; of all scopes where none is named."""
        allowed = scopes or tuple(Scope)
        _, token = ServiceKeys(self.settings).create("test", allowed, timedelta(days=1))
        return token


def token_of(user: UUID | str, **claims: Any) -> str:
    """A token as Supabase issues it."""
    now = int(time.time())
    held = {
        "sub": str(user),
        "aud": "authenticated",
        "role": "authenticated",
        "iss": "https://example.supabase.co/auth/v1",
        "iat": now,
        "exp": now + 3600,
        "app_metadata": {"provider": "email"},
        "user_metadata": {},
    }
    secret = OctKey.import_key(claims.pop("secret", JWT_SECRET))
    merged = {name: value for name, value in {**held, **claims}.items() if value is not None}
    return jwt.encode({"alg": "HS256", "kid": "any"}, merged, secret)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def by_token(user: UUID, **claims: Any) -> dict[str, str]:
    return bearer(token_of(user, **claims))


ServedFactory = Callable[..., Served]
