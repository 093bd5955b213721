"""What a scheduler starts, what a monitor asks, how much one may ask for, and how failures look."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import anyio
import httpx
import pytest
from anyio.to_thread import current_default_thread_limiter
from prometheus_client.parser import text_string_to_metric_families
from served import (
    ADMIN,
    CRON_SECRET,
    MEMBER,
    OWNER,
    RUN,
    Served,
    ServedFactory,
    bearer,
    by_token,
    token_of,
)
from starlette.testclient import TestClient

from usage_pipeline.web.rates import PERSON, Rate, Rates

TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
THIS_MONTH = TODAY.replace(day=1)


def test_an_instant_is_of_the_local_day_that_it_lies_in(serve: ServedFactory) -> None:
    served = serve(USAGE_TIMEZONE="America/New_York")
    with served.client() as client:
        answer = start(client, {"period_start": "2025-05-03T00:00:00Z"})
    assert answer.json()["start"] == "2025-05-02"
    assert served.done.started == [(date(2025, 5, 2), date(2025, 5, 3))]


def start(client: TestClient, period: object = None) -> Any:
    return client.post("/api/cron/aggregate-usage", json=period, headers=bearer(CRON_SECRET))


@pytest.mark.parametrize(
    ("period", "first", "end"),
    [
        (None, YESTERDAY, TODAY),
        ({}, YESTERDAY, TODAY),
        ({"period_start": "2025-05-03"}, date(2025, 5, 3), date(2025, 5, 4)),
        (
            {"period_start": "2025-05-03", "period_end": "2025-05-10"},
            date(2025, 5, 3),
            date(2025, 5, 10),
        ),
        (
            {"period_start": "2025-05-03T23:59:59Z", "period_end": "2025-05-05T00:00:00+00:00"},
            date(2025, 5, 3),
            date(2025, 5, 5),
        ),
        (
            {"period_type": "monthly", "period_start": "2025-05-17"},
            date(2025, 5, 1),
            date(2025, 6, 1),
        ),
        (
            {"period_type": "monthly", "period_start": "2025-11-01", "period_end": "2026-02-01"},
            date(2025, 11, 1),
            date(2026, 2, 1),
        ),
        ({"period_type": "monthly"}, YESTERDAY.replace(day=1), TODAY),
    ],
)
def test_a_scheduler_starts_days(served: Served, period: object, first: date, end: date) -> None:
    with served.client() as client:
        answer = start(client, period)
    assert answer.status_code == 202
    assert answer.json() == {"run_id": RUN, "start": str(first), "end": str(end)}
    assert served.done.started[-1] == (first, end)


@pytest.mark.parametrize(
    "period",
    [
        {"period_start": "2025-03-31"},
        {"period_start": str(TODAY)},
        {"period_start": "2025-05-03", "period_end": "2025-05-03"},
        {"period_start": "2025-05-03", "period_end": "2025-05-01"},
        {"period_start": "2025-05-03", "period_end": "2999-01-01"},
        {"period_type": "monthly", "period_start": "2999-01-01"},
        {"period_type": "monthly", "period_start": "2025-02-01"},
        {"period_type": "monthly", "period_start": "9999-12-31"},
        {"period_start": "9999-12-31"},
        {"period_start": "9999-12-31T23:59:59-14:00"},
        {"period_start": "0001-01-01T00:00:00+14:00"},
        {"period_type": "yearly"},
        {"period_start": "May"},
        {"start": "2025-05-03"},
        [],
        "x",
    ],
)
def test_a_period_that_cannot_be_is_said_in_words(served: Served, period: object) -> None:
    before = list(served.done.started)
    with served.client() as client:
        answer = start(client, period)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert served.done.started == before


def test_nothing_starts_without_the_very_secret(served: Served, serve: ServedFactory) -> None:
    before = list(served.done.started)
    with served.client() as client:
        for sent in (
            {},
            bearer(""),
            bearer(CRON_SECRET[:-1]),
            bearer(CRON_SECRET + "x"),
            {"Authorization": CRON_SECRET},
            {"Authorization": f"Basic {CRON_SECRET}"},
            {"Authorization": "Bearer é".encode()},
            by_token(ADMIN, app_metadata={"role": "admin"}),
        ):
            answer = client.post("/api/cron/aggregate-usage", headers=sent)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    with serve(CRON_SECRET="").client() as client:
        assert client.post("/api/cron/aggregate-usage", headers=bearer("")).status_code == 401
    assert served.done.started == before


def test_dagster_that_is_away_is_said(served: Served) -> None:
    served.done.away = True
    try:
        with served.client() as client:
            answer = start(client)
    finally:
        served.done.away = False
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "Dagster" not in answer.text


def test_it_lives_and_is_ready_with_the_age_of_what_it_shows(served: Served) -> None:
    with served.client() as client:
        for prefix in ("", "/api"):
            assert client.get(f"{prefix}/healthz").json() == {"status": "alive"}
            ready = client.get(f"{prefix}/readyz").json()
            ((snapshot,),) = served.source.query("select snapshot_id from usage.snapshot")
            assert (ready["status"], ready["snapshot_id"]) == ("ready", snapshot)
            assert 0 <= ready["age_seconds"] < 3600


def test_it_lives_while_all_its_threads_are_taken(served: Served) -> None:
    async def ask() -> int:
        limiter = current_default_thread_limiter()
        for _ in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(object())
        transport = httpx.ASGITransport(served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            with anyio.fail_after(20):
                return (await client.get("/healthz")).status_code

    assert anyio.run(ask) == 200


def test_it_lives_but_is_not_ready_without_its_databases(serve: ServedFactory) -> None:
    for away in (
        {"USAGE_WEB_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/app"},
        {"USAGE_APP_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/app"},
    ):
        with serve(**away).client() as client:
            assert client.get("/healthz").status_code == 200
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert "127.0.0.1" not in client.get("/api/readyz").text


def test_metrics_count_by_route_and_name_nobody(serve: ServedFactory) -> None:
    served = serve()
    with served.client() as client:
        for _ in range(3):
            client.get("/api/usage/summary", headers=by_token(MEMBER))
        client.get("/api/usage/summary")
        client.get("/nowhere/1")
        client.request("BREW", "/nowhere/2")
        client.get("/portal/abc")
        text = client.get("/metrics").text
    assert str(MEMBER) not in text
    assert "abc" not in text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["usage_web_requests_total", "/api/usage/summary", "200", "GET"] == 3
    assert found["usage_web_requests_total", "/api/usage/summary", "401", "GET"] == 1
    assert found["usage_web_requests_total", "/portal/{token}", "403", "GET"] == 1
    assert found["usage_web_requests_total", "404", "GET", "other"] == 1
    assert found["usage_web_request_seconds_count", "/api/usage/summary"] == 4
    assert 0 <= found["usage_web_published_age_seconds",] < 3600
    assert found["usage_web_connections_in_use", "source"] == 0


def test_ingested_events_are_counted(serve: ServedFactory) -> None:
    served = serve()
    sent = {"id": "e0000000-0000-4000-8000-000000000002", "event_type": "api_call"}
    with served.client() as client:
        body = [sent, sent, {"event_type": "A"}]
        client.post("/api/usage/events", json=body, headers=by_token(OWNER))
        text = client.get("/metrics").text
    for status in ("accepted", "duplicate", "rejected"):
        assert f'usage_web_events_total{{status="{status}"}} 1.0' in text
    served.source.execute("delete from usage_events where id = %s", [sent["id"]])


def test_a_bucket_fills_again() -> None:
    now = 0.0
    rates = Rates(clock=lambda: now)
    rate = Rate(per_second=2, burst=3)
    assert [rates.take("a", rate) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rates.take("b", rate) == 0, "each has a bucket of their own"
    now = 0.5
    assert [rates.take("a", rate) for _ in range(2)] == [0, 0.5]
    now = 1_000.0
    assert [rates.take("a", rate, cost=2) for _ in range(2)] == [0, 0.5], "not above the burst"


def test_buckets_of_whom_nobody_hears_are_forgotten() -> None:
    rates = Rates(clock=lambda: 0.0)
    for caller in range(20_000):
        rates.take(str(caller), PERSON)
    assert len(rates._left) == 10_000


def test_what_costs_much_is_had_less_often(serve: ServedFactory) -> None:
    served = serve()
    app = served.app
    app.state.web = replace(app.state.web, rates=Rates(clock=lambda: 0.0))
    why, files = "/why?metric=api_call&month=2025-04", "/usage/events.csv?month=2025-04"
    with served.client() as client:
        client.post("/sign-in/token", data={"token": token_of(MEMBER)})
        assert [client.get(why).status_code for _ in range(7)] == [200] * 6 + [429]
        assert [client.get(files).status_code for _ in range(6)] == [200] * 6
        answer = client.get("/api/usage/export?month=2025-04", headers=by_token(MEMBER))
        assert answer.status_code == 429, "by whichever way"
        assert client.get("/usage").status_code == 200


def test_who_asks_too_much_waits_and_others_do_not(serve: ServedFactory) -> None:
    served = serve()
    app = served.app
    app.state.web = replace(app.state.web, rates=Rates(clock=lambda: 0.0))
    with served.client() as client:
        path = "/api/usage/summary"
        statuses = [client.get(path, headers=by_token(MEMBER)).status_code for _ in range(61)]
        assert statuses == [200] * 60 + [429]
        answer = client.get(path, headers=by_token(MEMBER))
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get(path, headers=by_token(OWNER)).status_code == 200
        statuses = [client.get(path, headers=bearer("x.y.z")).status_code for _ in range(31)]
        assert statuses == [401] * 30 + [429]
        assert client.get(path, headers=by_token(OWNER)).status_code == 200, "who is known goes on"


def test_a_failure_nobody_expected_shows_its_id_and_no_more(
    serve: ServedFactory, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    web = served.app.state.web

    def fails(*_: object) -> str:
        raise RuntimeError("postgresql://u:hunter2@db/app refused ada@example.com")

    served.app.state.web = replace(web, actions=replace(web.actions, start_rollup=fails))
    with served.client() as client, caplog.at_level(logging.INFO):
        answer = client.post(
            "/api/cron/aggregate-usage",
            headers={**bearer(CRON_SECRET), "X-Request-ID": "of-the-caller-1"},
        )
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "of-the-caller-1"
    assert "of-the-caller-1" in answer.json()["detail"]
    assert "RuntimeError" not in answer.text
    assert "of-the-caller-1" in caplog.text
    assert "RuntimeError" in caplog.text
    for secret in ("hunter2", "ada@example.com", CRON_SECRET):
        assert secret not in caplog.text


def test_every_answer_is_guarded(served: Served) -> None:
    with served.client() as client:
        for path in ("/sign-in", "/nothing", "/api/nothing", "/healthz", "/static/style.css"):
            answer = client.get(path, headers={"X-Request-ID": "a b"})
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert len(answer.headers["x-request-id"]) == 32
        too_large = client.post("/sign-out", headers={"Content-Length": "99999999"})
        assert too_large.status_code == 413
        assert "text/html" in too_large.headers["content-type"]
        assert client.get("/api/nothing").json()["status"] == 404
        assert client.put("/api/usage/summary").json()["status"] == 405
