"""`web`: the usage pages and the API, put together with what they do by way of the pipeline."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import typer

from usage_pipeline.cli.answers import told
from usage_pipeline.cli.options import valid_settings
from usage_pipeline.cli.show import out
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.settings import LOOPBACK, Settings
from usage_pipeline.web.state import Actions, Told

HOST, PORT = "127.0.0.1", 8000


def web(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = PORT,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Serve the usage pages and the API.

    On 127.0.0.1, until Ctrl-C or SIGTERM, which end it with exit code 0. `up` starts it too.

    Example: `usage-pipeline web --port 8000`
    """
    settings = valid_settings()
    for name in (host, urlsplit(settings.web_url).hostname):
        if not settings.development or name in LOOPBACK:
            continue
        raise UsagePipelineError(
            f"The development sign-in, without a password, is for this machine, and not for {name}",
            "Set up a sign-in (docs/web.md), or USAGE_WEB_DEVELOPMENT=false",
        )
    with interrupts.awaited() as stopped:
        if supervised:
            threading.Thread(target=_stop_with, args=[stopped], daemon=True).start()
        from usage_pipeline.web.serve import serve

        serve(settings, _actions(settings), (host, port), stopped, say)


def say(words: str) -> None:
    """One line, however long."""
    out.print(words, soft_wrap=True)


def _stop_with(stopped: threading.Event) -> None:
    with suppress(OSError):
        os.read(0, 1)
    stopped.set()


def _actions(settings: Settings) -> Actions:
    """What pages and API do by way of the pipeline, whose imports wait until they are asked for."""

    def start_rollup(start: date, end: date) -> str:
        from usage_pipeline.orchestration.launch import submit_rollup

        return submit_rollup(settings, DayRange(start, end))

    def explain(metric: str, month: date, user_id: UUID | None, org_id: UUID | None) -> Told:
        from usage_pipeline.operations.explain import Question
        from usage_pipeline.operations.explain import explain as answer_to

        answer = answer_to(settings, Question(metric, month, user_id, org_id))
        return [(label, list(lines)) for label, lines in told(settings, answer)]

    def document_models() -> Path:
        from usage_pipeline.warehouse.transform import Transformer

        return Transformer(settings).documentation()

    return Actions(explain=explain, start_rollup=start_rollup, document_models=document_models)
