"""Dagster's webserver as an application to wrap and to serve on a socket that is open already."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__
from starlette.applications import Starlette

# As the command `dagster-webserver` has them.
_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW = 15_000, 3600, 20
_POLL_MS = 2000


@contextmanager
def webserver_app(workspace: Path) -> Iterator[Starlette]:
    """What the command `dagster-webserver` serves for this file, while the block runs."""
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(
            _STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW
        )
        with WorkspaceProcessContext(
            instance,
            version=__version__,
            workspace_load_target=WorkspaceFileTarget([str(workspace)]),
        ) as context:
            yield create_app_from_workspace_process_context(context, live_data_poll_rate=_POLL_MS)
