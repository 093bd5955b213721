"""Sending, as Dagster starts and shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import pytest
from receivers import HttpReceiver, receiving, status
from support import AppDatabase, triggers

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.orchestration.assets.delivery import deliveries
from usage_pipeline.orchestration.checks.delivery import no_message_is_dead
from usage_pipeline.orchestration.jobs import DELIVERY
from usage_pipeline.orchestration.sensors import delivery
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

ORG = UUID(int=1)


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def settings(new_database: Any, make_settings: Any, receiver: HttpReceiver) -> Settings:
    source: AppDatabase = new_database()
    source.insert(
        "org_webhooks",
        [(str(uuid4()), str(ORG), f"{receiver.url}/hook", "a-secret", True, "2026-01-01Z")],
    )
    made: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_WEBHOOK_NETWORKS="127.0.0.0/8"
    )
    return made


def add(settings: Settings, key: str) -> None:
    message = Message("usage.test", key, ORG, None, {"org_id": ORG, "webhook_id": ORG})
    with outbox.opened(settings) as cursor:
        outbox.add(cursor, settings.publish_schema, [message])


def asked(settings: Settings, instance: dg.DagsterInstance) -> str:
    """`run` when the sensor asks for one, else why not."""
    sensor = triggers(settings)["messages_are_due"]
    with dg.build_sensor_context(instance=instance) as context:
        found = sensor.evaluate_tick(context)
    return "run" if found.run_requests else str(found.skip_message)


def a_run(instance: dg.DagsterInstance, run_status: dg.DagsterRunStatus) -> dg.DagsterRun:
    run = instance.add_run(
        dg.DagsterRun(job_name=DELIVERY, run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTED)
    )
    if run_status == dg.DagsterRunStatus.FAILURE:
        instance.report_run_failed(run)
    return run


def test_a_run_is_asked_for_when_something_is_due(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert asked(settings, instance) == "nothing is due"
        add(settings, "first")
        assert asked(settings, instance) == "run"
        running = a_run(instance, dg.DagsterRunStatus.STARTED)
        assert asked(settings, instance) == f"run {running.run_id} is sending"
        instance.report_run_canceled(running)
        assert asked(settings, instance) == "run"
        a_run(instance, dg.DagsterRunStatus.FAILURE)
        assert asked(settings, instance) == "the last run failed a moment ago"
        monkeypatch.setattr(delivery, "PAUSE_SECONDS", 0)
        assert asked(settings, instance) == "run"


def test_a_dead_message_is_red_and_says_why(settings: Settings, receiver: HttpReceiver) -> None:
    receiver.behaviours["/hook"] = [status(204), status(410)]
    add(settings, "first")
    add(settings, "second")
    result = dg.materialize([deliveries()], resources={"rollup": Rollup(settings)})
    (shown,) = result.asset_materializations_for_node("publishing__deliveries")
    figures = {name: value.value for name, value in shown.metadata.items()}
    assert (figures["delivered"], figures["given up"]) == (1, 1)
    assert "| HTTP 410: it wants no more messages | 1 |" in str(figures["why not"])
    assert receiver.url not in str(figures)
    check = judged(settings)
    assert not check.passed
    assert check.metadata["given up"].value == 1
    assert outbox.replay(settings, None, None) == 1
    assert judged(settings).passed


def judged(settings: Settings) -> dg.AssetCheckResult:
    result = no_message_is_dead(Rollup(settings))
    assert isinstance(result, dg.AssetCheckResult)
    return result
