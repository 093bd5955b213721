"""The examples of docs/client.md, run in their order."""

from __future__ import annotations

import re
from typing import Any

import pytest
from usage_api import Call, Reply, UsageApi, document

from usage_pipeline.client import shared
from usage_pipeline.settings import PROJECT_DIR

PAGE = (PROJECT_DIR / "docs" / "client.md").read_text("utf-8")


def test_the_examples_of_the_page_run(
    api: UsageApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {
        "metric_type": "api_call",
        "total_quantity": "12.5",
        "previous_quantity": "10",
        "change_ratio": "0.25",
        "event_count": 2,
    }
    days = {"as_of_date": None, "window_start": None, "window_end": None, "snapshot_id": None}
    api.always |= {
        "/api/usage/summary": document({**days, "items": [summary]}),
        "/api/usage/aggregated": aggregated,
    }
    monkeypatch.setattr(shared._shared, "client", None)
    monkeypatch.setenv("USAGE_API_URL", api.url)
    monkeypatch.setenv("USAGE_API_KEY", "uk_1_secret")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(compile(block, "docs/client.md", "exec"), names)
    shared.shared_client().close()
    assert capsys.readouterr().out.splitlines() == [
        "api_call 12.5 0.25",
        "2 0 0 0 0",
        "2026-05-04 00:00:00+00:00 api_call 7",
        "404 Not Found",
    ]
    assert {(e["event_type"], e["quantity"]) for e in api.stored.values()} == {
        ("api_call", "1"),
        ("ai_tokens_used", "1200"),
    }
    assert len(api.stored) == 3


def aggregated(call: Call) -> Reply:
    if call.query["period_type"] == "monthly":
        return Reply(404, {"title": "Not Found"})
    row: dict[str, Any] = {
        "id": "11111111-1111-4111-8111-111111111111",
        "user_id": call.query["user_id"],
        "org_id": None,
        "period_type": "daily",
        "period_start": "2026-05-04T00:00:00Z",
        "period_end": "2026-05-05T00:00:00Z",
        "metric_type": "api_call",
        "total_quantity": "7",
        "metadata": {},
        "created_at": "2026-05-05T01:00:00Z",
        "updated_at": "2026-05-05T01:00:00Z",
    }
    return Reply(200, {"items": [row], "next_cursor": None})
