"""What readers can do to the pipeline: nothing, whatever they open, change or lose."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from support import AppDatabase, assert_published_alike, day, roll_up, snapshot_query

from usage_pipeline.infra import permissions
from usage_pipeline.infra.duckdb_files import compact
from usage_pipeline.operations import erasure
from usage_pipeline.operations.status import summary
from usage_pipeline.publishing import readers_copy
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import exports, published
from usage_pipeline.settings import PROJECT_DIR, Settings

ADA = UUID("7f1c9d52-3b0e-4c55-9a07-1d2f6c8e4b90")
BOB = UUID("c2a7e614-9d38-4f0b-8e21-5a6b3f97d0c8")
APRIL = date(2024, 4, 1)

_HOLD = "import duckdb, sys; db = duckdb.connect(sys.argv[1]); print('open', flush=True); input()"


@contextmanager
def opened_for_writing(path: Path) -> Iterator[None]:
    """Another process has the file open as `duckdb.connect(path)` does by default."""
    path.chmod(0o600)
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin and reader.stdout
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(duckdb.IOException, match="lock"):
            duckdb.connect(str(path), read_only=True)
        yield
        assert reader.poll() is None
        reader.communicate(b"\n")


@pytest.fixture(scope="module")
def settings(new_database: Any, make_settings: Any) -> Settings:
    """One day, published; the next is in the source."""
    source: AppDatabase = new_database()
    for number, (user, quantity, at) in enumerate(
        [(ADA, "1.5", "2024-04-01"), (BOB, "2", "2024-04-01"), (ADA, "4", "2024-04-02")]
    ):
        source.insert(
            "usage_events",
            [(str(UUID(int=number)), str(user), None, "api_call", None, quantity, f"{at}T12:00Z")],
        )
    settings: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, DAGSTER_PG_URL=new_database(schema=False).url
    )
    roll_up(settings, day("2024-04-01"))
    return settings


def totals(settings: Settings) -> list[tuple[Any, ...]]:
    query = "select usage_date::text, sum(total_quantity) from usage_daily group by 1 order by 1"
    return snapshot_query(settings, query)


def test_a_reader_that_opens_the_snapshot_for_writing_blocks_nothing(settings: Settings) -> None:
    source = AppDatabase(settings.app_database_url.get_secret_value())  # type: ignore[union-attr]
    with opened_for_writing(settings.snapshot_path):
        report = roll_up(settings, day("2024-04-02"))
    assert report.changed
    assert totals(settings) == [("2024-04-01", Decimal("3.5")), ("2024-04-02", Decimal(4))]
    assert_published_alike(settings, source.url)

    with opened_for_writing(settings.snapshot_path):
        assert exports.export_month(settings, APRIL).users == 2
        assert "Published: " in " ".join(summary(settings).lines)
        lines = Rollup(settings).reconcile(day("2024-04-02"))
        assert [line.published_sum for line in lines] == [Decimal(4)]
        held = {trace.place: trace.rows for trace in erasure.find_traces(Rollup(settings), ADA)}
        assert held["serving/usage.duckdb: usage_daily"] == 2


def test_what_a_reader_changed_is_replaced_and_never_built_on(settings: Settings) -> None:
    before = totals(settings)
    settings.snapshot_path.chmod(0o600)
    with duckdb.connect(str(settings.snapshot_path)) as db:
        db.execute("update usage_daily set total_quantity = 1000000")
    log = settings.snapshot_path.with_name("usage.duckdb.wal")
    log.write_bytes(b"what a killed writer left")

    report = Rollup(settings).publish("after the change")

    assert not report.changed
    assert totals(settings) == before
    assert not log.exists()
    served = settings.snapshot_path.stat()
    Rollup(settings).publish("nothing to do")
    assert settings.snapshot_path.stat().st_ino == served.st_ino


def test_the_log_of_a_reader_who_writes_is_found_and_removed(settings: Settings) -> None:
    """The reader opened the copy before this one, and writes when it is replaced."""
    right = totals(settings)
    insert = "db.execute('insert into usage_daily (total_quantity) values (500)')"
    script = _HOLD + f"; {insert}; import os; os._exit(0)"
    settings.snapshot_path.chmod(0o600)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(settings.snapshot_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:
        assert reader.stdout and reader.stdout.readline() == b"open\n"
        readers_copy.serve_again(settings)
        reader.communicate(b"\n")
    assert totals(settings) != right  # which is why it has to be found
    found = Rollup(settings).compare_places(day("2024-04-01"))
    assert "usage.duckdb.wal" in {unlike.table for unlike in found}
    assert "usage.duckdb.wal" in " ".join(summary(settings).lines)
    Rollup(settings).publish("changes nothing")
    assert totals(settings) == right
    assert not published.readers_log(settings)


def test_either_file_alone_brings_back_the_other(settings: Settings) -> None:
    before = totals(settings)
    settings.published_path.unlink()
    assert published.exists(settings)
    settings.snapshot_path.unlink()
    assert exports.export_month(settings, APRIL).written == 0
    Rollup(settings).publish("after the loss")
    assert totals(settings) == before


def test_a_file_with_readers_is_compacted(settings: Settings) -> None:
    """So does an erasure end, while others poll `status`."""
    reading = "import duckdb, sys; db = duckdb.connect(sys.argv[1], read_only=True);"
    command = [sys.executable, "-c", f"{reading} print('open', flush=True); input()"]
    for path in (settings.published_path, settings.warehouse_path):
        with subprocess.Popen(
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdin and reader.stdout
            assert reader.stdout.readline() == b"open\n"
            inode = path.stat().st_ino
            compact(settings, path)
            assert path.stat().st_ino != inode
            reader.communicate(b"\n")


def test_an_id_of_nearly_only_zeros_is_not_found_where_it_is_not(settings: Settings) -> None:
    assert erasure.find_traces(Rollup(settings), UUID(int=0xC8)) == []


def test_the_search_knows_each_table_of_dagster(settings: Settings) -> None:
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

    tables = {
        *SqlEventLogStorageMetadata.tables,
        *RunStorageSqlMetadata.tables,
        *ScheduleStorageSqlMetadata.tables,
    }
    assert set(erasure.DAGSTER_TABLES) == tables


def test_what_the_pipeline_writes_is_for_its_owner(settings: Settings) -> None:
    # as an older release left it
    for path in settings.home.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    settings.home.chmod(0o755)

    before = os.umask(permissions.UMASK)  # as the commands and Dagster's processes set it
    Rollup(settings).publish("tightens")
    os.umask(before)

    assert settings.home.stat().st_mode & 0o066 == 0
    for path in settings.home.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    for path in settings.serving_dir.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o400), path

    for path in settings.exports_dir.rglob("*.csv"):
        path.unlink()
    subprocess.run(
        [sys.executable, "-m", "usage_pipeline", "export", "--month", "2024-04"],
        cwd=PROJECT_DIR,
        env={**os.environ, "USAGE_HOME": str(settings.home), "PYTHONPATH": str(PROJECT_DIR)},
        umask=0o022,
        check=True,
    )
    written = {
        path.name: path.stat().st_mode & 0o777 for path in settings.exports_dir.glob("*/*/*")
    }
    assert written == {f"{ADA}.csv": 0o600, f"{BOB}.csv": 0o600}


def test_what_others_keep_in_the_home_is_theirs(make_settings: Any) -> None:
    settings = make_settings()
    settings.landing_dir.mkdir(parents=True)
    for theirs in ("invoices.csv", "warehouse-report.txt"):
        (settings.home / theirs).touch()
        (settings.home / theirs).chmod(0o644)
    for path in (settings.home, settings.landing_dir):
        path.chmod(0o1777)
    permissions.keep_private(settings)
    modes = {p.name: p.stat().st_mode & 0o7777 for p in (settings.home, *settings.home.iterdir())}
    assert modes == {
        settings.home.name: 0o1777,
        "landing": 0o700,
        "invoices.csv": 0o644,
        "warehouse-report.txt": 0o644,
    }


@contextmanager
def as_member_of_the_group() -> Iterator[None]:
    """This process with the rights of another user; root may come back."""
    groups = os.getgroups()
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setegid(nobody.pw_gid)
    os.seteuid(nobody.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
def test_the_serving_group_reads_the_outputs_and_nothing_else(settings: Settings) -> None:
    settings.home.parent.chmod(0o711)
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    shared = settings.model_copy(update={"serving_group": group})
    parquet = settings.serving_dir / "parquet/usage_daily/month=2024-04-01/data.parquet"
    (landed,) = settings.events_dir.glob("usage_date=2024-04-01/part-1.parquet")

    Rollup(settings).publish("before")
    with as_member_of_the_group(), pytest.raises(duckdb.IOException, match="Permission denied"):
        duckdb.connect(str(settings.snapshot_path), read_only=True)

    published_totals = totals(settings)
    Rollup(shared).publish("shares")
    with as_member_of_the_group():
        assert totals(settings) == published_totals
        assert duckdb.read_parquet(str(parquet)).fetchall()
        with pytest.raises(duckdb.IOException, match="Permission denied"):
            duckdb.connect(str(settings.snapshot_path))
        for path in (landed, settings.published_path, settings.warehouse_path):
            with pytest.raises(PermissionError):
                path.open("rb")

    Rollup(settings).publish("shares no more")
    with as_member_of_the_group(), pytest.raises(PermissionError):
        settings.snapshot_path.open("rb")
