"""The view `usage_limit_status` by hand, in both engines: what is expected at the month's end, and
when the limit is reached."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase

from usage_pipeline.alerts.events import spelled
from usage_pipeline.serving.views import VIEWS

ADA, BOB, ORG = (str(UUID(int=number)) for number in (1, 2, 3))
GREAT = "10000000000000000000000000000"  # 10^28
TABLES = """
    create table platform_metrics_daily (metric_date date);
    create table usage_limits_monthly (
        month date, scope text, user_id uuid, org_id uuid, metric_type text, plan text,
        used_quantity decimal(38, 9), limit_quantity decimal(38, 9), used_ratio decimal(38, 9),
        status text
    );
    create table usage_forecast_models (
        scope text, user_id uuid, org_id uuid, metric_type text, as_of_date date,
        history_days bigint, level decimal(38, 9), trend decimal(38, 9), monday decimal(38, 9),
        tuesday decimal(38, 9), wednesday decimal(38, 9), thursday decimal(38, 9),
        friday decimal(38, 9), saturday decimal(38, 9), sunday decimal(38, 9),
        spread decimal(38, 9), may_be_negative boolean
    );
    create table usage_daily (
        usage_date date, user_id uuid, org_id uuid, metric_type text, total_quantity decimal(38, 9)
    );
    create table org_usage_daily (
        usage_date date, org_id uuid, metric_type text, total_quantity decimal(38, 9)
    );
    insert into platform_metrics_daily values ('2024-09-23'), ('2024-09-24');
"""
# A Tuesday; from Wednesday, the 25th, to Monday, the 30th, six days are left. By name: scope, used,
# limit, status, then the model's age, level, trend, spread, some weekdays, whether negative.
USED: dict[str, tuple[Any, ...]] = {
    "reaches it": ("user", "70", "100", "ok"),
    "with a trend": ("user", "0", None, "ok"),
    "oldest": ("member", "5.5", "5.500000001", "warning"),
    "of an organisation": ("org", "-3", "4.5", "ok"),
    "cold start": ("user", "85", "100", "warning"),
    "no model": ("org", "85", "100", "warning"),
    "no use is allowed": ("user", "0", "0", "ok"),
    "may be negative": ("user", "10", "11", "warning"),
    "wide": ("user", "10", "100", "ok"),
    "great": ("user", GREAT, "100", "exceeded"),
    "great model": ("user", "1", "100000000000000000", "ok"),
    "unknown limit": ("user", "1", None, None),
    "exceeded": ("user", "12", "10", "exceeded"),
    "exceeded by an organisation": ("org", "5", "0", "exceeded"),
    "exceeded by a member": ("member", "5", "5", "exceeded"),
    "peak": ("user", "12", "10", "exceeded"),
}
MODELS: dict[str, tuple[Any, ...]] = {
    "reaches it": (0, "10", "0", "2", {"sunday": "0", "monday": "0.5"}, False),
    "with a trend": (1, "1", "1", "0", {}, False),
    "oldest": (13, "0.000000003", "0", "0.1", {}, False),
    "of an organisation": (0, "1", "0", "1", {}, False),
    "cold start": (0, None, None, None, {}, False),
    "no use is allowed": (0, "3", "0", "0", {"wednesday": "0"}, False),
    "may be negative": (0, "-1", "0", "1", {}, True),
    "wide": (0, "1", "0", "9", {}, False),
    "great": (0, "1", "0", "1", {}, False),
    "great model": (13, "128000000000000", "7000000000000", "500000000000000",
                    dict.fromkeys(("monday", "friday"), "7"), False),
    "unknown limit": (0, "1", "0", "1", {}, False),
    "exceeded": (0, "1", "0", "0", {}, False),
}  # fmt: skip
DAYS: dict[str, dict[str, Any]] = {
    # 7 and 4 are 11 of 10; 9 of 10 is less again, and the 30th of August counts in August
    "exceeded": {"2024-08-30": 90, "2024-09-02": 7, "2024-09-03": 4, "2024-09-04": -2,
                 "2024-09-05": 3},
    "exceeded by an organisation": {"2024-09-02": 0, "2024-09-03": 1, "2024-09-04": 4},
    "exceeded by a member": {"2024-09-20": 5},
    "peak": {"2024-09-02": 12, "2024-09-03": 9},
    "great": {"2024-09-02": 99, "2024-09-03": GREAT},
}  # fmt: skip
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def ids(scope: str) -> tuple[str | None, str | None]:
    return {"user": (ADA, None), "member": (ADA, ORG), "org": (None, ORG)}[scope]


def rows() -> dict[str, list[tuple[Any, ...]]]:
    limits: list[tuple[Any, ...]] = [
        ("2024-09-01", scope, *ids(scope), name, "pro", used, limit, None, status)
        for name, (scope, used, limit, status) in USED.items()
    ]
    limits += [("2024-08-01", "user", BOB, None, "reaches it", "pro", "1", "2", None, "ok")]
    models: list[tuple[Any, ...]] = []
    for name, (age, level, trend, spread, weekdays, negative) in MODELS.items():
        scope = USED[name][0]
        factors = [weekdays.get(day, level and "1") for day in WEEKDAYS]
        as_of = date(2024, 9, 24) - timedelta(age)
        models.append(
            (scope, *ids(scope), name, as_of, 56, level, trend, *factors, spread, negative)
        )
    for name in (*MODELS, *DAYS):  # of what adds up
        if name != "peak":
            models += [("platform", None, None, name, date(2024, 9, 24), 1, *[None] * 10, False)]
    days = [
        (day, *ids(USED[name][0]), name, quantity)
        for name, quantities in DAYS.items()
        for day, quantity in quantities.items()
    ]
    # Others' days of the same metric, which are not theirs.
    days += [("2024-09-02", BOB, None, "exceeded", 50), ("2024-09-02", ADA, ORG, "exceeded", 50)]
    return {
        "usage_limits_monthly": limits,
        "usage_forecast_models": list(dict.fromkeys(models)),
        "usage_daily": [row for row in days if row[1]],
        "org_usage_daily": [(row[0], *row[2:]) for row in days if not row[1]],
    }


class Engines:
    def __init__(self, db: duckdb.DuckDBPyConnection, database: AppDatabase) -> None:
        self.db, self.database = db, database
        db.execute(TABLES)
        database.execute(TABLES)
        for table, values in rows().items():
            marks = ", ".join("?" for _ in values[0])
            db.executemany(f"insert into {table} values ({marks})", values)
            database.insert(table, values)

    def execute(self, statement: str) -> None:
        self.db.execute(statement)
        self.database.execute(statement)

    def found(self) -> dict[str, dict[str, Any]]:
        """Rows by metric, of which both engines give the same digits."""
        (view,) = (view for view in VIEWS if view.name == "usage_limit_status")
        query = "select * from ({}) as view order by scope, metric_type"
        local = self.db.execute(query.format(view.definition("json", ""))).fetchall()
        remote = self.database.query(query.format(view.definition("jsonb", "public.")))
        assert [[str(cell) for cell in row] for row in local] == [
            [str(cell) for cell in row] for row in remote
        ]
        return {row[3]: dict(zip(view.columns, row, strict=True)) for row in local}


@pytest.fixture(scope="module")
def engines(new_database: Any) -> Any:
    with duckdb.connect() as db:
        yield Engines(db, new_database(schema=False))


def test_columns_are_those_promised(engines: Engines) -> None:
    (view,) = (view for view in VIEWS if view.name == "usage_limit_status")
    described = engines.db.execute(f"describe {view.definition('json', '')}").fetchall()
    assert {name: kind for name, kind, *_ in described} == view.columns


def test_what_is_expected_of_the_month_and_when_its_limit_is_reached(engines: Engines) -> None:
    found = engines.found()
    assert found.keys() == USED.keys()
    projected = {
        name: tuple(
            row[column] and spelled(row[column])
            for column in ("projected_quantity", "projected_low", "projected_high")
        )
        for name, row in found.items()
    }
    # Of six days one has nothing and one half: 70 + 45. Six days are as wide as one by the root of
    # 6 * (1 + 6/7), which is 3.338092, and by their distance, 3.5 days on average: 1.0245 times.
    assert projected["reaches it"] == ("115", "108.16025", "121.83975")
    # two to seven days ahead: 1.7949, 2.599257, 3.347309, 4.042997, 4.689988 and 5.291688
    assert projected["with a trend"] == ("27.766139",) * 3
    assert projected["oldest"][0] == "5.500000018"
    assert projected["of an organisation"][0] == "3"
    assert projected["no use is allowed"][0] == "15"
    # 6 less than 10; and 3.419875, which for others does not go below what is used
    assert projected["may be negative"] == ("4", "0.580125", "7.419875")
    assert projected["wide"] == ("16", "10", "46.778875")
    for name in ("cold start", "no model", "great", *DAYS.keys() - {"exceeded"}):
        assert projected[name] == (None, None, None), name

    reached = {name: row["projected_limit_date"] for name, row in found.items()}
    days = {name: day.day for name, day in reached.items() if day}
    assert days == {
        "reaches it": 27,  # 80, 90, 100
        "oldest": 25,
        "no use is allowed": 26,
        "exceeded": 3,
        "exceeded by an organisation": 3,
        "exceeded by a member": 20,
    }
    assert {day.month for day in reached.values() if day} == {9}


def test_it_is_what_the_days_of_the_forecast_add_up_to(engines: Engines) -> None:
    (forecast,) = (view for view in VIEWS if view.name == "usage_forecast")
    sums = dict(
        engines.db.execute(
            f"select metric_type, sum(expected) from ({forecast.definition('json', '')})"
            " where forecast_date < date '2024-10-01' and scope <> 'platform' group by metric_type"
        ).fetchall()
    )
    compared = 0
    for name, row in engines.found().items():
        if row["projected_quantity"] is not None:
            coming = row["projected_quantity"] - row["used_quantity"]
            assert abs(coming - sums[name]) < Decimal("0.0000001"), name
            compared += 1
    assert compared == 10


def test_on_the_last_day_nothing_is_left_to_come(engines: Engines) -> None:
    engines.execute("insert into platform_metrics_daily values ('2024-09-30')")
    try:
        found = engines.found()
    finally:
        engines.execute("delete from platform_metrics_daily where metric_date = '2024-09-30'")
    row = found["reaches it"]
    assert {row[name] for name in row if name.startswith("projected_")} == {Decimal(70), None}
    assert found["exceeded"]["projected_limit_date"] == date(2024, 9, 3)
    assert found["cold start"]["projected_quantity"] is None


def test_a_new_month_begins_without_rows(engines: Engines) -> None:
    engines.execute("insert into platform_metrics_daily values ('2024-10-01')")
    try:
        assert engines.found() == {}
    finally:
        engines.execute("delete from platform_metrics_daily where metric_date = '2024-10-01'")
