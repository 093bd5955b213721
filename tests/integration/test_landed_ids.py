"""Ids in landing: UUIDs where the source has them, text where older releases or other ids are."""

from __future__ import annotations

import json
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pyarrow
import pyarrow.parquet
import pytest
from support import (
    AppDatabase,
    assert_published_alike,
    days,
    numbers_only,
    roll_up,
    snapshot_query,
)

from usage_pipeline.landing.erasing import days_of_user
from usage_pipeline.landing.landed_days import landed_manifests, sizes
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.landing.stale_days import days_to_repair
from usage_pipeline.operations.erasure import erase
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving.exports import export_user_events
from usage_pipeline.serving.landed_events import landed_events
from usage_pipeline.settings import Settings

FIRST, SECOND, THIRD = date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)
RANGE = days("2024-02-28", "2024-03-02")
ADA, BOB = (str(UUID(int=n << 96)) for n in (0xADA, 0xB0B))
ORG = str(UUID(int=0xFFFF << 112))
METERS = """
meters:
  - key: calls
    event_type: api_call
    aggregation: sum
    value: quantity
    unit: calls
    description: Calls
  - key: last
    event_type: api_call
    aggregation: latest
    value: quantity
    unit: calls
    description: Calls of the last event
"""


def _id(on: date, n: int) -> str:
    return str(UUID(int=(on.toordinal() << 96) + n))


def _events(user: str = ADA) -> list[tuple[Any, ...]]:
    """Three calls of 1, 10 and 100 on each day; the last two at one moment, the third by nobody's
    organisation and of an unknown type on the last day."""
    return [
        (
            _id(on, n),
            user,
            ORG if n < 2 else None,
            "api_call" if (on, n) != (THIRD, 2) else "unknown",
            None,
            str(10**n),
            f"{on}T{10 + bool(n)}:00Z",
        )
        for on in (FIRST, SECOND, THIRD)
        for n in range(3)
    ]


def as_text(settings: Settings, *on: date) -> None:
    """What a release before schema 5 would have landed."""
    for day in on:
        folder = settings.events_dir / f"usage_date={day}"
        for path in folder.glob("part-*.parquet"):
            with duckdb.connect() as db:
                db.execute("set TimeZone = 'UTC'")
                columns = ("id", "user_id", "org_id")
                texts = ", ".join(f"cast({c} as varchar) as {c}" for c in columns)
                db.execute(
                    f"create table landed as select * replace ({texts})"
                    f" from read_parquet('{path}', hive_partitioning = false)"
                )
                db.execute(f"copy landed to '{path}' (format parquet, compression zstd)")
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["uuids"]
        manifest["schema_version"] = 4
        manifest["files"] = sizes(folder.glob("part-*.parquet"))
        (folder / "manifest.json").write_text(json.dumps(manifest))


def types(settings: Settings, day: date) -> dict[str, str]:
    """The types of a day's ids, as its first file has them."""
    path = settings.events_dir / f"usage_date={day}" / "part-0.parquet"
    found = duckdb.sql(f"describe from '{path}'").fetchall()
    return {name: kind for name, kind, *_ in found if name in ("id", "user_id", "org_id")}


@pytest.fixture
def place(new_database: Any, make_settings: Any, tmp_path: Path) -> tuple[AppDatabase, Settings]:
    return _place(new_database, make_settings, tmp_path)


@pytest.fixture(scope="module")
def rolled_up(
    new_database: Any, make_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AppDatabase, Settings]:
    database, settings = _place(new_database, make_settings, tmp_path_factory.mktemp("meters"))
    roll_up(settings, RANGE)
    return database, settings


def _place(new_database: Any, make_settings: Any, folder: Path) -> tuple[AppDatabase, Settings]:
    database: AppDatabase = new_database()
    database.insert("users", [(u, None, "2024-01-01T00:00Z", None) for u in (ADA, BOB)])
    database.insert("usage_events", _events())
    meters = folder / "meters.yml"
    meters.write_text(METERS)
    return database, make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_METERS_FILE=meters)


# The first file decides which types DuckDB gives to all.
@pytest.mark.parametrize("of_before", [(FIRST,), (SECOND, THIRD)])
def test_days_of_older_releases_stand_beside_new_ones(
    of_before: tuple[date, ...], rolled_up: tuple[AppDatabase, Settings], copy_of: Any
) -> None:
    database, settings = copy_of(*rolled_up)
    assert types(settings, FIRST) == dict.fromkeys(("id", "user_id", "org_id"), "UUID")
    assert landed_manifests(settings)[FIRST].uuids == ["id", "user_id", "org_id"]
    before = numbers_only(assert_published_alike(settings, database.url))
    as_text(settings, *of_before)
    assert landed_manifests(settings)[of_before[0]].uuids == []
    assert types(settings, of_before[0]) == dict.fromkeys(("id", "user_id", "org_id"), "VARCHAR")
    assert days_to_repair(settings, needs_event_data=False) == []

    settings.warehouse_path.unlink()  # so that all days are built from what is landed
    roll_up(settings, days("2024-03-02", "2024-03-03"))
    after = numbers_only(assert_published_alike(settings, database.url))
    by_day = "select usage_date, total_quantity, event_count from platform_usage_daily"
    assert snapshot_query(settings, f"{by_day} where metric_type = 'calls' order by 1") == [
        (FIRST, Decimal(111), 3),
        (SECOND, Decimal(111), 3),
        (THIRD, Decimal(11), 2),
    ]
    # Of the two at one moment the one with the greater id.
    assert snapshot_query(
        settings,
        "select usage_date, total_quantity from usage_daily where metric_type = 'last'"
        " and org_id is null order by 1",
    ) == [(FIRST, Decimal(100)), (SECOND, Decimal(100))]
    for name in ("usage_daily", "usage_monthly", "invalid_usage_events", "usage_aggregations"):
        assert after[name] == before[name], name
    lines = Rollup(settings).reconcile(RANGE)
    assert [line for line in lines if not line.matches] == []

    raw = export_user_events(settings, FIRST, UUID(ADA)).read_text().splitlines()
    assert [line.split(",")[1:3] for line in raw[1:]] == [
        [_id(on, n), ORG if n < 2 else ""] for on in (FIRST, SECOND) for n in range(3)
    ]
    assert days_of_user(settings, UUID(ADA)) == [FIRST, SECOND, THIRD]

    # From a day of either kind into one of the other.
    database.execute(
        "update usage_events set created_at = %s where id = any(%s::uuid[])",
        (f"{SECOND}T15:00Z", [_id(FIRST, 0), _id(THIRD, 1)]),
    )
    roll_up(settings, days("2024-02-29", "2024-03-01"))
    assert snapshot_query(settings, f"{by_day} where metric_type = 'calls' order by 1") == [
        (FIRST, Decimal(110), 2),
        (SECOND, Decimal(122), 5),
        (THIRD, Decimal(1), 1),
    ]

    as_text(settings, *of_before)
    assert erase(Rollup(settings), UUID(ADA)) == []
    assert days_of_user(settings, UUID(ADA)) == []
    assert snapshot_query(settings, "select count(user_id), sum(event_count) from usage_daily") == [
        (0, 16)
    ]


def test_ids_that_are_no_uuids_land_as_they_are_beside_days_with_uuids(
    place: tuple[AppDatabase, Settings],
) -> None:
    """The source's ids were numbers and words once, were UUIDs then, and are words again."""
    database, settings = place
    odd = {_id(FIRST, 0): "7", _id(FIRST, 1): "ÄÖ-1", _id(FIRST, 2): _id(FIRST, 2).upper()}
    database.execute("alter table usage_events alter column id type text")
    for old, new in odd.items():
        database.execute("update usage_events set id = %s where id = %s", (new, old))
    land_events(settings, [FIRST])
    assert types(settings, FIRST) == {"id": "VARCHAR", "user_id": "UUID", "org_id": "UUID"}
    assert landed_manifests(settings)[FIRST].uuids == ["user_id", "org_id"]
    other = database.query("select * from usage_events where created_at < %s", (SECOND,))
    database.execute("delete from usage_events where created_at < %s", (SECOND,))
    database.execute("alter table usage_events alter column id type uuid using id::uuid")
    land_events(settings, [SECOND])
    database.execute("alter table usage_events alter column id type text")
    database.insert("usage_events", other)
    database.execute(
        "update usage_events set id = 'third ' || quantity where created_at >= %s", (THIRD,)
    )
    roll_up(settings, days("2024-03-01", "2024-03-02"))
    assert [len(m.uuids) for m in landed_manifests(settings).values()] == [2, 3, 2]
    ids = landed_events(f"'{settings.events_dir}/*/part-*.parquet'")
    assert duckdb.sql(
        f"select usage_date, id from {ids} order by quantity, usage_date"
    ).fetchall() == [
        (FIRST, "7"),
        (SECOND, _id(SECOND, 0)),
        (THIRD, "third 1"),
        (FIRST, "ÄÖ-1"),
        (SECOND, _id(SECOND, 1)),
        (THIRD, "third 10"),
        (FIRST, _id(FIRST, 2).upper()),
        (SECOND, _id(SECOND, 2)),
        (THIRD, "third 100"),
    ]
    assert snapshot_query(settings, "select event_id from invalid_usage_events") == [("third 100",)]
    assert snapshot_query(
        settings,
        "select sum(total_quantity), sum(event_count) from platform_usage_daily"
        " where metric_type = 'calls'",
    ) == [(Decimal(233), 8)]
    # A word moves into the day of UUIDs, and a UUID out of it.
    database.execute(
        "update usage_events set created_at = created_at + interval '1 day' where id = any(%s)",
        (["7", _id(SECOND, 2)],),
    )
    roll_up(settings, days("2024-02-29", "2024-03-02"))
    assert snapshot_query(
        settings,
        "select usage_date, total_quantity from platform_usage_daily"
        " where metric_type = 'calls' order by 1",
    ) == [(FIRST, 110), (SECOND, 12), (THIRD, 111)]
    lines = Rollup(settings).reconcile(RANGE)
    assert [line for line in lines if not line.matches] == []


def test_the_statement_in_the_documents_writes_a_day_with_ids_as_text(
    place: tuple[AppDatabase, Settings], tmp_path: Path
) -> None:
    _, settings = place
    land_events(settings, [FIRST])
    documents = Path(__file__).parents[2] / "docs" / "operations.md"
    (statement,) = re.findall(r"```sql\n(copy .*?)```", documents.read_text(), re.DOTALL)
    statement = statement.replace("data/landing/usage_events", str(settings.events_dir))
    statement = statement.replace("2026-05-03", str(FIRST)).replace("'events'", f"'{tmp_path}/e'")
    duckdb.sql(statement)
    (written,) = (tmp_path / "e").glob(f"usage_date={FIRST}/*.parquet")
    table = pyarrow.parquet.ParquetFile(written).read().sort_by("quantity")
    types = {field.name: field.type for field in table.schema}
    assert {types[name] for name in ("id", "user_id", "org_id")} == {pyarrow.string()}
    assert table.select(["id", "user_id", "org_id"]).to_pydict() == {
        "id": [_id(FIRST, n) for n in range(3)],
        "user_id": [ADA] * 3,
        "org_id": [ORG, ORG, None],
    }
