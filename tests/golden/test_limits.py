"""Limits by hand (the CSV files beside this) in all three places, and who is told of them."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from support import AppDatabase, Row, assert_published_alike, days, read_csv, roll_up

from usage_pipeline.app_db.session import source_query
from usage_pipeline.audit.notices import notices
from usage_pipeline.settings import Settings

HERE = Path(__file__).parent
IDS = {
    name: str(UUID(int=number << 96))
    for name, number in {"ada": 0xADA, "bob": 0xB0B, "cyd": 0xC1D, "dan": 0xDA2}.items()
} | {"acme": str(UUID(int=0xACE << 96)), "old": str(UUID(int=0x01D << 96))}
NAMES = {uuid: name for name, uuid in IDS.items()}
MONTH = days("2024-02-29", "2024-03-16")
DAY = days("2024-03-15", "2024-03-16")
LAST_MONTH = days("2024-02-29", "2024-03-01")
METERS = """
meters:
  - {key: api_call, event_type: api_call, aggregation: sum, value: quantity,
     alert_at: [50%, 100%, 110%, 120%]}
  - {key: record_created, event_type: record_created, aggregation: sum, value: quantity}
  - {key: automation_run, event_type: automation_run, aggregation: sum, value: quantity}
  - {key: ai_tokens_used, event_type: ai_tokens_used, aggregation: sum, value: quantity}
  - {key: documents, event_type: api_call, aggregation: unique_count, value: $.document,
     alert_at: []}
"""


def rows_of(golden: str) -> list[dict[str, str | None]]:
    return [{k: v or None for k, v in row.items()} for row in read_csv(HERE / golden)]


def id_of(name: str | None) -> str | None:
    return IDS[name] if name else None


@pytest.fixture(scope="module")
def mapped() -> Any:
    """The mapping of plan limits with the column that says what one member may use."""
    from usage_pipeline.app_db import session
    from usage_pipeline.landing import accounts

    def query(table: str) -> str:
        found = source_query(table)
        return (
            found.replace("_quantity", "_quantity, member_limit_quantity", 1)
            * (table == "plan_limits")
            or found
        )

    with pytest.MonkeyPatch.context() as patch:
        for module in (session, accounts):
            patch.setattr(module, "source_query", query)
        yield


@pytest.fixture(scope="module")
def world(new_york: Any, mapped: None) -> tuple[AppDatabase, Settings]:
    source, settings = new_york(METERS)
    source.execute("alter table plan_limits add member_limit_quantity numeric")
    # An application's own table may name who pays as well, and its mapping forget that.
    source.execute("alter table subscriptions drop constraint subscriptions_check")
    source.insert(
        "usage_events",
        [
            (
                str(UUID(int=number)),
                id_of(row["user"]),
                id_of(row["org"]),
                row["event_type"],
                row["document"] and json.dumps({"document": row["document"]}),
                row["quantity"],
                row["at"],
            )
            for number, row in enumerate(rows_of("limits.csv"))
        ],
    )
    source.insert("plan_limits", [tuple(row.values()) for row in rows_of("limits_plans.csv")])
    source.insert(
        "subscriptions",
        [
            (str(UUID(int=n)), id_of(row["user"]), id_of(row["org"]), *list(row.values())[2:])
            for n, row in enumerate(rows_of("limits_subscriptions.csv"))
        ],
    )
    return source, settings


@pytest.fixture(scope="module")
def published(world: tuple[AppDatabase, Settings]) -> dict[str, list[Row]]:
    source, settings = world
    roll_up(settings, MONTH)
    return assert_published_alike(settings, source.url)


def alerts(
    source: AppDatabase, columns: str = "threshold, used_quantity", month: str = "2024-03-01"
) -> list[tuple[Any, ...]]:
    rows = source.query(
        f"select scope, user_id, org_id, metric_type, {columns} from usage.usage_alerts"
        " where month = %s",
        [month],
    )
    return sorted(
        (
            (scope, NAMES.get(user), NAMES.get(org), metric, *rest)
            for scope, user, org, metric, *rest in rows
        ),
        key=str,
    )


def test_each_subject_has_the_status_of_its_plan(published: dict[str, list[Row]]) -> None:
    found = [
        (
            row["scope"],
            NAMES.get(row["user_id"]),
            NAMES.get(row["org_id"]),
            row["metric_type"],
            row["plan"],
            row["used_quantity"],
            row["limit_quantity"],
            row["used_ratio"],
            row["status"],
        )
        for row in published["usage_limit_status"]
    ]
    expected = [
        (
            row["scope"],
            row["user"],
            row["org"],
            row["metric_type"],
            row["plan"],
            *(Decimal(n) if n else None for n in (row["used"], row["limit"], row["ratio"])),
            row["status"],
        )
        for row in rows_of("limits_expected.csv")
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert {str(row["month"]) for row in published["usage_limit_status"]} == {"2024-03-01"}


def test_the_month_before_has_the_plans_of_its_last_day(published: dict[str, list[Row]]) -> None:
    """Ada was basic until the 10th of March."""
    (status,) = [
        row for row in published["usage_limits_monthly"] if str(row["month"]) == "2024-02-01"
    ]
    shown = ("scope", "metric_type", "plan", "used_quantity", "limit_quantity", "status")
    assert NAMES[status["user_id"]] == "ada"
    assert [status[name] for name in shown] == ["user", "api_call", "basic", 1000, 80, "exceeded"]


def add(
    source: AppDatabase, *events: tuple[str, str, str], at: str = "2024-03-15T12:00-04:00"
) -> None:
    source.insert(
        "usage_events",
        [
            (str(uuid4()), id_of(user), None, metric, None, quantity, at)
            for user, metric, quantity in events
        ],
    )


def changes(source: AppDatabase) -> list[tuple[Any, ...]]:
    """Rows that were resolved, and rows that were crossed again."""
    return alerts(source, "threshold, resolved_at is not null, recrossed_at is not null")


def messages(source: AppDatabase) -> list[tuple[Any, ...]]:
    if source.query("select to_regclass('usage.outbox_messages')") == [(None,)]:
        return []
    rows = source.query("select event_type, payload from usage.outbox_messages")
    return sorted(
        (
            event_type.removeprefix("usage.limit_"),
            payload["scope"],
            NAMES.get(payload["user_id"]),
            NAMES.get(payload["org_id"]),
            payload["metric_type"],
            *(payload[name] for name in ("threshold", "used_quantity", "limit_quantity", "plan")),
        )
        for event_type, payload in rows
    )


CROSSED_AT_FIRST = [
    *[("user", "ada", None, "api_call", share, "110") for share in ("0.5", "1", "1.1")],
    *[("user", "ada", None, "automation_run", share, "0.000000001") for share in ("0.8", "1")],
    ("user", "cyd", None, "api_call", "0.5", "80"),
    ("user", "dan", None, "api_call", "0.5", "19"),
    *[("user", "dan", None, "automation_run", share, "3") for share in ("0.8", "1")],
    *[("org", None, "acme", "api_call", share, "100") for share in ("0.5", "1")],
    *[("org", None, "old", "ai_tokens_used", share, "7") for share in ("0.8", "1")],
    ("member", "ada", "acme", "api_call", "0.5", "40"),
    ("member", "bob", "acme", "api_call", "0.5", "35"),
    ("member", "cyd", "acme", "api_call", "0.5", "25"),
]


def test_alerts_begin_with_what_is_crossed_from_now_on_and_each_is_told_once(
    world: tuple[AppDatabase, Settings], published: dict[str, list[Row]]
) -> None:
    source, settings = world
    at_first = {(*row[:4], Decimal(row[4]), Decimal(row[5])) for row in CROSSED_AT_FIRST}
    assert set(alerts(source)) == at_first
    assert messages(source) == []
    shares = [row[4].normalize() for row in alerts(source, "threshold", "2024-02-01")]
    assert [str(share) for share in shares] == ["0.5", "1", "1.1", "1.2"]  # ada's 1000 of 80

    # 114.5 of 95 reach 120 %; a limit of 100 becomes 90, of which 100 are more than 110 %; the
    # first run of none passes both thresholds. Dan falls to 9 of 20, of which nobody had been told.
    add(source, ("ada", "api_call", "4.5"), ("bob", "automation_run", "1"))
    add(source, ("dan", "api_call", "-10"))
    source.execute(
        "update plan_limits set limit_quantity = 90 where limit_quantity = 100 and plan = 'team'"
    )
    roll_up(settings, DAY)
    told = [
        ("exceeded", "org", None, "acme", "api_call", "1.1", "100", "90", "team"),
        ("exceeded", "user", "ada", None, "api_call", "1.2", "114.5", "95", "pro"),
        ("exceeded", "user", "bob", None, "automation_run", "1", "1", "0", "pro"),
    ]
    assert messages(source) == told
    new = [row for row in changes(source) if row[:5] not in {r[:5] for r in at_first}]
    assert [(*row[:4], str(row[4].normalize())) for row in new] == [
        ("org", None, "acme", "api_call", "1.1"),
        ("user", "ada", None, "api_call", "1.2"),
        ("user", "bob", None, "automation_run", "0.8"),
        ("user", "bob", None, "automation_run", "1"),
    ]
    dan = ("user", "dan", None, "api_call", Decimal("0.5"))
    assert [row for row in changes(source) if any(row[5:])] == [(*dan, True, False)]

    # Dan comes back to 10 of 20, of which he is told, since he never was; ada falls below 120 %.
    add(source, ("dan", "api_call", "1"), ("ada", "api_call", "-5"))
    roll_up(settings, DAY)
    ada = ("user", "ada", None, "api_call", Decimal("1.2"))
    back = ("warning", *dan[:4], "0.5", "10", "20", "free")
    told = sorted([*told, ("resolved", *ada[:4], "1.2", "109.5", "95", "pro"), back])
    assert messages(source) == told
    states = [row for row in changes(source) if any(row[5:])]
    assert states == [(*ada, True, False), (*dan, False, True)]

    # A late event of February, when dan had 100; ada, who was beyond it, is beyond it still.
    late = "2024-02-29T12:00-05:00"
    add(source, ("dan", "api_call", "60"), ("ada", "api_call", "1"), at=late)
    roll_up(settings, LAST_MONTH)
    told = sorted([*told, ("warning", *dan[:4], "0.5", "60", "100", "extra")])
    assert messages(source) == told
    of_dan = "select usage_date::text from usage.usage_alerts where month = '2024-02-01' and"
    assert source.query(f"{of_dan} used_quantity = 60") == [("2024-02-29",)]

    before = source.query("select * from usage.usage_alerts order by 1, 2, 3, 4, 6")
    settings.warehouse_path.unlink()
    roll_up(settings, MONTH)
    assert source.query("select * from usage.usage_alerts order by 1, 2, 3, 4, 6") == before
    assert messages(source) == told
    assert "subscribers_have_one_plan: 1 row" in notices(settings)  # cyd
