"""What all routes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request

from usage_pipeline.settings import Settings
from usage_pipeline.web.credentials.portal_links import PortalLinks
from usage_pipeline.web.credentials.service_keys import ServiceKeys
from usage_pipeline.web.credentials.tokens import Tokens
from usage_pipeline.web.identity import Members
from usage_pipeline.web.ingestion import Ingestion
from usage_pipeline.web.metrics import Metrics
from usage_pipeline.web.rates import Rates
from usage_pipeline.web.reader import Reader
from usage_pipeline.web.session import Sessions

Told = Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Actions:
    """What the application does by way of the rest of the pipeline, which it does not import.

    Attributes:
        explain: why a number is what it is, as labels and lines; from the metric, the month, the
            user and the organisation, or neither for the platform.
        start_rollup: starts the job for days `[start, end)`, and gives the run's id.
        document_models: dbt's pages of the models, in one file.
    """

    explain: Callable[[str, date, UUID | None, UUID | None], Told]
    start_rollup: Callable[[date, date], str]
    document_models: Callable[[], Path]


@dataclass(frozen=True)
class Web:
    """One application's.

    Attributes:
        oidc: Authlib's client; None where no provider is set.
        ingestion: None where events are not taken.
    """

    settings: Settings
    actions: Actions
    reader: Reader
    members: Members
    sessions: Sessions
    tokens: Tokens
    service_keys: ServiceKeys
    portal_links: PortalLinks
    oidc: Any
    ingestion: Ingestion | None
    rates: Rates
    metrics: Metrics


def _web(request: Request) -> Web:
    web: Web = request.app.state.web
    return web


FromWeb = Annotated[Web, Depends(_web)]
