"""What BI tools and readers make of the published tables, on one home of a sample in New York."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import yaml
from support import AppDatabase, days, postgres_tables, roll_up, snapshot_query

from usage_pipeline.app_db.sample import load_sample
from usage_pipeline.client import UsageClient, UsageError
from usage_pipeline.serving.tables import SERVED_TABLES
from usage_pipeline.serving.views import RELATIONS, VIEWS
from usage_pipeline.settings import DBT_PROJECT_DIR, PROJECT_DIR, Settings
from usage_pipeline.warehouse.transform import Transformer

ZONE = "America/New_York"
SUPERSET = PROJECT_DIR / "docs" / "bi" / "superset"
PAGE = (PROJECT_DIR / "docs" / "bi.md").read_text("utf-8")
Home = tuple[AppDatabase, Settings]


@pytest.fixture(scope="module")
def home(new_database: Any, make_settings: Any) -> Home:
    """Two and a half months, the last one running."""
    source: AppDatabase = new_database()
    load_sample(
        source.url,
        events=8000,
        days=75,
        users=60,
        seed=13,
        end=date(2025, 11, 16),
        zone=ZoneInfo(ZONE),
    )
    settings: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_TIMEZONE=ZONE, USAGE_START_DATE="2025-09-01"
    )
    roll_up(settings, days("2025-09-01", "2025-11-16"))
    return source, settings


# Metrics, what they are grouped by, and the published table that has them already.
METRICS = [
    (
        ["usage_quantity", "usage_events", "active_users", "active_orgs"],
        ["metric_time__month", "usage__metric_type"],
        "select month, metric_type, total_quantity, event_count, active_users, active_orgs"
        " from platform_usage_monthly",
    ),
    (
        ["usage_quantity", "usage_events"],
        ["metric_time__day", "usage__metric_type"],
        "select usage_date, metric_type, total_quantity, event_count from platform_usage_daily",
    ),
    (
        ["usage_quantity", "active_users"],
        ["metric_time__month", "organisation", "usage__metric_type"],
        "select month, org_id, metric_type, total_quantity, active_users from org_usage_monthly",
    ),
    (
        ["usage_quantity"],
        ["metric_time__month", "person", "organisation", "usage__metric_type"],
        "select month, user_id, org_id, metric_type, total_quantity from usage_monthly",
    ),
    (
        ["active_users", "new_users", "total_users", "active_orgs", "new_orgs", "total_orgs"],
        ["metric_time__month"],
        "select month, active_users, new_users, total_users, active_orgs, new_orgs, total_orgs"
        " from platform_metrics_monthly",
    ),
    (
        ["active_subscriptions", "new_subscriptions", "canceled_subscriptions"],
        ["metric_time__month"],
        "select month, active_subscriptions, new_subscriptions, canceled_subscriptions"
        " from platform_metrics_monthly",
    ),
    (
        ["active_subscriptions"],
        ["metric_time__month", "subscription__plan"],
        "select date_trunc('month', metric_date), plan, active_subscriptions"
        " from subscriptions_by_plan_daily"
        " where metric_date in ('2025-09-30', '2025-10-31', '2025-11-15')",
    ),
    (
        ["monthly_active_users"],
        ["metric_time__month"],
        "select date_trunc('month', metric_date), monthly_active_users from platform_metrics_daily"
        " where metric_date in ('2025-09-30', '2025-10-31', '2025-11-15')",
    ),
    (
        ["retained_users", "cohort_users", "retention_rate"],
        ["cohort__cohort_month__month", "cohort__months_since"],
        "select cohort_month, months_since, retained_users, cohort_users, retention_rate"
        " from user_retention_monthly",
    ),
    (
        ["usage_per_active_user"],
        ["metric_time__month", "usage__metric_type"],
        "select month, metric_type, total_quantity / active_users from platform_usage_monthly",
    ),
]


def test_the_metrics_equal_the_marts(home: Home, tmp_path: Path) -> None:
    _, settings = home
    project = tmp_path / "dbt_project"
    shutil.copytree(DBT_PROJECT_DIR, project, ignore=shutil.ignore_patterns("target", "logs"))
    environment = {
        **os.environ,
        "USAGE_DBT_TARGET": "snapshot",
        "USAGE_DBT_SNAPSHOT": str(settings.snapshot_path),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    dbt = "from dbt.cli.main import cli; cli()"
    ran: dict[str, Any] = {"cwd": project, "env": environment, "text": True}
    subprocess.run([sys.executable, "-c", dbt, "parse"], check=True, capture_output=True, **ran)
    compiled = subprocess.run(
        [sys.executable, str(PROJECT_DIR / "tests" / "metricflow_sql.py")],
        input=json.dumps([(metrics, by) for metrics, by, _ in METRICS]),
        stdout=subprocess.PIPE,
        check=True,
        **ran,
    ).stdout
    statements = json.loads(compiled.rpartition("---\n")[2])
    for statement, (metrics, by, mart) in zip(statements, METRICS, strict=True):
        found = snapshot_query(settings, f"select {', '.join([*by, *metrics])} from ({statement})")
        expected = snapshot_query(settings, mart)
        assert len(expected) > 2
        assert sorted(map(_plain, found)) == sorted(map(_plain, expected)), metrics


def _plain(row: tuple[Any, ...]) -> tuple[str, ...]:
    """Days as dates, ratios as the nine digits that are published."""
    cells = []
    for cell in row:
        if isinstance(cell, datetime):
            cells.append(str(cell.date()))
        elif isinstance(cell, (float, Decimal)):
            cells.append(f"{cell:.9f}" if isinstance(cell, Decimal) else f"{Decimal(cell):.9f}")
        else:
            cells.append(str(cell))
    return tuple(cells)


def test_every_metric_is_compared_with_a_mart() -> None:
    defined = yaml.safe_load((DBT_PROJECT_DIR / "models" / "semantic.yml").read_text("utf-8"))
    compared = {name for metrics, _, _ in METRICS for name in metrics}
    assert {metric["name"] for metric in defined["metrics"]} == compared
    columns = {
        model["name"]: {column["name"] for column in model["columns"]}
        for file in DBT_PROJECT_DIR.glob("models/*/*.yml")
        for model in yaml.safe_load(file.read_text("utf-8")).get("models", ())
    }
    for model in defined["semantic_models"]:
        (table,) = re.findall(r"^ref\('(\w+)'\)$", model["model"])
        assert table in RELATIONS
        parts = [*model["dimensions"], *model["measures"], *model.get("entities", ())]
        assert {part.get("expr", part["name"]) for part in parts} <= columns[table]


def test_the_pipeline_builds_the_same_with_the_metrics(home: Home) -> None:
    """Metrics are in dbt's manifest, and no run selects, builds or tests them."""
    transformer = Transformer(home[1])
    manifest = transformer._loaded_manifest()
    assert (len(manifest.semantic_models), len(manifest.metrics)) == (4, 16)
    assert not [test for test in transformer.data_tests() if "semantic" in test]


def test_a_reader_s_target_sends_no_run_elsewhere(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = home
    before = settings.snapshot_path.read_bytes()
    monkeypatch.setenv("USAGE_DBT_TARGET", "snapshot")
    transformer = Transformer(settings)
    with transformer.timings.stage("all"):
        (built,) = transformer.run("subscriptions_by_plan_daily")
    assert (built.name, built.status) == ("subscriptions_by_plan_daily", "success")
    assert settings.snapshot_path.read_bytes() == before


def _assets(folder: str) -> list[dict[str, Any]]:
    files = sorted((SUPERSET / folder).rglob("*.yaml"))
    assert files
    return [yaml.safe_load(file.read_text("utf-8")) for file in files]


def test_the_superset_dashboard_reads_published_columns(home: Home) -> None:
    source, settings = home
    datasets = {dataset["uuid"]: dataset for dataset in _assets("datasets")}
    for dataset in datasets.values():
        table = dataset["table_name"]
        assert (table in RELATIONS, dataset["schema"], dataset["sql"]) == (True, "usage", None)
        there = source.query(
            "select column_name from information_schema.columns"
            " where table_schema = 'usage' and table_name = %s",
            (table,),
        )
        assert {column["column_name"] for column in dataset["columns"]} <= {c for (c,) in there}
    used = set()
    for chart in _assets("charts"):
        dataset = datasets[chart["dataset_uuid"]]
        used.add(chart["uuid"])
        columns = {column["column_name"] for column in dataset["columns"]}
        names, expressions, filters = _asked(chart["params"])
        assert names | set(expressions) | set(filters)
        assert names <= columns, chart["slice_name"]
        asked = ", ".join([*sorted(names), "1"])
        where = " and ".join(filters) or "true"
        for schema, run in (
            ("usage", source.query),
            ("main", lambda statement: snapshot_query(settings, statement)),
        ):
            table = f"{schema}.{dataset['table_name']}"
            run(f"select {asked} from {table} where {where} limit 1")
            for expression in expressions:
                run(f"select {expression} from {table} where {where} limit 1")
    (dashboard,) = _assets("dashboards")
    placed = {
        part["meta"]["uuid"]
        for part in dashboard["position"].values()
        if isinstance(part, dict) and part["type"] == "CHART"
    }
    assert placed == used


def _asked(params: dict[str, Any]) -> tuple[set[str], list[str], list[str]]:
    """Columns, SQL expressions and SQL filters of a chart."""
    names, expressions, filters = set(params.get("all_columns", ())), [], []
    by = params.get("groupby") or []
    for part in [params.get("x_axis"), *(by if isinstance(by, list) else [by])]:
        if isinstance(part, str):
            names.add(part)
        elif part:
            expressions.append(part["sqlExpression"])
    for metric in [*params.get("metrics", ()), *filter(None, [params.get("metric")])]:
        if metric["expressionType"] == "SIMPLE":
            names.add(metric["column"]["column_name"])
        else:
            expressions.append(metric["sqlExpression"])
    for condition in params["adhoc_filters"]:
        if condition["expressionType"] == "SQL":
            filters.append(condition["sqlExpression"])
        else:
            names.add(condition["subject"])
    names |= {json.loads(order)[0] for order in params.get("order_by_cols", ())}
    return names, expressions, filters


def test_every_published_table_has_readers_that_are_named() -> None:
    text = (DBT_PROJECT_DIR / "models" / "exposures.yml").read_text("utf-8")
    exposures = {exposure["name"]: exposure for exposure in yaml.safe_load(text)["exposures"]}
    read = {name: set(exposure["depends_on"]) for name, exposure in exposures.items()}
    built = {table.name for table in SERVED_TABLES if table.model}
    assert {f"ref('{name}')" for name in built} == set().union(*read.values()) - {
        "source('landing', 'usage_events')"
    }
    main = {view.name: view.tables[0] for view in VIEWS}  # what a view has a row for each row of
    drawn = {main.get(d["table_name"], d["table_name"]) for d in _assets("datasets")} & built
    assert read["superset_dashboard"] == {f"ref('{name}')" for name in drawn}


def test_the_superset_export_holds_no_secret() -> None:
    (database,) = _assets("databases")
    assert database["sqlalchemy_uri"] == "postgresql+psycopg2://bi@127.0.0.1:5432/app"
    text = "".join(file.read_text("utf-8") for file in SUPERSET.rglob("*.yaml"))
    assert re.findall(r"(?i)passw|secret|XXXX|/tmp/|token:", text) == []


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S))
def test_the_examples_of_the_page_have_the_published_totals(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    source, settings = home
    for module in re.findall(r"^import (\w+)", block, re.M):
        pytest.importorskip(module)
    (tmp_path / "data").symlink_to(settings.home)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUBLISHED_URL", source.url)
    names: dict[str, Any] = {}
    exec(compile(block.replace("2026-05", "2025-10"), "docs/bi.md", "exec"), names)
    totals = snapshot_query(
        settings,
        "select metric_type, total_quantity from platform_usage_monthly where month = '2025-10-01'",
    )
    assert len(totals) == 7
    assert names["totals"] == dict(totals)
    assert all(isinstance(total, Decimal) for total in names["totals"].values())


@pytest.fixture
def client(home: Home) -> Iterator[UsageClient]:
    with UsageClient(home[0].url) as straight:
        yield straight


def test_the_client_reads_summaries_from_postgres(home: Home, client: UsageClient) -> None:
    _, settings = home
    users = snapshot_query(
        settings,
        "select distinct user_id from usage_summary where scope = 'user' order by user_id limit 5",
    )
    orgs = snapshot_query(
        settings,
        "select distinct org_id from usage_summary where scope = 'org' order by org_id limit 5",
    )
    assert users
    assert orgs
    for (user,), period in itertools.product(users, ("week", "month", "year")):
        check_summary(settings, client.get_usage_summary(user, period=period), period, user, None)
    for (org,) in orgs:
        check_summary(settings, client.get_usage_summary(None, org, "week"), "week", None, org)
        with_user = client.get_usage_summary(users[0][0], UUID(org), "week")
        check_summary(settings, with_user, "week", None, org)
    nobody = client.get_usage_summary("00000000-0000-0000-0000-000000000000")
    assert nobody.items == ()
    assert nobody.snapshot_id == snapshot_query(settings, "select snapshot_id from snapshot")[0][0]


def check_summary(
    settings: Settings, summary: Any, period: str, user: str | None, org: str | None
) -> None:
    rows = snapshot_query(
        settings,
        f"select metric_type, total_quantity, previous_quantity, change_ratio, event_count,"
        f" as_of_date, window_start, window_end from usage_summary where time_window = '{period}'"
        + (f" and scope = 'user' and user_id = '{user}'" if user else "")
        + (f" and scope = 'org' and org_id = '{org}'" if org else "")
        + " order by metric_type",
    )
    assert rows
    assert [
        (i.metric_type, i.total_quantity, i.previous_quantity, i.change_ratio, i.event_count)
        for i in summary.items
    ] == [row[:5] for row in rows]
    assert {(summary.as_of_date, summary.window_start, summary.window_end)} == {
        row[5:] for row in rows
    }


def test_the_client_reads_days_and_months_from_postgres(home: Home, client: UsageClient) -> None:
    source, _ = home
    rows = postgres_tables(source.url)["usage_aggregations"]
    user = max(row["user_id"] for row in rows if row["user_id"])
    mine = [row for row in rows if row["user_id"] == user]

    def ids(**arguments: Any) -> list[str]:
        found = [str(row.id) for row in client.get_aggregated_usage(user, **arguments)]
        assert len(found) == len(set(found))
        return sorted(found)

    def expected(period_type: str, start: datetime, end: datetime) -> list[str]:
        found = [
            row["id"]
            for row in mine
            if row["period_type"] == period_type and start <= row["period_start"] < end
        ]
        assert found
        return sorted(found)

    always = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    assert ids() == expected("daily", *always)
    assert ids(period_type="monthly") == expected("monthly", *always)
    # The clocks went back on 2 November: October ends at 04:00 UTC, and 2 November at 05:00.
    october = datetime(2025, 10, 1, 4, tzinfo=UTC), datetime(2025, 11, 1, 4, tzinfo=UTC)
    days_of_october = expected("daily", *october)
    assert ids(start=date(2025, 10, 1), end=date(2025, 11, 1)) == days_of_october
    assert ids(start=october[0], end=october[1]) == days_of_october
    assert ids(period_type="monthly", start=date(2025, 10, 1), end=date(2025, 10, 2)) == expected(
        "monthly", *october
    )
    second = datetime(2025, 11, 2, 4, tzinfo=UTC), datetime(2025, 11, 3, 5, tzinfo=UTC)
    assert ids(start=date(2025, 11, 2), end=date(2025, 11, 3)) == expected("daily", *second)
    row = next(client.get_aggregated_usage(user, metric_type="api_call"))
    (same,) = [other for other in mine if other["id"] == str(row.id)]
    assert (row.total_quantity, row.period_start, row.period_end, row.org_id) == (
        same["total_quantity"],
        same["period_start"],
        same["period_end"],
        same["org_id"] and UUID(same["org_id"]),
    )
    assert dict(row.metadata) == json.loads(same["metadata"])


def test_the_client_reads_limits_from_postgres(home: Home, client: UsageClient) -> None:
    source, _ = home
    rows = postgres_tables(source.url)["usage_limit_status"]
    for scope, key in (("user", "user_id"), ("org", "org_id")):
        subject = next(r[key] for r in rows if r["scope"] == scope and r["projected_quantity"])
        found = client.get_usage_limits(**{key: subject})
        assert sorted(map(_limit, map(dataclasses.asdict, found))) == sorted(
            _limit(row) for row in rows if row["scope"] == scope and row[key] == subject
        )


def _limit(row: dict[str, Any]) -> tuple[str, ...]:
    """All that is published of a limit, as text."""
    return tuple(f"{name}={row[name]}" for name in sorted(row))


def test_the_client_needs_to_be_let_in(home: Home) -> None:
    source, _ = home
    source.execute("create role outsider login")
    try:
        stranger = UsageClient(source.url.replace("postgres@", "outsider@"))
        with pytest.raises(UsageError, match="permission denied"):
            stranger.get_usage_limits("00000000-0000-0000-0000-000000000000")
    finally:
        source.execute("drop role outsider")
