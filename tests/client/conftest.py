"""An API that keeps what it gets, and clients that are closed when their test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from usage_api import UsageApi, usage_api

from usage_pipeline.client import UsageClient, sender

ClientFactory = Callable[..., UsageClient]


@pytest.fixture
def api() -> Iterator[UsageApi]:
    with usage_api() as running:
        yield running


@pytest.fixture
def new_client(api: UsageApi) -> Iterator[ClientFactory]:
    """Makes clients of the API, or of `url`."""
    made: list[UsageClient] = []

    def make(url: str | None = None, **arguments: Any) -> UsageClient:
        made.append(UsageClient(url or api.url, **{"key": "uk_1_secret", **arguments}))
        return made[-1]

    yield make
    for client in made:
        client.close(0)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and attempts follow each other at once."""
    monkeypatch.setattr(sender, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(sender, "_LONGEST_DELAY", 0.001)
    monkeypatch.setattr(sender, "BATCH_SECONDS", 0.01)
