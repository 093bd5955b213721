"""What is published, read from Postgres and from the snapshot: alike, read-only, by a role that may
no more, whatever is published meanwhile or goes away."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from uuid import UUID

import duckdb
import psycopg2
import pytest
from conftest import DatabaseFactory, SettingsFactory
from served import (
    ACME,
    ADMIN,
    MEMBER,
    OTHER_ORG,
    OWNER,
    STRANGER,
    Served,
    ServedFactory,
    bearer,
    by_token,
    token_of,
)
from support import AppDatabase, snapshot_query

from usage_pipeline.alerts import outbox
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.reader import NotPublished, open_reader

AS_ADMIN = {"app_metadata": {"role": "admin"}}
QUESTIONS = [
    ("/api/usage/summary?period=week", MEMBER),
    ("/api/usage/summary?period=year", STRANGER),
    (f"/api/usage/summary?org_id={ACME}", OWNER),
    ("/api/usage/aggregated", MEMBER),
    ("/api/usage/aggregated?period_type=monthly&start=2025-04-01&end=2025-05-01", MEMBER),
    ("/api/usage/aggregated?limit=1&metric_type=api_call", MEMBER),
    (f"/api/usage/aggregated?org_id={ACME}", ADMIN),
    ("/api/usage/limits", STRANGER),
    (f"/api/usage/limits?org_id={ACME}", MEMBER),
    ("/api/admin/analytics?month=2025-04", ADMIN),
    ("/api/readyz", ADMIN),
]


def headers_of(who: UUID) -> dict[str, str]:
    return by_token(who, **AS_ADMIN if who == ADMIN else {})


def end_connections(source: AppDatabase, to: AppDatabase) -> None:
    source.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = %s and pid <> pg_backend_pid()",
        [to.name],
    )


@pytest.mark.parametrize(("path", "who"), QUESTIONS)
def test_both_places_answer_alike(
    served: Served, serve: ServedFactory, path: str, who: UUID
) -> None:
    answers = []
    for reads in ("postgres", "duckdb"):
        with serve(USAGE_WEB_READS=reads).client() as client:
            answer = client.get(path, headers=headers_of(who))
            assert answer.status_code == 200, answer.text
            found = answer.json()
            found.pop("age_seconds", None)
            answers.append((found, answer.headers.get("etag")))
    assert answers[0] == answers[1]
    assert answers[0][0].get("items") != []


def test_the_role_of_readers_suffices(serve: ServedFactory, served: Served) -> None:
    """A login in it, with what the publish has granted to it, and no more."""
    url = served.source.url.replace("postgres@", "dashboard@")
    with serve(USAGE_WEB_DATABASE_URL=url).client() as client:
        for path, who in QUESTIONS:
            assert client.get(path, headers=headers_of(who)).status_code == 200, path
        client.post("/sign-in/token", data={"token": token_of(MEMBER)})
        assert client.get("/usage").status_code == 200
    with outbox.opened(served.settings):  # the tables are there from the first message on
        pass
    dashboard = AppDatabase(url)
    assert dashboard.query("select count(*) from usage.usage_alerts")
    for table in (*outbox.TABLES, "users", "usage_events"):
        schema = "usage" if table in outbox.TABLES else "public"
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            dashboard.query(f"select * from {schema}.{table}")


def test_an_organisation_that_is_named_by_blanks_is_called_by_its_id(served: Served) -> None:
    members = served.app.state.web.members
    rename = "update orgs set name = %s where id = %s"
    served.source.execute(rename, ["  ", str(OTHER_ORG)])
    try:
        names = [each.name for each in members.orgs_of(STRANGER)]
        assert (names, members.names_of([OTHER_ORG])) == (
            [str(OTHER_ORG)],
            {OTHER_ORG: str(OTHER_ORG)},
        )
    finally:
        served.source.execute(rename, ["Other", str(OTHER_ORG)])


def test_it_reads_and_cannot_write(serve: ServedFactory, served: Served) -> None:
    statement = "update snapshot set snapshot_id = snapshot_id returning snapshot_id"
    for reads in ("postgres", "duckdb"):
        reader = serve(USAGE_WEB_READS=reads).app.state.web.reader
        with pytest.raises(UsagePipelineError), reader.open() as published:
            published.rows(statement)
    members = served.app.state.web.members
    with pytest.raises(UsagePipelineError):
        members._ask("delete from users returning 1")


def test_a_publish_that_is_going_on_holds_nobody_up(served: Served) -> None:
    """Everything written and nothing committed: readers see what was before, at once."""
    before = {}
    with served.client() as client:
        for path, who in QUESTIONS[:9]:
            before[path] = client.get(
                path, headers=by_token(who, **AS_ADMIN if who == ADMIN else {})
            ).json()
        publishing = psycopg2.connect(served.source.url)
        try:
            with publishing.cursor() as cursor:
                cursor.execute(
                    "select pg_advisory_xact_lock(hashtext('usage-pipeline'), hashtext('usage'))"
                )
                for table in ("usage_daily", "usage_monthly", "usage_summary"):
                    cursor.execute(f"delete from usage.{table}")
                cursor.execute("update usage.snapshot set snapshot_id = 'next'")
            for path, who in QUESTIONS[:9]:
                headers = headers_of(who)
                assert client.get(path, headers=headers).json() == before[path]
        finally:
            publishing.rollback()
            publishing.close()


def test_all_questions_of_a_block_see_one_state(served: Served) -> None:
    with served.app.state.web.reader.open() as published:
        first = published.rows("select count(*) as n from usage_daily")
        served.source.execute("create table kept as select * from usage.usage_daily")
        served.source.execute("delete from usage.usage_daily")
        try:
            assert published.rows("select count(*) as n from usage_daily") == first
        finally:
            served.source.execute(
                "insert into usage.usage_daily select * from kept; drop table kept"
            )


def test_a_database_that_goes_away_and_comes_back(
    serve: ServedFactory, rolled_up: tuple[AppDatabase, Settings], new_database: DatabaseFactory
) -> None:
    source, _ = rolled_up
    end_connections(source, source)
    copy = new_database(like=source)
    served = serve(USAGE_PUBLISH_DATABASE_URL=copy.url)
    path = "/api/usage/summary"
    with served.client() as client:
        first = client.get(path, headers=by_token(MEMBER))
        assert first.status_code == 200
        source.execute(f"alter database {copy.name} allow_connections false")
        end_connections(source, copy)
        away = client.get(path, headers=by_token(MEMBER))
        assert (away.status_code, away.headers["retry-after"]) == (503, "5")
        assert away.headers["content-type"] == "application/problem+json"
        assert copy.name not in away.text
        client.post("/sign-in/token", data={"token": token_of(MEMBER)})
        page = client.get("/usage")
        assert page.status_code == 503
        assert "text/html" in page.headers["content-type"]
        assert client.get("/healthz").status_code == 200
        source.execute(f"alter database {copy.name} allow_connections true")
        back = client.get(path, headers=by_token(MEMBER))
        assert (back.status_code, back.json()) == (200, first.json())


def test_a_source_that_goes_away_lets_nobody_in(
    serve: ServedFactory, rolled_up: tuple[AppDatabase, Settings], new_database: DatabaseFactory
) -> None:
    source, _ = rolled_up
    end_connections(source, source)
    copy = new_database(like=source)
    served = serve(USAGE_APP_DATABASE_URL=copy.url, USAGE_PUBLISH_DATABASE_URL=source.url)
    with served.client() as client:
        client.post("/sign-in/token", data={"token": token_of(MEMBER)})
        assert client.get("/usage").status_code == 200
        source.execute(f"alter database {copy.name} allow_connections false")
        end_connections(source, copy)
        for path in ("/usage", "/nothing"):
            assert client.get(path).status_code == 503, path
        assert client.get("/api/usage/summary", headers=by_token(MEMBER)).status_code == 503
        key = bearer(served.key("usage:read"))
        answer = client.get(f"/api/usage/summary?user_id={MEMBER}", headers=key)
        assert answer.status_code == 200, "a key needs no source"
        source.execute(f"alter database {copy.name} allow_connections true")
        assert client.get("/usage").status_code == 200


def test_nothing_published_is_said(
    make_settings: SettingsFactory,
    new_database: DatabaseFactory,
    serve: ServedFactory,
    tmp_path: Path,
) -> None:
    empty = new_database()
    for variables in (
        {"USAGE_PUBLISH_DATABASE_URL": empty.url},
        {"USAGE_WEB_READS": "duckdb", "USAGE_HOME": tmp_path / "home"},
    ):
        served = serve(**variables)
        with pytest.raises(NotPublished), served.app.state.web.reader.open():
            pass
        with served.client() as client:
            answer = client.get("/api/usage/summary", headers=by_token(MEMBER))
            assert (answer.status_code, answer.json()["detail"]) == (
                503,
                "Nothing is published yet.",
            )
            client.post("/sign-in/token", data={"token": token_of(MEMBER)})
            page = client.get("/usage")
            assert page.status_code == 503
            assert "Nothing is published" in page.text
            assert client.get("/readyz").status_code == 503


def test_a_snapshot_that_is_replaced_is_read_anew_and_who_reads_the_old_one_ends_there(
    rolled_up: tuple[AppDatabase, Settings], make_settings: SettingsFactory, tmp_path: Path
) -> None:
    _, settings = rolled_up
    ours = make_settings(USAGE_HOME=tmp_path / "home", USAGE_WEB_READS="duckdb")
    ours.serving_dir.mkdir(parents=True)
    shutil.copy(settings.snapshot_path, ours.snapshot_path)
    reader = open_reader(ours)
    ((before,),) = snapshot_query(ours, "select snapshot_id from snapshot")
    with reader.open() as old:
        newer = tmp_path / "newer.duckdb"
        shutil.copy(settings.snapshot_path, newer)
        newer.chmod(0o600)
        with duckdb.connect(str(newer)) as db:
            db.execute("update snapshot set snapshot_id = 'newer'")
        newer.replace(ours.snapshot_path)
        with reader.open() as new:
            assert new.snapshot.snapshot_id == "newer"
            assert old.snapshot.snapshot_id == before
            assert old.rows("select snapshot_id from snapshot") == [{"snapshot_id": before}]
    ours.snapshot_path.write_bytes(b"no database")
    with pytest.raises(UsagePipelineError, match="cannot be read"), reader.open():
        pass


def test_many_readers_at_once(served: Served, serve: ServedFactory) -> None:
    for reads in ("postgres", "duckdb"):
        reader = serve(USAGE_WEB_READS=reads).app.state.web.reader
        found: list[int] = []

        def read(reader: object = reader, found: list[int] = found) -> None:
            with reader.open() as published:  # type: ignore[attr-defined]
                found.append(published.rows("select count(*) as n from usage_daily")[0]["n"])

        threads = [threading.Thread(target=read) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [6] * 40
        assert reader.in_use == 0
