"""Exports of a real snapshot file: exact bytes, harmless cells, nothing rewritten in vain."""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path
from uuid import UUID

import duckdb
import pytest

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.publishing.snapshot import ensure_snapshot
from usage_pipeline.serving.exports import (
    ExportReport,
    export_month,
    export_user_events,
    is_exported,
)
from usage_pipeline.settings import Settings

ADA = UUID("ada00000-0000-4000-8000-000000000000")
BOB = UUID("b0b00000-0000-4000-8000-000000000000")
ORG = UUID("00000000-0000-4000-8000-000000000001")
APRIL = date(2025, 4, 1)
HEADER = "usage_date,org_id,metric_type,total_quantity,event_count\n"

USAGE_DAILY = f"""
    create table usage_daily (usage_date date, user_id uuid, org_id uuid, metric_type varchar,
        total_quantity decimal(38, 9), event_count bigint);
    insert into usage_daily values
        ('2025-04-02', '{ADA}', null, 'api_call', 100, 1),
        ('2025-04-01', '{ADA}', '{ORG}', 'api_call', 0.5, 2),
        ('2025-04-01', '{ADA}', null, 'storage_used',
         12345678901234567890123456789.123456789, 1),
        ('2025-04-01', '{ADA}', null, 'api_call', -3.25, 1),
        ('2025-04-30', '{BOB}', null, '=1+1,"x"', 0, 1),
        ('2025-04-01', null, null, 'api_call', 7, 1),
        ('2025-05-01', '{BOB}', null, 'api_call', 1, 1);
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home with a published snapshot of April and May 2025."""
    settings = Settings(USAGE_HOME=tmp_path)  # type: ignore[call-arg]
    ensure_snapshot(settings)
    change_snapshot(settings, USAGE_DAILY)
    return settings


def change_snapshot(settings: Settings, statements: str) -> None:
    with duckdb.connect(str(settings.published_path)) as db:
        db.execute(statements)


def file_of(settings: Settings, user: UUID) -> Path:
    return settings.exports_dir / "2025-04" / str(user)[:2] / f"{user}.csv"


def manifest(settings: Settings) -> list[list[str]]:
    lines = (settings.exports_dir / "2025-04" / "manifest.csv").read_text().splitlines()
    return [line.split(",") for line in lines]


def versions(settings: Settings) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in settings.exports_dir.rglob("*.csv")
    }


def test_each_user_gets_a_sorted_file_of_exact_numbers(settings: Settings) -> None:
    done: list[tuple[int, int]] = []
    report = export_month(
        settings, date(2025, 4, 17), progress=lambda users, of: done.append((users, of))
    )

    assert file_of(settings, ADA).read_bytes().decode() == (
        HEADER + "2025-04-01,,api_call,-3.25,1\n"
        "2025-04-01,,storage_used,12345678901234567890123456789.123456789,1\n"
        f"2025-04-01,{ORG},api_call,0.5,2\n"
        "2025-04-02,,api_call,100,1\n"
    )
    assert report == ExportReport(
        settings.exports_dir / "2025-04/manifest.csv", users=2, written=2, removed=0, rows=5
    )
    assert done == [(1, 2), (2, 2)]
    assert list(settings.scratch_dir.iterdir()) == []


def test_cells_that_a_spreadsheet_would_execute_are_neutralised(settings: Settings) -> None:
    export_month(settings, APRIL)

    assert file_of(settings, BOB).read_bytes().decode() == (
        HEADER + '2025-04-30,,"\'=1+1,""x""",0,1\n'
    )


def test_the_manifest_lists_every_file_with_its_hash(settings: Settings) -> None:
    export_month(settings, APRIL)

    sha256 = {u: hashlib.sha256(file_of(settings, u).read_bytes()).hexdigest() for u in (ADA, BOB)}
    assert manifest(settings) == [
        ["user_id", "path", "rows", "sha256"],
        [str(ADA), f"ad/{ADA}.csv", "4", sha256[ADA]],
        [str(BOB), f"b0/{BOB}.csv", "1", sha256[BOB]],
    ]


def test_a_second_export_writes_only_what_changed(settings: Settings) -> None:
    export_month(settings, APRIL)
    first = versions(settings)

    assert export_month(settings, APRIL).written == 0
    assert versions(settings) == first

    change_snapshot(settings, f"update usage_daily set event_count = 9 where user_id = '{BOB}'")
    assert export_month(settings, APRIL).written == 1
    second = versions(settings)
    assert {path.name for path in first if first[path] != second[path]} == {
        f"{BOB}.csv",
        "manifest.csv",
    }


def test_a_file_that_a_killed_export_left_is_not_taken_for_the_one_in_the_manifest(
    settings: Settings,
) -> None:
    """It had written other numbers, and since then they are the former ones again."""
    export_month(settings, APRIL)
    expected = file_of(settings, ADA).read_bytes()
    file_of(settings, ADA).write_bytes(b"numbers of the killed export")

    assert export_month(settings, APRIL).written == 1
    assert file_of(settings, ADA).read_bytes() == expected
    assert export_month(settings, APRIL).written == 0


def test_a_lost_file_is_written_again(settings: Settings) -> None:
    export_month(settings, APRIL)
    file_of(settings, ADA).unlink()

    assert export_month(settings, APRIL).written == 1
    assert file_of(settings, ADA).exists()


def test_files_of_users_without_rows_are_removed(settings: Settings) -> None:
    export_month(settings, APRIL)
    events = file_of(settings, ADA).with_suffix(".events.csv")
    events.touch()
    change_snapshot(settings, f"delete from usage_daily where user_id = '{ADA}'")

    assert export_month(settings, APRIL).removed == 2

    assert not file_of(settings, ADA).exists()
    assert not events.exists()
    assert [line[0] for line in manifest(settings)] == ["user_id", str(BOB)]


def test_one_user_is_merged_into_the_manifest(settings: Settings) -> None:
    export_month(settings, APRIL)
    complete = manifest(settings)
    change_snapshot(settings, f"update usage_daily set event_count = 9 where user_id = '{BOB}'")

    report = export_month(settings, APRIL, user_id=BOB)

    assert (report.users, report.written, report.removed, report.rows) == (1, 1, 0, 1)
    assert manifest(settings)[:2] == complete[:2]
    assert manifest(settings)[2] != complete[2]


def test_a_month_that_became_empty_has_no_files(settings: Settings) -> None:
    export_month(settings, APRIL)
    change_snapshot(settings, "delete from usage_daily where usage_date < '2025-05-01'")

    assert export_month(settings, APRIL) == ExportReport(
        settings.exports_dir / "2025-04/manifest.csv", users=0, written=0, removed=2, rows=0
    )
    assert not list(settings.exports_dir.glob("2025-04/??/*"))
    assert manifest(settings) == [["user_id", "path", "rows", "sha256"]]


def test_a_published_month_in_which_nothing_happened_is_no_error(settings: Settings) -> None:
    change_snapshot(settings, "insert into published_days (usage_date) values ('2025-03-07')")
    assert export_month(settings, date(2025, 3, 1)).users == 0
    assert is_exported(settings, date(2025, 3, 1))


def test_a_user_without_rows_any_more_loses_the_file_alone(settings: Settings) -> None:
    export_month(settings, APRIL)
    change_snapshot(settings, f"delete from usage_daily where user_id = '{ADA}'")

    assert export_month(settings, APRIL, user_id=ADA).removed == 1

    assert not file_of(settings, ADA).exists()
    assert [line[0] for line in manifest(settings)] == ["user_id", str(BOB)]


def test_one_user_by_hand_is_no_export_of_the_month(settings: Settings) -> None:
    export_month(settings, APRIL, user_id=BOB)
    assert [line[0] for line in manifest(settings)] == ["user_id", str(BOB)]
    assert not is_exported(settings, APRIL)

    export_month(settings, APRIL)
    assert is_exported(settings, APRIL)
    export_month(settings, APRIL, user_id=BOB)
    assert is_exported(settings, APRIL)


def test_a_user_of_many_rows_gets_one_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usage_pipeline.serving.exports._ROWS_PER_BATCH", 2048)
    change_snapshot(
        settings,
        f"insert into usage_daily select '2025-04-03', '{ADA}', null, 'm' || range, 1, 1"
        " from range(10000)",
    )

    assert export_month(settings, APRIL).rows == 10005
    assert len(file_of(settings, ADA).read_bytes().splitlines()) == 10005
    assert file_of(settings, BOB).read_text().count("\n") == 2


def test_what_is_not_published_is_explained(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsagePipelineError, match="2019-01 is published"):
        export_month(settings, date(2019, 1, 1))
    with pytest.raises(UsagePipelineError, match=f"user {ORG} in 2025-04"):
        export_month(settings, APRIL, user_id=ORG)
    nowhere = Settings(USAGE_HOME=tmp_path / "new")  # type: ignore[call-arg]
    with pytest.raises(UsagePipelineError, match="Nothing is published"):
        export_month(nowhere, APRIL)
    ensure_snapshot(nowhere)
    with pytest.raises(UsagePipelineError, match="rollup"):
        export_month(nowhere, APRIL)


def land_events(settings: Settings, day: str, rows: str) -> None:
    partition = settings.events_dir / f"usage_date={day}"
    partition.mkdir(parents=True)
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        db.execute(f"""
            copy (
                select id, user_id, cast(org_id as varchar) as org_id, event_type,
                       cast(event_data as varchar) as event_data,
                       cast(quantity as decimal(38, 9)) as quantity,
                       cast(quantity_raw as varchar) as quantity_raw,
                       cast(created_at as timestamptz) as created_at
                from (values {rows}) as v (id, user_id, org_id, event_type, event_data,
                                           quantity, quantity_raw, created_at)
            ) to '{partition / "part-0.parquet"}' (format parquet)
        """)


def test_raw_events_of_one_user(settings: Settings) -> None:
    land_events(
        settings,
        "2025-04-01",
        f"""('2', '{ADA}', null, 'api_call', null, -2.5, null, '2025-04-01 10:00:00.5+00'),
            ('1', '{ADA}', null, '@sum', '{{"a": 1}}', null, '-Infinity',
             '2025-04-01 10:00:00.5+00'),
            ('3', '{BOB}', null, 'api_call', null, 1, null, '2025-04-01 10:00:00+00')""",
    )
    land_events(
        settings,
        "2025-05-01",
        f"('4', '{ADA}', null, 'api_call', null, 1, null, '2025-05-01 10:00:00+00')",
    )

    path = export_user_events(settings, APRIL, ADA)

    assert path == file_of(settings, ADA).with_suffix(".events.csv")
    assert path.read_bytes().decode() == (
        "created_at,id,org_id,event_type,quantity,event_data\n"
        '2025-04-01T10:00:00.500000Z,1,,\'@sum,\'-Infinity,"{""a"": 1}"\n'
        "2025-04-01T10:00:00.500000Z,2,,api_call,-2.5,\n"
    )
    for month, user in ((APRIL, ORG), (date(2019, 1, 1), ADA)):
        with pytest.raises(UsagePipelineError, match="no landed events"):
            export_user_events(settings, month, user)


def test_raw_events_need_landed_event_data(settings: Settings) -> None:
    without = settings.model_copy(update={"land_event_data": False})
    with pytest.raises(UsagePipelineError, match="USAGE_LAND_EVENT_DATA"):
        export_user_events(without, APRIL, ADA)
