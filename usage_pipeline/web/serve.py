"""The web application on a port, until it is told to stop."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import uvicorn

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.app import make_app
from usage_pipeline.web.state import Actions

_STOP_SECONDS = 5


def serve(
    settings: Settings,
    actions: Actions,
    address: tuple[str, int],
    stopped: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Run until `stopped` is set.

    Args:
        address: host and port.
        say: called with the address once it answers.

    Raises:
        UsagePipelineError: the port cannot be had, or a database cannot be reached.
    """
    app = make_app(settings, actions)
    try:
        listener = socket.create_server(address, backlog=512)
    except OSError as error:
        raise UsagePipelineError(
            f"Port {address[1]} of {address[0]} cannot be used ({os.strerror(error.errno or 0)})",
            "Stop what uses it, or choose another with --port",
        ) from None
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )
    # Its own handlers would take signals from who called this.
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    say(f"Usage pages and API at http://{address[0]}:{address[1]} (stop with Ctrl-C)")
    while thread.is_alive() and not stopped.wait(0.5):
        pass
    server.should_exit = True
    thread.join(2 * _STOP_SECONDS)
