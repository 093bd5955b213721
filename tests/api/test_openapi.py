"""The API against its own description: thousands of requests that nobody wrote by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from served import CRON_SECRET, MEMBER, Served, ServedFactory, bearer

OPERATIONS = {
    "POST /api/usage/events",
    "POST /api/usage/ai",
    "GET /api/usage/summary",
    "GET /api/usage/aggregated",
    "GET /api/usage/limits",
    "GET /api/usage/export",
    "POST /api/portal-links",
    "POST /api/cron/aggregate-usage",
    "GET /api/admin/analytics",
    "GET /api/healthz",
    "GET /api/readyz",
    "GET /api/metrics",
}
# With nothing to get wrong.
WITHOUT_PARAMETERS = {"GET /api/healthz", "GET /api/readyz", "GET /api/metrics"}
BOUNDED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def described(serve: ServedFactory) -> Iterator[Any]:
    served = serve()
    # No schema can say of event_data that Postgres holds every character but one.
    config = schemathesis.Config.from_dict({"generation": {"allow-x00": False}})
    yield schemathesis.openapi.from_asgi("/api/openapi.json", served.app, config=config)
    served.source.execute("delete from usage_events where created_at > '2025-04-03'")


@pytest.fixture(scope="module")
def key(served: Served) -> str:
    return served.key()


def test_all_operations_are_tried(described: Any) -> None:
    found = {result.ok().label for result in described.get_all_operations()}
    assert found == OPERATIONS


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        (operation, mode)
        for operation in sorted(OPERATIONS)
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or operation not in WITHOUT_PARAMETERS
    ],
)
@pytest.mark.parametrize("with_key", [True, False])
def test_it_does_what_it_says(
    described: Any, key: str, operation: str, with_key: bool, mode: GenerationMode
) -> None:
    method, _, path = operation.partition(" ")
    token = CRON_SECRET if path.endswith("aggregate-usage") else key

    @settings(BOUNDED, max_examples=25 if with_key else 8)
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        headers = bearer(token) if with_key else {}
        if mode is GenerationMode.POSITIVE:
            with_meaning(case)
        elif isinstance(case.body, list) and with_key:  # tells of each, so it answers 200
            assert case.call(headers=headers).status_code in (200, 401, 422)
            return
        case.call_and_validate(headers=headers)

    check()


def with_meaning(case: Case) -> None:
    """What no schema says: people who exist, and times that are not to come."""
    query = case.query or {}
    query.pop("cursor", None)
    if case.path.startswith("/api/usage/") and case.method == "GET":
        query["user_id"] = str(MEMBER)
    case.query = query
    sent: Any = case.body
    bodies = sent if isinstance(sent, list) else [sent]
    for body in bodies:
        if isinstance(body, dict):
            for moment in ("created_at", "period_start", "period_end"):
                body.pop(moment, None)
            if case.path != "/api/cron/aggregate-usage":
                body["user_id"] = str(MEMBER)
                body.pop("org_id", None)


def test_every_operation_has_an_example(served: Served) -> None:
    with served.client() as client:
        described = client.get("/api/openapi.json").json()
    missing = [
        f"{method} {path} {status}"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
        for status, answer in operation["responses"].items()
        for content in answer.get("content", {}).values()
        if status != "422" and not {"example", "examples"} & content.keys()
    ]
    assert missing == []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            body = operation.get("requestBody")
            if body:
                (content,) = body["content"].values()
                assert "example" in content or "$ref" in str(content), (method, path)
