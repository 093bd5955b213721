"""Processes that are stopped or killed: commands, `up` and its parts, the embedded Postgres."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import psycopg2
import pytest
from support import AppDatabase
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket
from websockets.typing import Origin, Subprotocol

USES_POSTGRES = """
import sys; from pathlib import Path
from usage_pipeline.infra import interrupts; interrupts.install()
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.settings import Settings
print(app_database_url(Settings(_env_file=None, USAGE_HOME=Path(sys.argv[1]))), flush=True)
sys.stdin.read()
"""
PATIENCE_SECONDS = 120


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError(f"never: {what}")


def processes_of(*words: str) -> list[psutil.Process]:
    """Living processes whose command line holds one of the words."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word in line for word in words):
            found.append(process)
    return found


class Home:
    """A USAGE_HOME and the processes that were started in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(self.path.parent),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "COLUMNS": "200",
            "USAGE_HOME": str(self.path),
            **variables,
        }
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            cwd=self.path.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.path.parent / "stderr").open("a"),
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def command(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return self.start("-m", "usage_pipeline", *arguments, **variables)

    def user_of_postgres(self) -> tuple[subprocess.Popen[str], str]:
        process = self.start("-c", USES_POSTGRES, str(self.path))
        assert process.stdout
        return process, process.stdout.readline().strip()

    def parts(self, words: str) -> list[psutil.Process]:
        """Processes with these words that have this home; others may serve theirs."""
        own = []
        for process in processes_of(words):
            with suppress(psutil.NoSuchProcess):
                if process.environ().get("USAGE_HOME") == str(self.path):
                    own.append(process)
        return own

    def stderr(self) -> str:
        return (self.path.parent / "stderr").read_text()

    def postgres(self) -> list[psutil.Process]:
        return processes_of(f"-D {self.path}/postgres")


@pytest.fixture
def home(short_tmp: Callable[[], Path]) -> Iterator[Home]:
    home = Home(short_tmp() / "home")
    yield home
    for process in home.started:
        process.kill()
        process.wait()
    for left in processes_of(str(home.path)):
        left.kill()


def answers(url: str) -> bool:
    with suppress(psycopg2.OperationalError):
        psycopg2.connect(url).close()
        return True
    return False


def ended(process: subprocess.Popen[str], how: int | None = None) -> int:
    if how:
        process.send_signal(how)
    else:
        assert process.stdin
        process.stdin.close()
    return process.wait(PATIENCE_SECONDS)


def test_the_embedded_postgres_runs_as_long_as_a_process_that_uses_it(home: Home) -> None:
    first, url = home.user_of_postgres()
    second, _ = home.user_of_postgres()
    # What a process leaves that is killed while it writes the package's list of users.
    (home.path / "postgres" / ".handle_pids.json").write_text("")
    third, _ = home.user_of_postgres()
    assert ended(third) == 0
    assert ended(first, signal.SIGKILL) == -signal.SIGKILL
    assert answers(url)
    assert ended(second, signal.SIGTERM) == 130
    assert not answers(url)
    assert not home.postgres()


def test_a_killed_embedded_postgres_is_started_again_by_whoever_asks_for_it(home: Home) -> None:
    _, url = home.user_of_postgres()
    (server,) = home.postgres()
    server.kill()
    until(lambda: not answers(url), "the server is dead")
    second, again = home.user_of_postgres()
    assert again == url, home.stderr()
    assert answers(url)
    ended(second)


def test_a_pid_file_of_before_a_reboot_does_not_stop_the_embedded_postgres(home: Home) -> None:
    first, url = home.user_of_postgres()
    pid_file = home.path / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    ended(first)
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    _, again = home.user_of_postgres()
    assert again == url, home.stderr()
    assert answers(url)


@pytest.fixture
def source(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    event = (str(UUID(int=1)), str(UUID(int=7)), None, "api_call", None, 1, "2024-03-30T12:00Z")
    made.insert("usage_events", [event])
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_rollup_says_in_one_line_what_is_pending_and_its_run_is_canceled(
    home: Home, source: AppDatabase, new_database: Any, number: signal.Signals
) -> None:
    storage = new_database(schema=False)
    rollup = home.command(
        *("rollup", "--start", "2024-03-30", "--end", "2024-03-31"),
        USAGE_APP_DATABASE_URL=source.url,
        DAGSTER_PG_URL=storage.url,
    )
    state = home.path / "warehouse.json"
    if number == signal.SIGINT:  # while it extracts; the other one while dbt builds
        until(lambda: state.exists() and json.loads(state.read_text())["extracting"], "extracting")
    else:
        until((home.path / "dbt" / "run").exists, "a model is built")
    assert ended(rollup, number) == 130
    assert home.stderr() == (
        "Stopped. Pending: [2024-03-30, 2024-03-31); "
        "the next `usage-pipeline rollup` completes it.\n"
    )
    assert rollup.stdout
    assert rollup.stdout.read() == ""
    assert storage.query("select status from runs") == [("CANCELED",)]
    assert storage.query("select count(*) from concurrency_slots where run_id is not null") == [
        (0,)
    ]
    assert not processes_of(str(home.path))


def test_a_rollup_that_is_stopped_while_it_starts_asks_for_its_days_nevertheless(
    home: Home, source: AppDatabase
) -> None:
    arguments = ("rollup", "--start", "2024-03-30", "--end", "2024-03-31")
    rollup = home.command(*arguments, USAGE_APP_DATABASE_URL=source.url)
    until(lambda: psutil.Process(rollup.pid).num_threads() > 1, "signals are handled")
    assert ended(rollup, signal.SIGINT) == 130
    assert home.stderr().startswith("Stopped. ")
    assert home.stderr().count("\n") == 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def asked(port: int, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, named)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def said(process: subprocess.Popen[str], line: str) -> None:
    """Dagster's daemon logs to the same stream; a process that ended says nothing more."""
    assert process.stdout
    assert any(each == line for each in process.stdout), line


STOP_SCHEDULE = "mutation{stopRunningSchedule(id:%22x%22){__typename}}"
VERSION = json.dumps({"query": "{version}"})


def test_up_serves_its_own_pages_only_restarts_what_dies_and_leaves_nothing(home: Home) -> None:
    port = free_port()
    up = home.command("up", "--port", str(port))
    said(up, f"Dagster at http://127.0.0.1:{port} (stop with Ctrl-C)\n")

    def refused(method: str, path: str, body: str = "", **headers: str) -> bool:
        return asked(port, method, path, body, **headers)[0] == 403

    own = f"http://127.0.0.1:{port}"
    is_json = {"Content_Type": "application/json"}
    assert "<html" in asked(port, "GET", "/")[1]
    assert asked(port, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    same = {"Origin": own, "Sec_Fetch_Site": "same-origin", **is_json}
    assert "version" in json.loads(asked(port, "POST", "/graphql", VERSION, **same)[1])["data"]
    assert asked(port, "POST", "/graphql", VERSION, **is_json)[0] == 200  # not a browser
    assert refused("GET", f"/graphql?query={STOP_SCHEDULE}")
    assert refused("GET", "/", Host=f"rebound.example:{port}")
    assert refused("POST", "/graphql", VERSION, Origin="http://evil.example", **is_json)
    assert refused("POST", "/graphql", VERSION, Origin="null")
    assert refused("POST", "/graphql", VERSION, Sec_Fetch_Site="same-site", **is_json)
    assert refused("GET", "/server_info", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")
    address = f"ws://127.0.0.1:{port}/graphql"
    protocols = [Subprotocol("graphql-ws")]
    with connect_websocket(address, origin=Origin(own), subprotocols=protocols) as websocket:
        websocket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(websocket.recv())["type"] == "connection_ack"
    with pytest.raises(InvalidStatus, match="403"):
        connect_websocket(address, origin=Origin("http://evil.example"), subprotocols=protocols)

    other = home.command("up", "--port", str(free_port()))
    assert other.wait(PATIENCE_SECONDS) == 1
    assert f"is served already, by process {up.pid} at {own}" in home.stderr()

    for part in ("webserver", "daemon", "code server"):
        (child,) = home.parts(f"orchestration.up {part}")
        child.kill()
        said(up, f"The {part} had ended (signal 9) and was started again.\n")
        assert asked(port, "POST", "/graphql", VERSION, **is_json)[0] == 200
    (server,) = home.postgres()
    server.kill()
    said(up, "The embedded Postgres had ended and was started again.\n")

    assert ended(up, signal.SIGTERM) == 0
    assert not processes_of(str(home.path)) and not home.parts("orchestration.up")
    socket.create_server(("127.0.0.1", port)).close()


def test_up_refuses_a_port_that_is_taken(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert home.command("up", "--port", str(port)).wait(PATIENCE_SECONDS) == 1
    assert home.stderr().startswith(f"Error: Port {port} of 127.0.0.1 cannot be used (")
    assert home.stderr().count("\n") == 1
    assert not home.parts("orchestration.up")
