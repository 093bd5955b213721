"""The house that faults happen in, published once a session and put back by each test."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from faults.house import HISTORY, House, fill
from hypothesis import HealthCheck, Phase
from support import AppDatabase


@pytest.fixture(scope="session")
def house(fork_server: None, postgres_server: Any, new_database: Any, make_settings: Any) -> House:
    database: AppDatabase = new_database()
    fill(database)
    made = House(postgres_server, database, make_settings(USAGE_APP_DATABASE_URL=database.url))
    made.run(HISTORY)
    # The source has later days, which no test rolls up; alerts have begun without them.
    database.execute("update usage.alerts_judged set silent_until = null")
    made.keep()
    return made


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> hypothesis.settings:
    """How random histories are tried: a few, the same each time, or many with --thorough."""
    thorough = request.config.getoption("thorough")
    return hypothesis.settings(
        max_examples=100 if thorough else 2,
        derandomize=not thorough,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate],  # an example takes seconds: none is shrunk
        suppress_health_check=list(HealthCheck),
    )
