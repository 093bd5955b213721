"""Processes forked from a server that has imported everything and opened nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "warmed", "faults.child", "faults.telling"])
PATIENCE_SECONDS = 300


def usage_pipeline() -> None:
    """`python -m usage_pipeline`."""
    from usage_pipeline.__main__ import main

    main()


def run(
    command: Callable[[], None],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
) -> CompletedProcess[str]:
    """A command in a process of its own, without the seconds of its imports.

    Args:
        command: of this module.
        environment: all of it.
    """
    with tempfile.TemporaryDirectory() as outputs:
        process = SERVER.Process(
            target=_become, args=(command, arguments, dict(environment), directory, outputs)
        )
        process.start()
        process.join(PATIENCE_SECONDS)
        assert process.exitcode is not None
        said = [(Path(outputs) / name).read_text() for name in ("stdout", "stderr")]
    return CompletedProcess(arguments, process.exitcode, *said)


def _become(
    command: Callable[[], None],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    outputs: str,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (Path(outputs) / name).open("w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [command.__name__, *arguments]
    command()
