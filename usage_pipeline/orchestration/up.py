"""`usage-pipeline up`: code server, webserver, daemon and usage pages, kept running by one process.

Each part is a child in a process group of its own, with the runs that it launches. A part that ends
is started again; when the supervisor ends, however that happens, the parts end themselves.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import yaml

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.database_urls import app_database_url, dagster_database_url
from usage_pipeline.infra.embedded_postgres import keep_embedded, leave_embedded_and_exit
from usage_pipeline.infra.processes import collect_rarely
from usage_pipeline.orchestration.launch import prepare_dagster_home
from usage_pipeline.settings import Settings, load_settings

HOST = "127.0.0.1"
STOP_SECONDS = 15.0
_LOCATION = "usage_pipeline"
_LOOK_SECONDS = 0.5
_ENDS_TOLERATED, _ENDS_WITHIN_SECONDS = 5, 120.0


def serve(
    settings: Settings,
    port: int,
    web: Sequence[str],
    stopped: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Run until `stopped` is set.

    Args:
        port: on 127.0.0.1.
        web: the command that serves the usage pages, and ends when its input does.
        say: called with the address once it answers, and with what was started again.

    Raises:
        UsagePipelineError: the port cannot be had, another `up` serves this USAGE_HOME, or a part
            ends again and again. Nothing is left running.
    """
    with ExitStack() as stack:
        stack.enter_context(_alone(settings, port))
        listener = stack.enter_context(_listen(port))
        prepare_dagster_home(settings)
        dagster_database_url(settings)
        app_database_url(settings)
        # Not below USAGE_HOME, whose path may be too long for a Unix socket.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usage-")))
        code, workspace = folder / "code", folder / "workspace.yaml"
        server = {"socket": str(code), "location_name": _LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        parts = [_Part("code server", [str(code)])]
        others = [
            _Part("webserver", [str(workspace), str(listener.fileno()), str(port)], listener),
            _Part("daemon", [str(workspace)]),
            _Part("usage pages", command=web),
        ]
        stack.callback(lambda: _stop([*others, *parts]))
        parts[0].start()
        answered = False
        while not stopped.wait(_LOOK_SECONDS):
            if keep_embedded(settings):
                say("The embedded Postgres had ended and was started again.")
            for part in parts:
                if how := part.ended():
                    part.start()
                    say(f"The {part.name} had ended ({how}) and was started again.")
            if others and _connects(code):
                parts, others = [*parts, *others], []
                for part in parts[1:]:
                    part.start()
            if not answered and not others and _answers(port):
                answered = True
                say(f"Dagster at http://{HOST}:{port} (stop with Ctrl-C)")


@contextmanager
def _alone(settings: Settings, port: int) -> Iterator[None]:
    """One `up` for a USAGE_HOME: a second daemon would start every run twice."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UsagePipelineError(
                f"{settings.home} is served already, by {lock.read() or 'another process'}",
                "Use that one, or stop it first",
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} at http://{HOST}:{port}")
        lock.flush()
        yield


def _listen(port: int) -> socket.socket:
    """Held here, so that a webserver that is started again has its port."""
    try:
        return socket.create_server((HOST, port), backlog=128)
    except OSError as error:
        raise UsagePipelineError(
            f"Port {port} of {HOST} cannot be used ({os.strerror(error.errno or 0)})",
            "Stop what uses it, or choose another with `usage-pipeline up --port`",
        ) from None


class _Part:
    """One child process: what it runs is in `main`, but for one with a command of its own."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str] = (),
        listener: socket.socket | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self._arguments = command or [sys.executable, "-m", __name__, name, *arguments]
        self._listener = [listener.fileno()] if listener else []
        self._starts: deque[float] = deque(maxlen=_ENDS_TOLERATED)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._starts.append(time.monotonic())
        self.process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,  # never written to; it ends with this process
            pass_fds=self._listener,
            start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )

    def ended(self) -> str | None:
        """How the process ended; its group has ended then too. None while it runs.

        Raises:
            UsagePipelineError: it ended too often.
        """
        if self.process is None or self.process.poll() is None:
            return None
        self.signal(signal.SIGKILL)
        code = self.process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        full = len(self._starts) == _ENDS_TOLERATED
        if full and time.monotonic() - self._starts[0] < _ENDS_WITHIN_SECONDS:
            raise UsagePipelineError(
                f"The {self.name} ends again and again ({how})",
                "Read what it printed above, and `usage-pipeline doctor`",
            )
        return how

    def signal(self, number: int) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def _stop(parts: Sequence[_Part]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    for part in parts:
        part.signal(signal.SIGTERM)
    for part in parts:
        if part.process:
            with suppress(subprocess.TimeoutExpired):
                part.process.wait(max(deadline - time.monotonic(), 0))
    for part in parts:
        part.signal(signal.SIGKILL)
        if part.process:
            part.process.wait()


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(path))
        return True
    return False


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/server_info")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main(part: str, *arguments: str) -> None:
    """What a child runs."""
    collect_rarely()
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    if part == "code server":
        Path(arguments[0]).unlink(missing_ok=True)  # of one that was killed
        _dagster(
            "dagster",
            "api",
            "grpc",
            "--socket",
            arguments[0],
            "--location-name",
            _LOCATION,
            "--module-name",
            "usage_pipeline.definitions",
            "--attribute",
            "defs",
            "--use-python-environment-entry-point",
            "--log-level",
            "warning",
        )
    elif part == "daemon":
        _dagster("dagster._daemon", "run", "--workspace", arguments[0])
    else:
        workspace, listener, port = arguments
        _webserver(Path(workspace), socket.socket(fileno=int(listener)), int(port))


def _end_with_the_supervisor() -> None:
    with suppress(OSError):
        os.read(0, 1)
    runs = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                end(run)
        _, runs = psutil.wait_procs(runs, timeout=STOP_SECONDS)
    leave_embedded_and_exit(load_settings().home, 128 + signal.SIGTERM)


def _dagster(module: str, *arguments: str) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _webserver(workspace: Path, listener: socket.socket, port: int) -> None:
    """The command `dagster-webserver`, behind `SameOriginOnly`, on an open socket."""
    import uvicorn

    from usage_pipeline.orchestration.internals.webserver import webserver_app
    from usage_pipeline.orchestration.same_origin import SameOriginOnly

    with webserver_app(workspace) as app:
        config = uvicorn.Config(
            SameOriginOnly(app, port), log_level="warning", timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
