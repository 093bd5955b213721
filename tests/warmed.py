"""What the fork server has done before it forks: the slow imports, and dbt's parse."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import usage_pipeline.cli.main
import usage_pipeline.definitions
import usage_pipeline.orchestration.launch  # noqa: F401
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse.transform import Transformer

with tempfile.TemporaryDirectory() as home:
    Transformer(Settings(_env_file=None, USAGE_HOME=Path(home))).data_tests()  # type: ignore[call-arg]

# The threads of dbt's static parser do not survive a fork: who parses once more waits for ever.
os.environ["DBT_STATIC_PARSER"] = "false"
