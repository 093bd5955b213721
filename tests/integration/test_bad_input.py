"""What an operator sees when something is wrong: the real command line, in a process of its own.

Every failure is one line that names the remedy, leaves what is published as it was, shows no
password, and does not stop the next good run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import forked
import psycopg2
import pytest
from support import AppDatabase

PASSWORD = "hunter2"
RANGE = ("--start", "2024-03-30", "--end", "2024-04-01")


@dataclass
class CommandLine:
    """The command line over one home, in which the range is published already."""

    home: Path
    variables: dict[str, str]
    within: tuple[str, ...] = ()
    forked: bool = True

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own: a forked one, or another interpreter."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home.parent),
            "COLUMNS": "100",
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "USAGE_HOME": str(self.home),
            **self.variables,
            **variables,
        }
        if self.forked and not self.within:
            return forked.run(forked.usage_pipeline, arguments, environment, self.home.parent)
        return subprocess.run(
            [*self.within, sys.executable, "-m", "usage_pipeline", *arguments],
            env=environment,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def published(self) -> tuple[int, bytes]:
        snapshot = self.home / "serving" / "usage.duckdb"
        return snapshot.stat().st_ino, snapshot.read_bytes()

    def refuses(
        self, *arguments: str, says: str, remedy: str, code: int = 1, **variables: str
    ) -> None:
        before = self.published()
        result = self(*arguments, **variables)
        assert result.returncode == code, result.stdout + result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        assert says in lines[0]
        assert remedy in lines[0]
        assert PASSWORD not in result.stdout + result.stderr
        assert self.published() == before


def with_password(url: str, user: str = "postgres") -> str:
    return url.replace("postgresql://postgres@", f"postgresql://{user}:{PASSWORD}@")


def two_events(database: AppDatabase) -> None:
    database.insert(
        "usage_events",
        [
            (
                str(UUID(int=n)),
                str(UUID(int=7)),
                None,
                "api_call",
                None,
                n,
                f"2024-03-3{day}T12:00Z",
            )
            for n, day in ((1, 0), (2, 1))
        ],
    )


@pytest.fixture(scope="module")
def database(new_database: Any) -> AppDatabase:
    made: AppDatabase = new_database()
    two_events(made)
    return made


@pytest.fixture(scope="module")
def cli(
    database: AppDatabase, new_database: Any, short_tmp: Callable[[], Path], fork_server: None
) -> CommandLine:
    """The first rollup by another interpreter, as an operator has it."""
    made = CommandLine(
        short_tmp() / "home",
        {
            "USAGE_APP_DATABASE_URL": with_password(database.url),
            "DAGSTER_PG_URL": with_password(new_database(schema=False).url),
            "USAGE_START_DATE": "2024-03-30",
        },
    )
    result = replace(made, forked=False)("rollup", *RANGE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert PASSWORD not in result.stdout + result.stderr
    shutil.copytree(made.home, made.home.with_name("good"))
    return made


def test_an_unreachable_database(cli: CommandLine) -> None:
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_APP_DATABASE_URL=f"postgresql://ada:{PASSWORD}@127.0.0.1:1/app",
        says="127.0.0.1/app cannot be reached",
        remedy="correct USAGE_APP_DATABASE_URL",
    )


def test_a_database_that_does_not_exist(cli: CommandLine, database: AppDatabase) -> None:
    url = with_password(database.url).replace("/app", "/nowhere", 1)
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_APP_DATABASE_URL=url,
        says='database "nowhere',
        remedy="correct USAGE_APP_DATABASE_URL",
    )


@pytest.fixture
def password_wanted(postgres_server: Any, database: AppDatabase) -> Iterator[str]:
    """A role that has to give its password, which is another than PASSWORD."""
    rules = Path(postgres_server.pgdata) / "pg_hba.conf"
    trusting = rules.read_text()
    rules.write_text("local all guarded scram-sha-256\n" + trusting)
    database.execute("create role guarded login password 'another'; select pg_reload_conf()")
    yield "guarded"
    rules.write_text(trusting)
    database.execute("drop role guarded; select pg_reload_conf()")


def test_a_wrong_password(cli: CommandLine, database: AppDatabase, password_wanted: str) -> None:
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_APP_DATABASE_URL=with_password(database.url, password_wanted),
        says="refused the login",
        remedy="Check the user and password in USAGE_APP_DATABASE_URL",
    )


def test_a_missing_table(cli: CommandLine, new_database: Any) -> None:
    empty: AppDatabase = new_database(schema=False)
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_APP_DATABASE_URL=with_password(empty.url),
        says='relation "usage_events" does not exist',
        remedy="usage-pipeline app-db init",
    )


def test_a_missing_column(cli: CommandLine, new_database: Any) -> None:
    other: AppDatabase = new_database()
    other.execute("alter table usage_events rename quantity to amount")
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_APP_DATABASE_URL=with_password(other.url),
        says='column "quantity" does not exist',
        remedy="Map your columns in usage_pipeline/app_db/queries/",
    )


def test_a_role_without_select(cli: CommandLine, database: AppDatabase) -> None:
    database.execute("create role stranger login")
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_APP_DATABASE_URL=with_password(database.url, "stranger"),
        says="permission denied for table usage_events",
        remedy="usage-pipeline doctor",
    )


def test_an_unknown_time_zone(cli: CommandLine) -> None:
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_TIMEZONE="Mars/Olympus",
        says="USAGE_TIMEZONE is 'Mars/Olympus'",
        remedy="America/New_York",
    )


def test_a_broken_meters_file(cli: CommandLine) -> None:
    meters = cli.home.parent / "broken.yml"
    meters.write_text("meters:\n  - key: a\n    event_type: api_call\n    aggregation: median\n")
    cli.refuses(
        "rollup",
        *RANGE,
        USAGE_METERS_FILE=str(meters),
        says=f"{meters}:4: aggregation: 'median' is not known",
        remedy="Use one of sum, count",
    )


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("reconcile",), ("export", "--month", "2024-03"), ("demo",), ("up",)],
)
def test_no_command_begins_without_its_meters(arguments: tuple[str, ...], cli: CommandLine) -> None:
    cli.refuses(
        *arguments,
        USAGE_METERS_FILE="/nowhere/meters.yml",
        says="USAGE_METERS_FILE is '/nowhere/meters.yml'",
        remedy="the path of an existing YAML file",
    )


@pytest.mark.parametrize("command", [("rollup", *RANGE), ("up",)])
def test_an_unreachable_storage_of_dagster(command: tuple[str, ...], cli: CommandLine) -> None:
    cli.refuses(
        *command,
        DAGSTER_PG_URL=f"postgresql://ada:{PASSWORD}@127.0.0.1:1/dagster",
        says="127.0.0.1/dagster cannot be reached",
        remedy="correct DAGSTER_PG_URL",
    )


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada:{PASSWORD}/ss@127.0.0.1:1/app",
        f"postgresql://127.0.0.1:1/app?pasword={PASSWORD}",
    ],
)
@pytest.mark.parametrize("variable", ["USAGE_APP_DATABASE_URL", "DAGSTER_PG_URL"])
def test_a_url_that_is_not_encoded(variable: str, url: str, cli: CommandLine) -> None:
    wrong: dict[str, Any] = {variable: url}
    cli.refuses(
        "rollup",
        *RANGE,
        **wrong,
        says=f"{variable} is a value that is not shown",
        remedy="percent-encoded",
    )


def test_a_traceback_shows_no_password(cli: CommandLine) -> None:
    result = cli(
        "rollup",
        *RANGE,
        "--debug",
        USAGE_APP_DATABASE_URL=f"postgresql://ada:{PASSWORD}@127.0.0.1:1/app",
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert PASSWORD not in result.stdout + result.stderr


def test_a_sample_comes_into_no_database_that_somebody_uses(
    cli: CommandLine, database: AppDatabase
) -> None:
    cli.refuses("demo", says="the demo would write a sample into it", remedy="--yes")
    cli.refuses("demo", "--yes", says="it has public.usage_events", remedy="usage-pipeline rollup")
    assert database.query("select count(*) from usage_events") == [(2,)]


def test_a_start_after_the_end(cli: CommandLine) -> None:
    cli.refuses(
        "rollup",
        "--start",
        "2024-04-02",
        "--end",
        "2024-04-01",
        says="2024-04-02 is not before the end 2024-04-01",
        code=2,  # wrong usage
        remedy="The end is exclusive",
    )


def test_a_day_that_is_not_over(cli: CommandLine) -> None:
    today = datetime.now(UTC).date()
    cli.refuses(
        "rollup",
        "--start",
        str(today),
        "--end",
        str(today + timedelta(days=1)),
        says="is not over yet in UTC",
        code=2,  # wrong usage
        remedy="Roll up days before",
    )


def test_a_day_before_the_first_partition(cli: CommandLine) -> None:
    cli.refuses(
        "rollup",
        "--start",
        "2024-03-29",
        "--end",
        "2024-03-31",
        says="2024-03-29 is before the first partition, 2024-03-30",
        code=2,  # wrong usage
        remedy="Set USAGE_START_DATE",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("rollup", "--start", "yesterday"),
        ("rollup", "--strat", "2024-03-30"),
        ("rollup", "--end", "0001-01-01"),
        ("rollup", "--start", "0001-01-01"),
        ("rollup", "--start", "9999-12-31", "--end", "9999-12-31"),
        ("export", "--month", "0001-01"),
        ("roll-up",),
        ("export", "--month", "2024-13"),
        ("export", "--month", "2024-03", "--user", "ada"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], cli: CommandLine) -> None:
    before = cli.published()
    result = cli(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert cli.published() == before


def test_a_damaged_landing_file_is_named_and_extracted_again_once_deleted(
    cli: CommandLine,
) -> None:
    """Same size, other bytes: only reading it can tell, which a rebuild does."""
    only_the_other_day = ("rollup", "--start", "2024-03-31", "--end", "2024-04-01")
    # What an earlier test's failure left to extract is not extracted below.
    shutil.rmtree(cli.home)
    shutil.copytree(cli.home.with_name("good"), cli.home)
    data = cli.home / "landing/usage_events/usage_date=2024-03-30/part-0.parquet"
    original = data.read_bytes()
    data.write_bytes(b"\0" * len(original))
    (cli.home / "warehouse.duckdb").unlink()
    cli.refuses(*only_the_other_day, says=data.name, remedy="Delete the named landing file")
    data.unlink()
    result = cli(*only_the_other_day)
    assert result.returncode == 0, result.stderr
    assert totals(cli) == [(3, 2)]


def test_a_truncated_landing_file_is_extracted_again_by_itself(cli: CommandLine) -> None:
    data = cli.home / "landing/usage_events/usage_date=2024-03-30/part-0.parquet"
    data.write_bytes(data.read_bytes()[:-10])
    result = cli("rollup", "--start", "2024-03-31", "--end", "2024-04-01")
    assert result.returncode == 0, result.stderr
    day = data.with_name("part-*.parquet")
    assert duckdb.sql(f"select count(*) from '{day}'").fetchall() == [(1,)]
    assert totals(cli) == [(3, 2)]


@pytest.fixture
def small_disk(cli: CommandLine) -> Iterator[Path]:
    """The home, copied to a disk with next to no space left."""
    mount = cli.home.parent / "disk"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the privilege to mount a small tmpfs")
    try:
        shutil.copytree(cli.home, mount / "home")
        yield mount / "home"
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk(cli: CommandLine, small_disk: Path) -> None:
    full = CommandLine(small_disk, cli.variables)
    filler = small_disk.parent / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    full.refuses("rollup", *RANGE, says="", remedy="Free")
    filler.unlink()
    result = full("rollup", *RANGE)
    assert result.returncode == 0, result.stderr
    assert totals(full) == [(3, 2)]


def test_a_limit_on_the_size_of_files_is_named_as_one(cli: CommandLine) -> None:
    """It meets dbt in its parse of another meters file, after two days were landed."""
    limited = ("sh", "-c", 'ulimit -f 64; exec "$@"', "sh")
    meters = cli.home.parent / "other_meters.yml"
    meters.write_text("meters:\n  - {key: calls, event_type: api_call, aggregation: count}\n")
    replace(cli, within=limited).refuses(
        "rollup",
        *RANGE,
        says=f"A file below {cli.home} would be larger than this process may write",
        remedy="Raise its file-size limit",
        USAGE_METERS_FILE=str(meters),
    )


def totals(cli: CommandLine) -> list[tuple[Any, ...]]:
    """1 + 2 from the two events."""
    with duckdb.connect(str(cli.home / "serving/usage.duckdb"), read_only=True) as db:
        return db.execute(
            "select sum(total_quantity), sum(event_count) from usage_daily"
        ).fetchall()


def test_after_all_that_a_good_run_works(cli: CommandLine, database: AppDatabase) -> None:
    result = cli("rollup", *RANGE, "--timings")
    assert result.returncode == 0, result.stderr
    for stage in ("source", "models", "dbt's start and end", "checks", "publishing"):
        assert stage in result.stdout
    assert totals(cli) == [(3, 2)]
    connection = psycopg2.connect(database.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select sum(total_quantity) from usage.usage_monthly")
        assert cursor.fetchall() == [(3,)]
    connection.close()
