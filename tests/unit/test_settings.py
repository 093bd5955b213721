"""Settings: what a bad value says, and when a local day begins."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from usage_pipeline.cli.options import check_range
from usage_pipeline.days import DayRange
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.postgres import database_error, redact, where
from usage_pipeline.settings import Settings, load_settings

SECRET = "hunter2"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("USAGE_TIMEZONE", "Mars/Olympus", "America/New_York"),
        ("USAGE_TIMEZONE", "../etc/passwd", "America/New_York"),
        ("USAGE_START_DATE", "01.02.2024", "YYYY-MM-DD"),
        ("USAGE_START_DATE", "2024-02-30", "YYYY-MM-DD"),
        ("USAGE_START_DATE", "1704067200", "YYYY-MM-DD"),
        ("USAGE_START_DATE", "0001-01-01", "from 1970-01-01 to today"),
        ("USAGE_START_DATE", "2999-01-01", "from 1970-01-01 to today"),
        ("USAGE_TIMEZONE", "localtime", "America/New_York"),
        ("USAGE_TIMEZONE", "right/Europe/Paris", "America/New_York"),
        ("USAGE_PUBLISH_SCHEMA", "pg_catalog", "schemas of Postgres are refused"),
        ("USAGE_PUBLISH_SCHEMA", "information_schema", "schemas of Postgres are refused"),
        ("USAGE_PUBLISH_SCHEMA", "public", "public and the schemas of Postgres are refused"),
        ("USAGE_HOME", "/dev/null", "the path of a directory"),
        ("USAGE_HOME", "/etc/hostname/data", "the path of a directory"),
        ("USAGE_HOME", "/tmp/it's", "letters, digits, spaces and the characters /"),
        ("USAGE_HOME", "/tmp/100%", "letters, digits, spaces and the characters /"),
        ("USAGE_HOME", '/tmp/"data"', "letters, digits, spaces and the characters /"),
        ("USAGE_HOME", "/tmp/{data}/*", "letters, digits, spaces and the characters /"),
        ("USAGE_METERS_FILE", "/nowhere/meters.yml", "an existing YAML file"),
        ("USAGE_LAND_EVENT_DATA", "perhaps", "true or false"),
        ("USAGE_LANDING_RETENTION_DAYS", "0", "unset keeps every day"),
        ("USAGE_PUBLISH_SCHEMA", 'usage"; drop schema x', "lower-case SQL identifier"),
        ("USAGE_PUBLISH_SCHEMA", "Usage", "lower-case SQL identifier"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(
    variable: str, value: str, accepted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsagePipelineError) as failure:
        load_settings()
    message = str(failure.value)
    assert variable in message
    assert repr(value) in message
    assert accepted in message
    assert "\n" not in message


def test_an_unusable_directory_above_the_default_home_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "50%").mkdir()
    monkeypatch.chdir(tmp_path / "50%")
    with pytest.raises(UsagePipelineError, match=r"^USAGE_HOME is 'data', which is not accepted"):
        load_settings()


@pytest.mark.parametrize(
    "variable", ["USAGE_APP_DATABASE_URL", "USAGE_PUBLISH_DATABASE_URL", "DAGSTER_PG_URL"]
)
@pytest.mark.parametrize(
    "url",
    [
        f"mysql://ada:{SECRET}@db/app",
        # An unencoded character makes a host, port or database name of a part of the password.
        f"postgresql://ada:{SECRET}/ss@db/app",
        f"postgresql://ada:{SECRET}@ss@db/app",
        f"postgresql://ada:a/{SECRET}@db/app",
        f"postgresql://ada:%{SECRET}@db/app",
        f"postgresql://db/app?pasword={SECRET}",
        f"postgresql://db:{SECRET}/app",
    ],
)
def test_a_bad_url_is_named_without_its_password(
    variable: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, url)
    with pytest.raises(UsagePipelineError) as failure:
        load_settings()
    assert variable in str(failure.value)
    assert "postgresql://" in str(failure.value)
    assert SECRET not in str(failure.value)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (f"postgresql://ada:p%40%2F{SECRET}@db:5432/app", "db/app"),
        (f"postgresql://ada:{SECRET}@db1:1,db2:2/app?target_session_attrs=any", "db1,db2/app"),
        ("postgresql://ada@/app?host=/var/run/postgresql", "the local socket/app"),
        (f"postgres://ada:{SECRET}@[::1]:5432/app?sslmode=require", "::1/app"),
    ],
)
def test_a_good_url_is_taken_and_named_without_its_password(
    url: str, place: str, make_settings: Any
) -> None:
    settings = make_settings(USAGE_APP_DATABASE_URL=url)
    assert settings.app_database_url.get_secret_value() == url
    assert where(url) == place


def test_settings_do_not_show_their_secrets(make_settings: Any) -> None:
    url = f"postgresql://ada:{SECRET}@db/app"
    settings = make_settings(
        USAGE_APP_DATABASE_URL=url,
        DAGSTER_PG_URL=url,
        USAGE_FAILURE_WEBHOOK_URL=f"https://{SECRET}",
    )
    assert SECRET not in f"{settings} {settings!r} {settings.model_dump()}"


def test_a_dotenv_file_is_read_and_an_empty_variable_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("USAGE_TIMEZONE=Asia/Tokyo\nUSAGE_START_DATE=2025-02-03\n")
    monkeypatch.setenv("USAGE_APP_DATABASE_URL", "")
    settings = load_settings()
    assert (settings.timezone, settings.start_date) == ("Asia/Tokyo", date(2025, 2, 3))
    assert settings.app_database_url is None


def test_defaults_are_those_of_the_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.home == tmp_path / "data"
    assert settings.publish_schema == "usage"
    assert settings.timezone == "UTC"
    assert settings.start_date == date(2024, 1, 1)
    assert settings.land_event_data is True


@pytest.mark.parametrize(
    ("zone", "day", "starts", "hours"),
    [
        ("UTC", "2024-03-10", "2024-03-10T00:00", 24),
        ("America/New_York", "2024-03-09", "2024-03-09T05:00", 24),
        ("America/New_York", "2024-03-10", "2024-03-10T05:00", 23),
        ("America/New_York", "2024-03-11", "2024-03-11T04:00", 24),
        ("America/New_York", "2024-11-03", "2024-11-03T04:00", 25),
        ("America/New_York", "2024-11-04", "2024-11-04T05:00", 24),
        # Clocks went from 00:00 to 01:00: the day begins at 01:00 -02, which is 00:00 -03.
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00", 23),
        ("America/Sao_Paulo", "2018-11-03", "2018-11-03T03:00", 24),
        # 24:00 came twice: 23:00 to 24:00 -02 and again -03.
        ("America/Sao_Paulo", "2019-02-16", "2019-02-16T02:00", 25),
        ("Asia/Beirut", "2024-03-31", "2024-03-30T22:00", 23),
        ("Asia/Beirut", "2024-03-30", "2024-03-29T22:00", 24),
        ("Asia/Kathmandu", "2024-01-01", "2023-12-31T18:15", 24),
    ],
)
def test_a_day_is_its_local_hours(
    zone: str, day: str, starts: str, hours: int, make_settings: Any
) -> None:
    start, end = make_settings(USAGE_TIMEZONE=zone).day_bounds(date.fromisoformat(day))
    assert start == utc(starts)
    assert end - start == timedelta(hours=hours)


@pytest.mark.parametrize(
    "zone", ["America/Sao_Paulo", "Asia/Beirut", "America/New_York", "Australia/Lord_Howe"]
)
def test_days_follow_each_other_without_gap_or_overlap(zone: str, make_settings: Any) -> None:
    settings = make_settings(USAGE_TIMEZONE=zone)
    days = DayRange(date(2018, 1, 1), date(2020, 1, 1)).days()
    bounds = [settings.day_bounds(day) for day in days]
    assert all(end == start for (_, end), (start, _) in pairwise(bounds))
    assert all(timedelta(hours=23) <= end - start <= timedelta(hours=25) for start, end in bounds)
    inside = [start + (end - start) / 2 for start, end in bounds]
    assert [moment.astimezone(settings.zone).date() for moment in inside] == days


class TestCheckRange:
    def settings(self, make_settings: Any) -> Settings:
        made: Settings = make_settings(USAGE_START_DATE="2024-02-01")
        return made

    def test_yesterday_is_the_last_day_accepted(self, make_settings: Any) -> None:
        settings = self.settings(make_settings)
        today = settings.today()
        check_range(settings, DayRange(today - timedelta(days=1), today))
        with pytest.raises(UsagePipelineError, match=r"not over yet in UTC.*Roll up days before"):
            check_range(settings, DayRange(today, today + timedelta(days=1)))

    def test_the_first_partition_is_the_first_day_accepted(self, make_settings: Any) -> None:
        settings = self.settings(make_settings)
        check_range(settings, DayRange(date(2024, 2, 1), date(2024, 2, 2)))
        with pytest.raises(UsagePipelineError, match="USAGE_START_DATE"):
            check_range(settings, DayRange(date(2024, 1, 31), date(2024, 2, 2)))

    @pytest.mark.parametrize("end", [date(2024, 3, 1), date(2024, 2, 29)])
    def test_the_start_has_to_be_before_the_end(self, end: date, make_settings: Any) -> None:
        with pytest.raises(UsagePipelineError, match="The end is exclusive"):
            check_range(self.settings(make_settings), DayRange(date(2024, 3, 1), end))


@pytest.mark.parametrize(
    "text",
    [
        f"could not connect to postgresql://ada:{SECRET}@db:5432/app",
        f"postgres://ada:{SECRET}@db/app?sslmode=require refused",
        f"host=db user=ada password={SECRET} dbname=app",
        f"host=db password = '{SECRET} with spaces' dbname=app",
        f"PASSWORD={SECRET}",
        f"postgresql://ada:p@ss{SECRET}@db/app",
        f"postgresql://db/app?user=ada&password={SECRET}",
        f"postgresql+psycopg2://ada:{SECRET}@db/app",
    ],
)
def test_redact_leaves_no_password(text: str) -> None:
    assert SECRET not in redact(text)


def test_redact_keeps_what_is_no_secret() -> None:
    text = 'relation "usage_events" does not exist at postgresql://ada@db/app'
    assert redact(text) == text


def test_a_value_of_another_kind_is_named_with_its_column() -> None:
    words = "Conversion Error: Could not convert string 'me' to INT128 when casting from user_id"
    said = str(database_error(Exception(words), "postgresql://u:secret@h/db", "X"))
    assert "h/db has a value that is not of its column's kind" in said
    assert "'me'" in said
    assert "user_id" in said
    assert "leave them out in usage_pipeline/app_db/queries/" in said


@pytest.mark.parametrize(
    ("variables", "development"),
    [
        ({}, True),
        ({"USAGE_WEB_URL": "http://localhost:9000"}, True),
        ({"USAGE_WEB_URL": "https://usage.example.com"}, False),
        ({"USAGE_APP_DATABASE_URL": "postgresql://u@db/app"}, False),
        ({"USAGE_JWT_SECRET": "x" * 32}, False),
        ({"USAGE_JWKS_URL": "https://auth.example.com/jwks.json"}, False),
        ({"USAGE_OIDC_ISSUER": "https://login.example.com"}, False),
        ({"USAGE_WEB_DEVELOPMENT": "false"}, False),
        ({"USAGE_WEB_DEVELOPMENT": "true", "USAGE_JWT_SECRET": "x" * 32}, True),
    ],
)
def test_users_are_picked_where_nothing_else_is_set(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], development: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings().development is development
