"""Processes that end, fork and are killed: what was promised arrives, or its number is told."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from usage_api import Call, Reply, UsageApi, problem

from usage_pipeline.client import UsageClient, pending_file
from usage_pipeline.client.pending_file import PendingFile, take_lost
from usage_pipeline.settings import PROJECT_DIR

CHILD = Path(__file__).with_name("child.py")
USER = "5f0c8c9e-8f6e-4d0e-9a44-0c1b2d3e4f50"


def start(*arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(CHILD), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_DIR)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("how", "code", "events"),
    [("end", 0, 250), ("terminate", 0, 250), ("fail", 1, 250), ("late", 0, 3)],
)
def test_a_process_sends_what_it_has_before_it_ends(
    api: UsageApi, how: str, code: int, events: int
) -> None:
    child = start(how, api.url)
    promised, said = child.communicate(timeout=120)
    assert child.returncode == code, said
    assert set(promised.split()) == set(api.stored)
    assert (len(api.stored), api.doubled) == (events, 0)


@pytest.mark.parametrize(
    ("how", "parent", "child"), [("fork", 45, 90), ("pool", 30, 90), ("fork_under_load", None, 40)]
)
def test_forked_processes_send_their_own_events_only(
    api: UsageApi, how: str, parent: int | None, child: int
) -> None:
    process = start(how, api.url)
    promised, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert sorted(promised.split()) == sorted(api.stored)
    assert (len(api.of_type("child")), api.doubled) == (child, 0)
    assert parent in (None, len(api.of_type("parent")))


def test_a_fork_does_not_wait_for_what_its_parent_reads(api: UsageApi) -> None:
    """The answer to the parent ends only when the child's event has arrived."""
    arrived = threading.Event()

    def half(call: Call) -> Reply:
        def let_it_fork() -> None:
            os.write(told, b"\n")
            assert arrived.wait(60)

        return dataclasses.replace(api.take(call), halfway=let_it_fork)

    def take(call: Call) -> Reply:
        reply = api.take(call)
        if api.of_type("child"):
            arrived.set()
        return reply

    api.answers["/api/usage/events"] = [half]
    api.always["/api/usage/events"] = take
    listening, told = os.pipe()
    process = start("fork_in_answer", api.url, stdin=listening)
    try:
        promised, said = process.communicate(timeout=60)
    finally:
        arrived.set()
        process.kill()
        os.close(listening)
        os.close(told)
    assert process.returncode == 0, said
    assert sorted(promised.split()) == sorted(api.stored)
    assert (len(api.of_type("parent")), len(api.of_type("child")), api.doubled) == (2, 1, 0)


def test_a_process_does_not_wait_for_ever_to_end(api: UsageApi, tmp_path: Path) -> None:
    api.always["/api/usage/events"] = lambda call: Reply(503, {})
    child = start("end", api.url, tmp_path)
    promised, said = child.communicate(timeout=120)
    assert (child.returncode, len(promised.split())) == (0, 250)
    assert "250 usage events were not sent" in said
    assert UsageClient(api.url, directory=tmp_path).lost == 250


@pytest.mark.parametrize("victim", range(5))
def test_a_killed_process_loses_what_its_queue_held_and_its_number_is_told(
    api: UsageApi, tmp_path: Path, victim: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in the middle of sending, at another place each time."""

    def take_and_kill(call: Call) -> Reply:
        if len(api.calls) == 3 + victim:
            if victim % 2:
                api.take(call)  # taken, and nobody is there to hear it
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            return Reply(0)
        return api.take(call)

    api.always["/api/usage/events"] = take_and_kill
    child = start("load", api.url, tmp_path)
    promised, said = child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL, said
    client = UsageClient(api.url, directory=tmp_path)
    missing = set(promised.split()) - set(api.stored)
    # One call may have been cut off between the number and the promise.
    assert len(missing) <= client.lost <= len(missing) + (100 if victim % 2 else 0) + 1
    assert 0 < client.lost <= 10_000
    assert api.doubled == 0
    assert [f"lost up to {client.lost} " in r.getMessage() for r in caplog.records] == [True]
    assert (UsageClient(api.url, directory=tmp_path).lost, list(tmp_path.iterdir())) == (0, [])


def test_the_number_of_a_living_process_is_not_told(api: UsageApi, tmp_path: Path) -> None:
    api.always["/api/usage/events"] = lambda call: Reply(503, {})
    child = start("load", api.url, tmp_path)
    api.wait_for_calls(1)
    try:
        assert UsageClient(api.url, directory=tmp_path).lost == 0
    finally:
        child.kill()
        promised, _ = child.communicate()
    assert UsageClient(api.url, directory=tmp_path).lost >= len(promised.split()) > 0


def test_forked_processes_have_numbers_of_their_own(api: UsageApi, tmp_path: Path) -> None:
    api.always["/api/usage/events"] = lambda call: Reply(503, {})
    parent = start("fork_and_die", api.url, tmp_path, stdin=subprocess.PIPE)
    assert parent.stdout
    try:
        while parent.stdout.readline() != "ready\n":
            assert parent.poll() is None
        assert UsageClient(api.url, directory=tmp_path).lost == 7
    finally:
        parent.kill()
        parent.communicate()
    assert UsageClient(api.url, directory=tmp_path).lost == 10


def test_clients_of_one_process_leave_each_other_alone(api: UsageApi, tmp_path: Path) -> None:
    api.always["/api/usage/events"] = problem(503, "Unavailable", Retry_After="3000")
    first = UsageClient(api.url, directory=tmp_path)
    first.log_usage(USER, "api_call")
    assert UsageClient(api.url, directory=tmp_path).lost == 0
    first.close(60)
    second = UsageClient(api.url, directory=tmp_path)
    assert second.lost == 1


def test_a_file_that_was_taken_for_a_dead_process_s_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.lockf
    calls: list[int] = []

    def lockf(file: int, operation: int) -> None:
        if not calls:
            (path,) = tmp_path.glob("*.pending")
            path.unlink()  # as `take_lost` of another process, which came first
        calls.append(file)
        real(file, operation)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    file = PendingFile(tmp_path)
    file.note(3)
    file.forget()
    assert (len(calls), take_lost(tmp_path)) == (2, 3)
    assert not pending_file._OURS


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    for name in ("0.pending", "9.pending"):
        (tmp_path / name).mkdir()
    (tmp_path / "1.pending").write_bytes((7).to_bytes(8, sys.byteorder))
    (tmp_path / "2.pending").write_bytes(b"")  # killed before it wrote anything
    (tmp_path / "3.pending").write_bytes((5).to_bytes(8, sys.byteorder))
    assert (take_lost(tmp_path), take_lost(tmp_path), take_lost(tmp_path / "none")) == (12, 0, 0)


def test_a_directory_that_cannot_be_written_stops_nothing(
    api: UsageApi, new_client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    client = new_client(directory=tmp_path / "file" / "below")
    assert client.log_usage(USER, "api_call")
    assert client.flush(60)
    assert (len(api.stored), client.lost) == (1, 0)
    assert "are not noted" in caplog.text
