"""What the API tells of usage: exact numbers by hand, pages that stay whole, answers kept by who
asked, raw events as they were."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from served import (
    ACME,
    ADMIN,
    MEMBER,
    OWNER,
    STRANGER,
    Served,
    ServedFactory,
    bearer,
    by_token,
)
from starlette.testclient import TestClient

AS_ADMIN = {"app_metadata": {"role": "admin"}}
GREAT = "12345678901234567890123456789.123456789"


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def key(served: Served) -> dict[str, str]:
    return bearer(served.key("usage:read"))


def items(client: TestClient, path: str, headers: dict[str, str]) -> list[dict[str, Any]]:
    answer = client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_a_summary_is_exact(client: TestClient) -> None:
    answer = client.get("/api/usage/summary?period=week", headers=by_token(MEMBER)).json()
    assert (answer["as_of_date"], answer["window_start"], answer["window_end"]) == (
        "2025-04-02",
        "2025-03-27",
        "2025-04-03",
    )
    assert answer["items"] == [
        {
            "metric_type": "ai_tokens_used",
            "total_quantity": GREAT,
            "previous_quantity": "0",
            "change_ratio": None,
            "event_count": 1,
        },
        {
            "metric_type": "api_call",
            "total_quantity": "102.500000001",  # 2.5 + 100 + 0.000000001
            "previous_quantity": "0",
            "change_ratio": None,
            "event_count": 3,
        },
    ]
    (of_org,) = items(client, f"/api/usage/summary?org_id={ACME}", by_token(OWNER))
    assert (of_org["total_quantity"], of_org["event_count"]) == ("150.000000001", 3)


def test_nobody_without_usage_has_rows(client: TestClient) -> None:
    answer = client.get("/api/usage/summary", headers=by_token(ADMIN)).json()
    assert answer["items"] == []
    assert answer["as_of_date"] is None


def test_totals_are_a_users_own_or_all_of_an_organisation_to_a_key(
    client: TestClient, key: dict[str, str]
) -> None:
    def totals(query: str, headers: dict[str, str]) -> list[tuple[str, str, str | None]]:
        found = items(client, f"/api/usage/aggregated{query}", headers)
        return sorted((row["user_id"], row["total_quantity"], row["org_id"]) for row in found)

    own = [(str(MEMBER), "0.000000001", str(ACME)), (str(MEMBER), "100", str(ACME))]
    of_owner = (str(OWNER), "50", str(ACME))
    assert totals(f"?org_id={ACME}", by_token(MEMBER)) == own
    assert totals(f"?org_id={ACME}", by_token(OWNER)) == [of_owner]
    assert totals(f"?org_id={ACME}", key) == [of_owner, *own]
    assert totals(f"?org_id={ACME}", by_token(ADMIN, **AS_ADMIN)) == [of_owner, *own]
    assert totals(f"?org_id={ACME}&user_id={OWNER}", key) == [of_owner]
    assert totals(f"?user_id={STRANGER}&metric_type=api_call", key) == [(str(STRANGER), "8", None)]


def test_periods_are_local_days(client: TestClient, key: dict[str, str]) -> None:
    path = f"/api/usage/aggregated?user_id={MEMBER}"
    (row,) = items(
        client, f"{path}&start=2025-04-01&end=2025-04-02&metric_type=api_call&limit=1", key
    )[:1]
    assert (row["period_start"], row["period_end"]) == (
        "2025-04-01T00:00:00Z",
        "2025-04-02T00:00:00Z",
    )
    assert row["metadata"] == {"event_count": 1, "active_days": 1}
    days = {row["period_start"] for row in items(client, f"{path}&start=2025-04-02", key)}
    assert days == {"2025-04-02T00:00:00Z"}
    later = "&start=2025-04-01T00:00:01Z&end=2025-04-02T00:00:01%2B00:00"
    assert {row["period_start"] for row in items(client, path + later, key)} == days
    months = items(client, f"{path}&period_type=monthly&metric_type=api_call", key)
    assert sorted((row["total_quantity"], row["org_id"]) for row in months) == [
        ("100.000000001", str(ACME)),
        ("2.5", None),
    ]
    assert {row["period_end"] for row in months} == {"2025-05-01T00:00:00Z"}


def test_pages_are_all_rows_once_also_while_rows_come_and_go(
    served: Served, client: TestClient, key: dict[str, str]
) -> None:
    path = f"/api/usage/aggregated?user_id={MEMBER}"
    whole = items(client, path, key)
    assert len(whole) == 4
    first = client.get(f"{path}&limit=2", headers=key).json()
    # A row that was shown is gone when the next page is asked for.
    shown = "where user_id = %s and usage_date = '2025-04-01' and org_id is null"
    served.source.execute(
        f"create table kept as select * from usage.usage_daily {shown}", [str(MEMBER)]
    )
    served.source.execute(f"delete from usage.usage_daily {shown}", [str(MEMBER)])
    try:
        seen, cursor = first["items"], first["next_cursor"]
        while cursor:
            page = client.get(f"{path}&limit=1&cursor={cursor}", headers=key).json()
            seen, cursor = [*seen, *page["items"]], page["next_cursor"]
    finally:
        served.source.execute("insert into usage.usage_daily select * from kept; drop table kept")
    assert seen == whole
    assert whole == sorted(whole, key=lambda row: (row["period_start"], row["id"]))


def test_a_cursor_is_of_its_question(client: TestClient, key: dict[str, str]) -> None:
    path = "/api/usage/aggregated?limit=1"
    cursor = client.get(f"{path}&user_id={MEMBER}", headers=key).json()["next_cursor"]
    for wrong in (
        f"&user_id={OWNER}&cursor={cursor}",
        f"&user_id={MEMBER}&period_type=monthly&cursor={cursor}",
        f"&user_id={MEMBER}&cursor={cursor}x",
        f"&user_id={MEMBER}&cursor=x",
        f"&user_id={MEMBER}&cursor=WyJhIl0.x",
    ):
        answer = client.get(path + wrong, headers=key)
        assert answer.status_code == 422, wrong
        assert answer.headers["content-type"] == "application/problem+json"


def test_limits_are_of_a_user_or_of_an_organisation(
    client: TestClient, key: dict[str, str]
) -> None:
    def limits(query: str, headers: dict[str, str]) -> list[tuple[Any, ...]]:
        return [
            (
                row["scope"],
                row["metric_type"],
                row["used_quantity"],
                row["limit_quantity"],
                row["status"],
            )
            for row in items(client, f"/api/usage/limits{query}", headers)
        ]

    assert limits("", by_token(MEMBER)) == [("user", "api_call", "2.5", "10", "ok")]
    assert limits("", by_token(STRANGER)) == [("user", "api_call", "8", "10", "warning")]
    of_org = [("org", "api_call", "150.000000001", "1000", "ok")]
    assert limits(f"?org_id={ACME}", by_token(MEMBER)) == of_org
    assert limits(f"?org_id={ACME}", key) == of_org


def test_who_has_an_answer_is_told_so(served: Served, client: TestClient) -> None:
    path = "/api/usage/summary"
    first = client.get(path, headers=by_token(MEMBER))
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    known = {"If-None-Match": f'"x", {etag}'}
    again = client.get(path, headers={**by_token(MEMBER), **known})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={**by_token(OWNER), **known}).status_code == 200
    assert (
        client.get(f"{path}?period=week", headers={**by_token(MEMBER), **known}).status_code == 200
    )
    assert client.get(path, headers=known).status_code == 401
    served.source.execute("update usage.snapshot set snapshot_id = snapshot_id || '2'")
    try:
        assert client.get(path, headers={**by_token(MEMBER), **known}).status_code == 200
    finally:
        served.source.execute("update usage.snapshot set snapshot_id = rtrim(snapshot_id, '2')")


@pytest.mark.parametrize(
    "query",
    [
        "aggregated?limit=0",
        "aggregated?limit=1001",
        "aggregated?limit=x",
        "aggregated?start=2025-13-01",
        "aggregated?start=2025-04-01T10:00:00",
        "aggregated?period_type=weekly",
        "aggregated?user_id=1",
        "summary?period=day",
        "summary?org_id=x",
        "export",
        "export?month=2025-4",
        "export?month=2025-13",
        "export?month=0000-01",
        "summary?orgid=00000000-0000-4000-8000-0000000000ac",
        "limits?period=week",
    ],
)
def test_what_is_not_valid_is_named(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/usage/{query}", headers=by_token(MEMBER))
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["status"], problem["title"]) == (422, "Unprocessable Entity")
    assert answer.headers["content-type"] == "application/problem+json"


def test_raw_events_are_as_they_were(client: TestClient, key: dict[str, str]) -> None:
    def rows(query: str, headers: dict[str, str]) -> list[list[str]]:
        answer = client.get(f"/api/usage/export?month=2025-04{query}", headers=headers)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        name = 'attachment; filename="usage-events-2025-04.csv"'
        assert answer.headers["content-disposition"] == name
        return list(csv.reader(io.StringIO(answer.text)))

    header = ["created_at", "id", "org_id", "event_type", "quantity", "event_data"]
    own = rows("", by_token(MEMBER))
    assert own[0] == header
    assert [[row[0], *row[2:]] for row in own[1:]] == [
        ["2025-04-01T10:00:00.000000Z", "", "api_call", "2.5", ""],
        ["2025-04-01T11:00:00.000000Z", str(ACME), "api_call", "100", '{"a": "=1+1"}'],
        ["2025-04-02T11:00:00.000000Z", str(ACME), "api_call", "0.000000001", ""],
        ["2025-04-02T12:00:00.000000Z", "", "ai_tokens_used", GREAT, '{"model": "gpt-4"}'],
    ]
    assert [row[4] for row in rows(f"&org_id={ACME}", key)[1:]] == ["100", "50", "0.000000001"]
    assert [row[4] for row in rows(f"&org_id={ACME}", by_token(OWNER))[1:]] == ["50"]
    assert rows(f"&user_id={UUID(int=1)}", key) == [header]


def test_an_export_without_event_data_says_so_at_once(serve: ServedFactory) -> None:
    with serve(USAGE_LAND_EVENT_DATA="false").client() as client:
        answer = client.get("/api/usage/export?month=2025-04", headers=by_token(MEMBER))
        assert answer.status_code == 503


def test_analytics_are_rows_of_published_tables(served: Served, client: TestClient) -> None:
    headers = by_token(ADMIN, **AS_ADMIN)
    found = client.get("/api/admin/analytics?month=2025-04", headers=headers).json()
    assert found["metrics"]["active_users"] == 3
    assert [(day["metric_date"], day["event_count"]) for day in found["days"]] == [
        ("2025-04-01", 2),
        ("2025-04-02", 4),
    ]
    usage = {row["metric_type"]: row["total_quantity"] for row in found["usage"]}
    assert usage == {"api_call": "160.500000001", "ai_tokens_used": GREAT}  # 102.5… + 50 + 8
    assert [(row["plan"], row["active_subscriptions"]) for row in found["plans"]] == [("pro", 1)]
    empty = client.get("/api/admin/analytics?month=2031-01", headers=headers).json()
    assert (empty["metrics"], empty["days"], empty["usage"]) == (None, [], [])
    assert (
        datetime.now(UTC).strftime("%Y-%m-01")
        == client.get("/api/admin/analytics", headers=headers).json()["month"]
    )
    assert client.get("/api/admin/analytics?month=9999-12", headers=headers).status_code == 422
