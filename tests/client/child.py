"""A process that logs usage, and ends as it is told: `python child.py HOW URL [DIRECTORY]`.

What it was promised, an id for each event, goes to its standard output at once and by itself.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

from usage_pipeline.client import UsageClient

USER = "5f0c8c9e-8f6e-4d0e-9a44-0c1b2d3e4f50"


def log(client: UsageClient, number: int, event_type: str = "api_call") -> None:
    for _ in range(number):
        known = client.log_usage(USER, event_type)
        if known:
            os.write(1, f"{known}\n".encode())


def end(client: UsageClient) -> None:
    """By itself, with a queue."""
    log(client, 250)


def terminate(client: UsageClient) -> None:
    """As a server that turns SIGTERM into an orderly end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log(client, 250)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def fail(client: UsageClient) -> None:
    """By an exception that nobody catches."""
    log(client, 250)
    raise SystemError("the application has a bug")


def fork(client: UsageClient) -> None:
    """Parent and children go on with the client that the parent has used."""
    log(client, 30, "parent")
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            log(client, 30, "child")
            return
        children.append(child)
        log(client, 5, "parent")
    for child in children:
        os.waitpid(child, 0)


def fork_and_die(client: UsageClient) -> None:
    """The child is killed with a queue of its own, then the parent waits for the same."""
    log(client, 10, "parent")
    child = os.fork()
    if not child:
        log(client, 7, "child")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.write(1, b"ready\n")
    sys.stdin.readline()


def fork_in_answer(client: UsageClient) -> None:
    """While the thread reads an answer, which ends when the child's event is there."""
    log(client, 1, "parent")
    sys.stdin.readline()
    child = os.fork()
    log(client, 1, "parent" if child else "child")
    if child:
        os.waitpid(child, 0)


def late(client: UsageClient) -> None:
    """The first event when the interpreter is about to end."""

    def at_the_end() -> None:
        log(client, 3)
        client.flush(60)

    atexit.register(at_the_end)


def fork_under_load(client: UsageClient) -> None:
    """While other threads log: no child may meet a lock that nobody holds any more."""
    stop = threading.Event()

    def work() -> None:
        for _ in range(1000):
            log(client, 1, "parent")
            if stop.wait(0.0001):
                break

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(20):
        child = os.fork()
        if not child:
            log(client, 2, "child")
            client.close(60)
            os._exit(0)  # the threads of the parent are not to be waited for
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    stop.set()
    for thread in threads:
        thread.join()


def pool(client: UsageClient) -> None:
    """Workers of multiprocessing, which end without `atexit`."""
    log(client, 30, "parent")
    context: Any = multiprocessing.get_context("fork")
    workers = [context.Process(target=log, args=(client, 30, "child")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def load(client: UsageClient) -> None:
    """Until somebody ends it."""
    while True:
        log(client, 20)
        time.sleep(0.001)


if __name__ == "__main__":
    how, url, *directory = sys.argv[1:]
    seconds = 1 if directory else 60  # nobody waits for an endpoint that is away
    globals()[how](
        UsageClient(url, directory=directory[0] if directory else None, exit_timeout=seconds)
    )
