"""The dbt project by itself: its unit tests, its docs, and the window that a run rebuilds."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import duckdb
import forked
import pytest
import yaml

from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import DBT_PROJECT_DIR, Settings

Dbt = Callable[..., str]
# What only some engines spell, or spell differently.
DIALECT = re.compile(
    r"\bas (?:uuid|json|varchar|text|string|timestamp\w*|double|hugeint)\b|::|//|\* exclude"
    r"|group by all|\b(?:try_cast|try|qualify|epoch|trunc|arg_m\w+|list_\w+|struct_pack)\b"
)


@pytest.fixture(scope="module")
def settings(make_settings: Any) -> Settings:
    made: Settings = make_settings()
    ensure_snapshot(made)
    return made


@pytest.fixture(scope="module")
def dbt(settings: Settings, fork_server: None) -> Dbt:
    """dbt as a command on an empty warehouse; its relations exist, as unit tests require."""
    environment = {
        **os.environ,
        "USAGE_DBT_WAREHOUSE": str(settings.warehouse_path),
        "USAGE_DBT_LANDING": str(settings.landing_dir),
        "USAGE_DBT_LANDED_EVENTS": landed_events(f"'{settings.events_dir}/*/part-*.parquet'"),
        "USAGE_DBT_SNAPSHOT": str(settings.published_path),
    }

    def run(*arguments: str) -> str:
        places = (
            *("--project-dir", str(DBT_PROJECT_DIR), "--profiles-dir", str(DBT_PROJECT_DIR)),
            *("--target-path", str(settings.dbt_target_dir)),
            *("--log-path", str(settings.dbt_target_dir)),
        )
        arguments = ("--no-use-colors", *arguments, *places)
        finished = forked.run(forked.dbt, arguments, environment, settings.home)
        assert finished.returncode == 0, finished.stdout[-4000:]
        return finished.stdout

    _empty_landing(settings)
    run("run", "--empty")
    return run


def _empty_landing(settings: Settings) -> None:
    """One day without events, and tables without rows, in the columns that landing writes."""
    day = settings.events_dir / "usage_date=2024-02-29"
    day.mkdir(parents=True)
    columns = {
        day / "part-0.parquet": "id text, user_id text, org_id text, event_type text, "
        "event_data text, quantity decimal(38,9), quantity_raw text, created_at timestamptz",
        settings.landing_dir / "users.parquet": "id text, created_date date, deleted_date date",
        settings.landing_dir
        / "orgs.parquet": "id text, name text, created_date date, deleted_date date",
        settings.landing_dir
        / "org_members.parquet": "org_id text, user_id text, role text, created_date date",
        settings.landing_dir / "subscriptions.parquet": "id text, user_id text, org_id text, "
        "plan text, status text, created_date date, canceled_date date",
        settings.landing_dir
        / "plan_limits.parquet": "plan text, metric_type text, limit_quantity decimal(38,9), "
        "limit_raw text, member_limit_quantity decimal(38,9), member_limit_raw text",
        settings.landing_dir
        / "calendar.parquet": "calendar_date date, starts_at timestamptz, ends_at timestamptz",
    }
    with duckdb.connect() as db:
        for path, names in columns.items():
            db.execute(f"create or replace table empty ({names})")
            db.execute(f"copy empty to '{path}' (format parquet)")
    (day / "manifest.json").write_text(
        json.dumps(
            {
                "usage_date": "2024-02-29",
                "rows": 0,
                "invalid_rows": 0,
                "duplicate_rows": 0,
                "sum_quantity": "0",
                "extracted_at": "2024-03-01T01:00:00+00:00",
            }
        )
    )


def test_models_and_tests_hold_no_dialect_of_one_engine() -> None:
    files = [
        *(DBT_PROJECT_DIR / "models").rglob("*.sql"),
        *(DBT_PROJECT_DIR / "tests").rglob("*.sql"),
    ]
    found = {file.name: spelled for file in files if (spelled := DIALECT.findall(file.read_text()))}
    assert found == {}


def test_every_dbt_unit_test_passes(dbt: Dbt) -> None:
    written = 0
    for file in (DBT_PROJECT_DIR / "models").rglob("*.yml"):
        written += len(yaml.safe_load(file.read_text()).get("unit_tests") or [])
    output = dbt("test", "--select", "test_type:unit")
    assert f"PASS={written} WARN=0 ERROR=0 SKIP=0" in output


def test_a_run_replaces_its_window_and_nothing_else(dbt: Dbt, settings: Settings) -> None:
    window = ("--event-time-start", "2024-02-29", "--event-time-end", "2024-03-01")
    models = ("usage_event_partials_daily", "usage_partials_monthly", "platform_activity_daily")
    dbt("run", "--select", *models, *window)
    compiled = settings.dbt_target_dir / "run" / "usage_pipeline" / "models"
    for path, column, start, end in (
        ("usage/usage_event_partials_daily.sql", "usage_date", "2024-02-29", "2024-03-01"),
        ("usage/usage_partials_monthly.sql", "month", "2024-02-01", "2024-03-01"),
        # whose trailing 30 days hold the day
        ("platform/platform_activity_daily.sql", "metric_date", "2024-02-29", "2024-03-30"),
    ):
        delete, insert = (compiled / path).read_text().split(";")
        in_window = f"{column} >= cast('{start}' as date) and {column} < cast('{end}' as date)"
        assert delete.split("where")[1].strip() == in_window
        assert insert.split()[:2] == ["insert", "into"]


def test_the_docs_build_and_describe_every_column(dbt: Dbt, settings: Settings) -> None:
    dbt("docs", "generate")
    manifest = json.loads((settings.dbt_target_dir / "manifest.json").read_text())
    models = [n for n in manifest["nodes"].values() if n["resource_type"] == "model"]
    assert all(model["description"] for model in models)
    bare = [
        f"{model['name']}.{name}"
        for model in models
        for name, column in model["columns"].items()
        if not column["description"]
    ]
    assert bare == []
    assert manifest["exposures"]
