"""Numbers derived by hand (the CSV files beside this) against all three outputs."""

from __future__ import annotations

import csv
import json
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support import (
    AppDatabase,
    Row,
    assert_published_alike,
    day,
    days,
    read_csv,
    roll_up,
    snapshot_tables,
)

from usage_pipeline.publishing.changes import TableChange
from usage_pipeline.settings import Settings

HERE = Path(__file__).parent
ZONES = ("UTC", "America/New_York")
IDS = {
    name: str(UUID(int=number << 96))
    for name, number in {"ada": 0xADA, "bob": 0xB0B, "cyd": 0xC1D, "dan": 0xDA2}.items()
} | {"acme": str(UUID(int=0xACE << 96)), "old": str(UUID(int=0x01D << 96))}
LEVELS = (
    "usage_daily",
    "usage_monthly",
    "org_usage_daily",
    "org_usage_monthly",
    "platform_usage_daily",
    "platform_usage_monthly",
)


def event_id(number: str) -> str:
    """Ids sort as their numbers do."""
    return str(UUID(int=int(number)))


def id_of(name: str) -> str | None:
    return IDS[name] if name else None


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def number(text: str) -> Decimal | None:
    return Decimal(text) if text else None


def whole(text: str) -> int | None:
    return int(text) if text else None


def picked(rows: list[Row], *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of all rows, in an order that nulls do not disturb."""
    return sorted((tuple(row[column] for column in columns) for row in rows), key=str)


def named(golden: str, keep: Any = lambda row: True) -> list[dict[str, str]]:
    return [row for row in read_csv(HERE / golden) if keep(row)]


# --- days and numbers ----------------------------------------------------------------------

_EDGE_RANGES = (
    days("2024-02-28", "2024-03-12"),
    days("2024-11-02", "2024-11-05"),
)


@pytest.fixture(scope="module")
def edges(new_database: Any) -> AppDatabase:
    """boundaries.csv and quantities.csv in one source that allows null quantities."""
    source: AppDatabase = new_database()
    source.execute("alter table usage_events alter quantity drop not null")
    rows = [
        (
            event_id(r["event"]),
            id_of(r["user"]),
            id_of(r["org"]),
            r["event_type"],
            None,
            r["quantity"] or None,
            r.get("created_at") or f"{r['usage_date']}T12:00:00Z",
        )
        for r in named("boundaries.csv") + named("quantities.csv")
    ]
    source.insert("usage_events", rows)
    return source


@pytest.fixture(scope="module", params=ZONES)
def edge_tables(
    request: Any, edges: AppDatabase, make_settings: Any
) -> tuple[str, dict[str, list[Row]]]:
    zone = request.param
    settings = make_settings(
        USAGE_APP_DATABASE_URL=edges.url,
        USAGE_TIMEZONE=zone,
        USAGE_PUBLISH_SCHEMA=zone.lower().replace("/", "_"),
    )
    roll_up(settings, *_EDGE_RANGES)
    return zone, assert_published_alike(settings, edges.url)


def test_days_and_months_begin_at_local_midnight_through_dst_and_leap_day(edge_tables: Any) -> None:
    zone, tables = edge_tables
    expected = named("boundaries_expected.csv", lambda r: r["zone"] == zone)
    for table, period, column in (
        ("usage_daily", "daily", "usage_date"),
        ("usage_monthly", "monthly", "month"),
    ):
        rows = [row for row in tables[table] if row["user_id"] == IDS["ada"]]
        assert picked(rows, column, "org_id", "total_quantity", "event_count") == sorted(
            (
                (
                    date.fromisoformat(r["period"]),
                    id_of(r["org"]),
                    Decimal(r["total_quantity"]),
                    int(r["event_count"]),
                )
                for r in expected
                if r["period_type"] == period
            ),
            key=str,
        )
    months = [row for row in tables["usage_monthly"] if row["user_id"] == IDS["ada"]]
    assert picked(months, "month", "org_id", "active_days") == sorted(
        (
            (date.fromisoformat(r["period"]), id_of(r["org"]), int(r["active_days"]))
            for r in expected
            if r["period_type"] == "monthly"
        ),
        key=str,
    )


def test_first_and_last_event_are_those_inside_the_local_day(edge_tables: Any) -> None:
    zone, tables = edge_tables
    at = {row["event"]: instant(row["created_at"]) for row in named("boundaries.csv")}
    expected = [
        (date.fromisoformat(r["period"]), at[r["events"].split()[0]], at[r["events"].split()[-1]])
        for r in named("boundaries_expected.csv", lambda r: r["zone"] == zone)
        if r["period_type"] == "daily"
    ]
    rows = [row for row in tables["usage_daily"] if row["user_id"] == IDS["ada"]]
    assert picked(rows, "usage_date", "first_event_at", "last_event_at") == sorted(
        expected, key=str
    )


def test_usage_aggregations_have_the_periods_as_instants(edge_tables: Any) -> None:
    zone, tables = edge_tables
    rows = [row for row in tables["usage_aggregations"] if row["user_id"] == IDS["ada"]]
    expected = []
    for r in named("boundaries_expected.csv", lambda r: r["zone"] == zone):
        metadata = {
            "active_days": int(r["active_days"] or 1),
            "event_count": int(r["event_count"]),
        }
        expected.append(
            (
                r["period_type"],
                instant(r["starts_at"]),
                instant(r["ends_at"]),
                id_of(r["org"]),
                Decimal(r["total_quantity"]),
                json.dumps(metadata, sort_keys=True),
            )
        )
    columns = ("period_type", "period_start", "period_end", "org_id", "total_quantity", "metadata")
    assert picked(rows, *columns) == sorted(expected, key=str)
    ids = [row["id"] for row in tables["usage_aggregations"]]
    assert len(set(ids)) == len(ids)


def test_quantities_are_rounded_half_away_from_zero_and_zero_counts(edge_tables: Any) -> None:
    _, tables = edge_tables
    totals: dict[str, list[Decimal]] = {}
    for row in named("quantities.csv", lambda r: not r["reason"]):
        totals.setdefault(row["event_type"], []).append(Decimal(row["total"]))
    with localcontext(prec=50):  # Python's default would round 38 digits to 28
        expected = sorted(
            ((metric, sum(parts), len(parts)) for metric, parts in totals.items()), key=str
        )
    for table in ("usage_daily", "usage_monthly"):
        rows = [row for row in tables[table] if row["user_id"] == IDS["bob"]]
        found = picked(rows, "metric_type", "total_quantity", "event_count")
        assert [row[0] for row in found] == [row[0] for row in expected]
        for seen, wanted in zip(found, expected, strict=True):
            assert seen == wanted, table


def test_numbers_that_are_none_are_listed_and_count_nowhere(edge_tables: Any) -> None:
    _, tables = edge_tables
    expected = [
        (
            event_id(row["event"]),
            None,
            row["reason"],
            date(2024, 3, 5),
            IDS["bob"],
            id_of(row["org"]),
            row["event_type"],
        )
        for row in named("quantities.csv", lambda r: r["reason"])
    ]
    invalid = tables["invalid_usage_events"]
    columns = ("event_id", "metric_type", "reason", "usage_date", "user_id", "org_id", "event_type")
    assert picked(invalid, *columns) == sorted(expected, key=str)
    raw = {row["event_id"]: row["quantity"] for row in invalid}
    for row in named("quantities.csv", lambda r: r["reason"] and r["event_type"] == "api_call"):
        assert raw[event_id(row["event"])] == (row["quantity"] or None)
    # bob's only event at acme is invalid, so there is no row of it anywhere
    assert not [r for r in tables["usage_daily"] if r["user_id"] == IDS["bob"] and r["org_id"]]


def test_an_empty_day_is_landed_and_has_metrics_but_no_usage(edge_tables: Any) -> None:
    _, tables = edge_tables
    empty = date(2024, 3, 7)
    assert not [row for row in tables["usage_daily"] if row["usage_date"] == empty]
    (metrics,) = [r for r in tables["platform_metrics_daily"] if r["metric_date"] == empty]
    assert (metrics["active_users"], metrics["event_count"]) == (0, 0)


# --- meters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metered(new_database: Any, make_settings: Any) -> tuple[AppDatabase, Settings]:
    source: AppDatabase = new_database()
    text = (HERE / "meters.csv").read_text(encoding="utf-8").splitlines()
    lines = csv.DictReader((x for x in text if x[0] != "#"), delimiter=";", quoting=csv.QUOTE_NONE)
    source.insert(
        "usage_events",
        [
            (
                event_id(r["event"]),
                id_of(r["user"]),
                id_of(r["org"]),
                r["event_type"],
                r["event_data"] or None,
                r["quantity"],
                r["created_at"],
            )
            for r in lines
        ],
    )
    settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_METERS_FILE=HERE / "meters.yml"
    )
    roll_up(settings, days("2024-03-30", "2024-04-02"))
    return source, settings


@pytest.fixture(scope="module")
def meter_tables(metered: tuple[AppDatabase, Settings]) -> dict[str, list[Row]]:
    source, settings = metered
    return assert_published_alike(settings, source.url)


def _expected_cell(row: dict[str, str]) -> tuple[Any, ...]:
    return (
        date.fromisoformat(row["period"]),
        id_of(row["user"]),
        id_of(row["org"]),
        Decimal(row["total_quantity"]),
        int(row["event_count"]),
        whole(row["days"]),
        whole(row["users"]),
        whole(row["orgs"]),
    )


@pytest.mark.parametrize("level", LEVELS)
def test_every_aggregation_is_right_at(level: str, meter_tables: dict[str, list[Row]]) -> None:
    metrics = sorted({row["metric_type"] for row in named("meters_expected.csv")})
    assert sorted({row["metric_type"] for row in meter_tables[level]}) == metrics
    for metric in metrics:
        expected = [
            _expected_cell(row)
            for row in named("meters_expected.csv")
            if (row["table"], row["metric_type"]) == (level, metric)
        ]
        found = [
            (
                row.get("usage_date") or row["month"],
                row.get("user_id"),
                row.get("org_id"),
                row["total_quantity"],
                row["event_count"],
                row.get("active_days"),
                row.get("active_users"),
                row.get("active_orgs"),
            )
            for row in meter_tables[level]
            if row["metric_type"] == metric
        ]
        assert sorted(found, key=str) == sorted(expected, key=str), f"{level} {metric}"


def test_break_downs_by_dimension(meter_tables: dict[str, list[Row]]) -> None:
    expected = [
        (
            date.fromisoformat(row["usage_date"]),
            id_of(row["user"]),
            id_of(row["org"]),
            row["metric_type"],
            row["dimension"],
            row["dimension_value"] or None,
            Decimal(row["total_quantity"]),
            int(row["event_count"]),
        )
        for row in named("dimensions_expected.csv")
    ]
    columns = ("usage_date", "user_id", "org_id", "metric_type", "dimension", "dimension_value")
    found = picked(
        meter_tables["usage_daily_by_dimension"], *columns, "total_quantity", "event_count"
    )
    assert found == sorted(expected, key=str)


def test_a_value_invalid_for_one_meter_is_listed_for_that_meter_only(
    meter_tables: dict[str, list[Row]],
) -> None:
    latency = ("latency_max", "latency_min", "latency_avg")
    expected = [
        *(("107", metric) for metric in (*latency, "routes")),
        *(("108", metric) for metric in (*latency, "routes")),
        *(("109", metric) for metric in latency),
        *(("110", metric) for metric in (*latency, "routes")),
        ("305", "tokens_gpt"),
        ("404", "record_size"),
    ]
    found = picked(meter_tables["invalid_usage_events"], "event_id", "metric_type")
    assert found == sorted((event_id(event), metric) for event, metric in expected)


def test_updated_at_moves_only_with_the_numbers(
    metered: tuple[AppDatabase, Settings], meter_tables: dict[str, list[Row]]
) -> None:
    source, settings = metered
    before = {row["id"]: row for row in meter_tables["usage_aggregations"]}

    report = roll_up(settings, day("2024-03-30"))  # nothing changed
    rewritten = {name for name, change in report.tables.items() if change != TableChange()}
    assert rewritten <= {"invalid_usage_events"}  # see the test of detected_at
    assert {r["id"]: r for r in snapshot_tables(settings)["usage_aggregations"]} == before

    # bob's only latency goes from 5 to 6: his max, min and avg, of the day and of the month
    source.execute(
        "update usage_events set event_data = jsonb_set(event_data, '{ms}', '6') where id = %s",
        (event_id("104"),),
    )
    roll_up(settings, day("2024-03-30"))
    after = {
        row["id"]: row for row in assert_published_alike(settings, source.url)["usage_aggregations"]
    }
    assert after.keys() == before.keys()
    changed = [row for key, row in after.items() if row["updated_at"] != before[key]["updated_at"]]
    assert picked(changed, "user_id", "period_type", "metric_type", "total_quantity") == sorted(
        (
            (IDS["bob"], period, f"latency_{aggregation}", Decimal(6))
            for period in ("daily", "monthly")
            for aggregation in ("max", "min", "avg")
        ),
        key=str,
    )
    assert all(row["updated_at"] > before[row["id"]]["updated_at"] for row in changed)
    assert all(row["created_at"] == before[key]["created_at"] for key, row in after.items())
    untouched = [key for key in after if after[key] not in changed]
    assert all(after[key] == before[key] for key in untouched)


def test_detected_at_stays_when_a_day_is_landed_again(
    metered: tuple[AppDatabase, Settings], meter_tables: dict[str, list[Row]]
) -> None:
    _, settings = metered
    roll_up(settings, day("2024-03-31"))
    columns = ("event_id", "metric_type", "detected_at")
    again = picked(snapshot_tables(settings)["invalid_usage_events"], *columns)
    assert again == picked(meter_tables["invalid_usage_events"], *columns)


# --- people, subscriptions, summaries ------------------------------------------------------


@pytest.fixture(scope="module")
def activity(new_database: Any, make_settings: Any) -> dict[str, list[Row]]:
    source: AppDatabase = new_database()
    noon = "T12:00:00Z"
    source.insert(
        "users",
        [
            (IDS[name], None, created + noon, deleted and deleted + noon)
            for name, created, deleted in (
                ("ada", "2024-01-10", None),
                ("bob", "2024-02-05", None),
                ("cyd", "2024-02-20", "2024-03-02"),
                ("dan", "2024-03-03", None),
            )
        ],
    )
    source.insert(
        "orgs",
        [
            (IDS["old"], "old", "2023-12-31" + noon, "2024-03-01" + noon),
            (IDS["acme"], "acme", "2024-02-01" + noon, None),
        ],
    )
    source.insert(
        "subscriptions",
        [
            (
                event_id(str(n)),
                id_of(user),
                id_of(org),
                plan,
                status,
                start + noon,
                end and end + noon,
            )
            for n, user, org, plan, status, start, end in (
                (1, "ada", "", "pro", "active", "2024-01-15", None),
                (2, "bob", "", "free", "trialing", "2024-02-05", None),
                (3, "", "acme", "pro", "past_due", "2024-02-10", None),
                (4, "cyd", "", "pro", "canceled", "2024-02-20", "2024-03-02"),
                (5, "dan", "", "free", "canceled", "2024-03-03", None),
            )
        ],
    )
    source.insert(
        "usage_events",
        [
            (
                event_id(r["event"]),
                id_of(r["user"]),
                id_of(r["org"]),
                "user_active",
                None,
                r["quantity"],
                r["usage_date"] + noon,
            )
            for r in named("activity.csv")
        ],
    )
    settings = make_settings(USAGE_APP_DATABASE_URL=source.url, USAGE_START_DATE="2024-02-01")
    roll_up(settings, days("2024-02-01", "2024-03-05"))
    return assert_published_alike(settings, source.url)


def _figures(row: dict[str, str], *labels: str) -> dict[str, Any]:
    return {name: number(text) for name, text in row.items() if name not in labels}


def test_platform_metrics_of_days(activity: dict[str, list[Row]]) -> None:
    by_day = {row["metric_date"]: row for row in activity["platform_metrics_daily"]}
    assert sorted(by_day) == days("2024-02-01", "2024-03-05").days()
    for expected in named("activity_daily_expected.csv"):
        found = by_day[date.fromisoformat(expected["metric_date"])]
        figures = _figures(expected, "metric_date")
        assert {name: found[name] for name in figures} == figures, expected["metric_date"]


def test_platform_metrics_of_months(activity: dict[str, list[Row]]) -> None:
    by_month = {row["month"]: row for row in activity["platform_metrics_monthly"]}
    expected_rows = named("activity_monthly_expected.csv")
    assert sorted(by_month) == [date.fromisoformat(row["month"]) for row in expected_rows]
    for expected in expected_rows:
        found = by_month[date.fromisoformat(expected["month"])]
        figures = _figures(expected, "month")
        assert {name: found[name] for name in figures} == figures, expected["month"]


def test_retention_of_cohorts(activity: dict[str, list[Row]]) -> None:
    columns = ("cohort_month", "months_since", "cohort_users", "retained_users", "retention_rate")
    expected = [
        (date.fromisoformat(row[columns[0]]), *(Decimal(row[name]) for name in columns[1:]))
        for row in named("retention_expected.csv")
    ]
    found = picked(activity["user_retention_monthly"], *columns)
    assert [tuple(row) for row in found] == expected


def test_subscriptions_by_plan(activity: dict[str, list[Row]]) -> None:
    rows = {(r["metric_date"], r["plan"]): r for r in activity["subscriptions_by_plan_daily"]}
    for expected in named("plans_expected.csv"):
        found = rows[date.fromisoformat(expected["metric_date"]), expected["plan"]]
        figures = _figures(expected, "metric_date", "plan")
        assert {name: found[name] for name in figures} == figures, expected
    assert (date(2024, 2, 4), "free") not in rows  # before its first subscription


def test_trailing_windows_and_their_change(activity: dict[str, list[Row]]) -> None:
    expected = [
        (
            row["scope"],
            id_of(row["user"]),
            id_of(row["org"]),
            row["time_window"],
            date(2024, 3, 4),
            date.fromisoformat(row["window_start"]),
            date.fromisoformat(row["window_end"]),
            Decimal(row["total_quantity"]),
            Decimal(row["previous_quantity"]),
            number(row["change_ratio"]),
            int(row["event_count"]),
        )
        for row in named("summary_expected.csv")
    ]
    found = [row for row in activity["usage_summary"] if row["metric_type"] == "user_active"]
    assert len(found) == len(activity["usage_summary"]) == len(expected)
    columns = ["scope", "user_id", "org_id", "time_window", "as_of_date", "window_start"]
    columns += ["window_end", "total_quantity", "previous_quantity", "change_ratio", "event_count"]
    by_key = {tuple(row[c] for c in columns[:4]): tuple(row[c] for c in columns) for row in found}
    for wanted in expected:
        assert by_key[wanted[:4]] == wanted
