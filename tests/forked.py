"""Processes forked from a server that has imported everything and opened nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "warmed", "faults.child", "faults.telling"])


def command_line(
    arguments: Sequence[str], environment: Mapping[str, str], directory: Path, outputs: Path
) -> None:
    """`python -m usage_pipeline`, in a forked process, without the seconds of its imports.

    Args:
        environment: all of it.
        outputs: where the files `stdout` and `stderr` go.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (outputs / name).open("w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["usage-pipeline", *arguments]
    from usage_pipeline.__main__ import main

    main()
