"""The webhook of failed runs, with a real receiver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest
from support import triggers

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.orchestration.failures import one_line_failures


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its URL, and what was posted there."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()


@dg.op
def refused() -> None:
    with one_line_failures():
        raise UsagePipelineError(
            "The source postgresql://ada:hunter2@db/app cannot be read", "Grant SELECT on it"
        )


@dg.op
def broken() -> None:
    raise ValueError("seven is\nnot eight")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            refused,
            "refused: The source postgresql://ada:***@db/app cannot be read. Grant SELECT on it.",
        ),
        (broken, "broken: ValueError: seven is"),
    ],
)
def test_a_failed_run_is_posted_with_its_cause_and_address(
    step: dg.OpDefinition, message: str, receiver: Any, make_settings: Any
) -> None:
    url, posted = receiver
    settings = make_settings(
        USAGE_FAILURE_WEBHOOK_URL=url, USAGE_DAGSTER_URL="https://dagster.example.com/"
    )
    with dg.DagsterInstance.ephemeral() as instance:

        @dg.job
        def nightly() -> None:
            step()

        result = nightly.execute_in_process(instance=instance, raise_on_error=False)
        (failure,) = [e for e in result.all_events if e.is_failure and not e.is_step_event]
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failed",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=failure,
        ).for_run_failure()
        triggers(settings)["run_failed"](context)
    assert posted == [
        {
            "job": "nightly",
            "run_id": result.run_id,
            "message": message,
            "url": f"https://dagster.example.com/runs/{result.run_id}",
        }
    ]
