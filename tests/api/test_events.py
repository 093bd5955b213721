"""Events that callers send: written exactly, once, and what is not written is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from conftest import DatabaseFactory
from pydantic import SecretStr
from served import ACCOUNTS, ACME, ADMIN, MEMBER, STRANGER, Served, ServedFactory, bearer, by_token
from starlette.testclient import TestClient

from usage_pipeline.operations.doctor import examine

DAY = "2025-05-03T10:15:00Z"
DEEP = json.loads("[" * 32 + "]" * 32)


@pytest.fixture(scope="module")
def taking(serve: ServedFactory, new_database: DatabaseFactory) -> Served:
    """An application with a source of its own, which it writes to as a role that may insert."""
    source = new_database()
    source.execute(ACCOUNTS)
    source.execute("""
        create role usage_ingest login;
        grant insert on usage_events to usage_ingest;
        grant select (id) on usage_events to usage_ingest;
    """)
    url = source.url.replace("postgres@", "usage_ingest@")
    assert url != source.url
    served = serve(USAGE_APP_DATABASE_URL=source.url, USAGE_INGEST_DATABASE_URL=url)
    return Served(served.settings, source, served.app, served.done)


@pytest.fixture(scope="module")
def client(taking: Served) -> Iterator[TestClient]:
    with taking.client() as client:
        yield client


@pytest.fixture(scope="module")
def key(taking: Served) -> dict[str, str]:
    return bearer(taking.key("events:write"))


def event(**changed: Any) -> dict[str, Any]:
    held = {"id": str(uuid4()), "event_type": "api_call", "user_id": str(MEMBER), "created_at": DAY}
    return {name: value for name, value in {**held, **changed}.items() if value != "absent"}


def send(client: TestClient, headers: dict[str, str], body: object) -> Any:
    return send_text(client, headers, json.dumps(body))


def send_text(client: TestClient, headers: dict[str, str], text: str | bytes) -> Any:
    sent = {**headers, "Content-Type": "application/json"}
    return client.post("/api/usage/events", content=text, headers=sent)


def written(served: Served, event_id: str) -> tuple[Any, ...]:
    rows = served.source.query(
        "select user_id::text, org_id::text, event_type, event_data::text, quantity,"
        " created_at::text from usage_events where id = %s",
        [event_id],
    )
    return rows[0] if rows else ()


def test_one_event_is_written_as_it_was_sent(
    taking: Served, client: TestClient, key: dict[str, str]
) -> None:
    sent = event(org_id=str(ACME), event_data={"b": [1, {"c": None}], "a": "é\u2028"})
    answer = send(client, key, sent)
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 1,
        "duplicates": 0,
        "rejected": 0,
        "results": [{"index": 0, "id": sent["id"], "status": "accepted"}],
    }
    assert written(taking, sent["id"]) == (
        str(MEMBER),
        str(ACME),
        "api_call",
        '{"a": "é\u2028", "b": [1, {"c": null}]}',
        Decimal(1),
        "2025-05-03 10:15:00+00",
    )


@pytest.mark.parametrize(
    ("quantity", "exact"),
    [
        ("0.1", "0.1"),
        ('"0.1"', "0.1"),
        ("12345678901234567890123456789.123456789", "12345678901234567890123456789.123456789"),
        ("99999999999999999999999999999.999999999", "99999999999999999999999999999.999999999"),
        ("-3.250", "-3.250"),
        ("1e28", "10000000000000000000000000000"),
        ("0.0000000010000000000000000000", "0.0000000010000000000000000000"),
        ("0e999", "0"),
        ("-0", "0"),
        ("0.30000000000000004", "0.30000000000000004"),
        ('"1E+5"', "100000"),
        ("5e-324", "5e-324"),
        ("99999999999999999999999999999.9999999995", None),
        ("1e29", None),
        ("100000000000000000000000000000", None),
        ("1e-2000", None),
        ("0." + "1" * 2000, None),
        ('"NaN"', None),
        ('"1_0"', None),
        ('" 1"', None),
        ('"١"', None),
        ("true", None),
        ("null", None),
        ("[]", None),
        ("1" * 5000, None),
        ("1e999999999", None),
    ],
)
def test_quantities_are_exact_or_refused(
    taking: Served, client: TestClient, key: dict[str, str], quantity: str, exact: str | None
) -> None:
    sent = event()
    text = json.dumps(sent)[:-1] + f', "quantity": {quantity}}}'
    answer = send_text(client, key, text)
    if exact is None:
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["quantity"]
        assert written(taking, sent["id"]) == ()
    else:
        assert answer.status_code == 200, answer.text
        assert written(taking, sent["id"])[4] == Decimal(exact)


def test_a_moment_is_the_instant_that_it_says(
    taking: Served, client: TestClient, key: dict[str, str]
) -> None:
    for said, instant in (
        ("2025-05-03T23:15:00.123456789-05:30", "2025-05-04 04:45:00.123456+00"),
        ("2025-05-03T23:15:00+20:08", "2025-05-03 03:07:00+00"),
    ):
        sent = event(created_at=said)
        assert send(client, key, sent).json()["accepted"] == 1
        assert written(taking, sent["id"])[5] == instant


def test_numbers_in_event_data_are_exact(
    taking: Served, client: TestClient, key: dict[str, str]
) -> None:
    sent = event()
    data = '{"a": 1.10, "b": 123456789012345678901234567890.5, "c": 1e3}'
    assert send_text(client, key, json.dumps(sent)[:-1] + f', "event_data": {data}}}').is_success
    assert written(taking, sent["id"])[3] == (
        '{"a": 1.10, "b": 123456789012345678901234567890.5, "c": 1000}'
    )


def test_the_same_id_counts_once(taking: Served, client: TestClient, key: dict[str, str]) -> None:
    first = event(quantity=1)
    again = {**first, "quantity": 2, "event_type": "other"}
    answer = send(client, key, [first, again, event(), first]).json()
    assert [r["status"] for r in answer["results"]] == [
        "accepted",
        "duplicate",
        "accepted",
        "duplicate",
    ]
    assert (answer["accepted"], answer["duplicates"], answer["rejected"]) == (2, 2, 0)
    assert send(client, key, again).json()["results"][0]["status"] == "duplicate"
    assert written(taking, first["id"])[2:5:2] == ("api_call", Decimal(1))
    upper = {**first, "id": first["id"].upper()}
    assert send(client, key, upper).json()["duplicates"] == 1


@pytest.mark.parametrize(
    ("changed", "loc"),
    [
        ({"event_type": "absent"}, "event_type"),
        ({"event_type": ""}, "event_type"),
        ({"event_type": "API"}, "event_type"),
        ({"event_type": "a\n"}, "event_type"),
        ({"event_type": "a" * 101}, "event_type"),
        ({"event_type": 1}, "event_type"),
        ({"user_id": "absent"}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": "1"}, "user_id"),
        ({"user_id": f"urn:uuid:{MEMBER}"}, "user_id"),
        ({"id": "x"}, "id"),
        ({"id": None}, "id"),
        ({"org_id": "x"}, "org_id"),
        ({"created_at": "2025-05-03"}, "created_at"),
        ({"created_at": "2025-05-03T10:15:00"}, "created_at"),
        ({"created_at": 1714729200}, "created_at"),
        ({"created_at": "1969-12-31T00:00:00Z"}, "created_at"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "created_at"),
        ({"created_at": "2999-01-01T00:00:00Z"}, "created_at"),
        ({"created_at": "2025-02-30T00:00:00Z"}, "created_at"),
        ({"event_data": []}, "event_data"),
        ({"event_data": {"a": "x" * 16_384}}, "event_data"),
        ({"event_data": {"a": "\x00"}}, "event_data"),
        ({"event_data": {"\ud800": 1}}, "event_data"),
        ({"event_data": {"a": DEEP}}, "event_data"),
        ({"userId": "x"}, "userId"),
        ({"x" * 1000: "x"}, "x" * 100),
    ],
)
def test_an_event_that_is_not_valid_is_named_and_the_others_are_written(
    taking: Served, client: TestClient, key: dict[str, str], changed: dict[str, Any], loc: str
) -> None:
    good, bad = event(), event(**changed)
    one = send(client, key, bad)
    assert one.status_code == 422
    assert one.headers["content-type"] == "application/problem+json"
    assert one.json()["errors"][0]["loc"][0] == loc
    both = send(client, key, [bad, good]).json()
    assert [r["status"] for r in both["results"]] == ["rejected", "accepted"]
    assert both["results"][0]["error"]["errors"][0]["loc"][0] == loc
    assert written(taking, good["id"])


def test_a_name_that_is_no_text_is_refused(client: TestClient, key: dict[str, str]) -> None:
    bad = {**event(), "\ud800": 1}
    assert send(client, key, bad).status_code == 422
    assert send(client, key, [bad]).json()["rejected"] == 1


@pytest.mark.parametrize("number", ["1e9999", "1e-9999"])
def test_numbers_that_nobody_reads_stay_out(
    client: TestClient, key: dict[str, str], number: str
) -> None:
    text = json.dumps(event())[:-1] + f', "event_data": {{"a": {number}}}}}'
    assert send_text(client, key, text).status_code == 422


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 422),
        ("{", 422),
        ("nonsense", 422),
        ("null", 422),
        ("1", 422),
        ('"x"', 422),
        ("[]", 422),
        ('{"event_type": NaN}', 422),
        (b"\xff\xfe", 422),
        ("[" * 100_000, 422),
        ("[" * 400_000 + "]" * 400_000, 422),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, 422),
        ("1" * 900_000, 422),
        (json.dumps([{}] * 1001), 422),
        (" " * (1024 * 1024 + 1), 413),
    ],
)
def test_a_body_that_is_no_events_is_refused(
    client: TestClient, key: dict[str, str], text: str | bytes, status: int
) -> None:
    answer = send_text(client, key, text)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_in_pieces_is_measured_as_it_comes(client: TestClient, key: dict[str, str]) -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b" " * 65_536

    answer = client.post(
        "/api/usage/events",
        content=pieces(),
        headers={**key, "Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def test_only_json_is_read(client: TestClient, key: dict[str, str]) -> None:
    answer = client.post("/api/usage/events", data={"event_type": "a"}, headers=key)
    assert answer.status_code == 415


def test_a_user_logs_own_use_and_takes_none_back(taking: Served, client: TestClient) -> None:
    own = event(user_id="absent", org_id=str(ACME))
    assert send(client, by_token(MEMBER), own).json()["accepted"] == 1
    assert written(taking, own["id"])[:2] == (str(MEMBER), str(ACME))
    for sender, refused in (
        (MEMBER, event(user_id=str(STRANGER))),
        (MEMBER, event(quantity=-1)),
        (MEMBER, event(quantity="1000000000000000001")),  # a few of 29 digits make no total
        (STRANGER, event(user_id=str(STRANGER), org_id=str(ACME))),
        (ADMIN, event(user_id=str(MEMBER))),
    ):
        answer = send(client, by_token(sender, app_metadata={"role": "admin"}), refused)
        assert answer.status_code == 403, refused
        in_a_batch = send(client, by_token(sender), [refused]).json()["results"][0]
        assert (in_a_batch["status"], in_a_batch["error"]["status"]) == ("rejected", 403)
        assert written(taking, refused["id"]) == ()


def test_unknown_types_are_the_pipelines_to_judge(
    taking: Served, client: TestClient, key: dict[str, str]
) -> None:
    sent = event(event_type="of.tomorrow-1")
    assert send(client, key, sent).json()["accepted"] == 1
    assert written(taking, sent["id"])[2] == "of.tomorrow-1"


def test_tokens_are_an_event_of_their_own(
    taking: Served, client: TestClient, key: dict[str, str]
) -> None:
    sent = {"id": str(uuid4()), "tokens": 1200, "model": "gpt-4o", "user_id": str(MEMBER)}
    answer = client.post("/api/usage/ai", json=sent, headers=key)
    assert answer.json()["results"] == [{"index": 0, "id": sent["id"], "status": "accepted"}]
    assert written(taking, str(sent["id"]))[2:5] == (
        "ai_tokens_used",
        '{"model": "gpt-4o"}',
        Decimal(1200),
    )
    for wrong in ({"tokens": "x"}, {"model": ""}, {"model": None}, {"event_type": "a"}):
        answer = client.post("/api/usage/ai", json={**sent, **wrong}, headers=key)
        assert answer.status_code == 422, wrong
    assert client.post("/api/usage/ai", json=[sent], headers=key).status_code == 422


def test_what_the_source_refuses_is_named_and_the_rest_written(
    taking: Served, client: TestClient, key: dict[str, str]
) -> None:
    taking.source.execute(
        "alter table usage_events add constraint known check (event_type <> 'refused') not valid"
    )
    try:
        sent = [event(event_type="refused" if n in (3, 4, 17) else "api_call") for n in range(20)]
        answer = send(client, key, sent).json()
        refused = [r["index"] for r in answer["results"] if r["status"] == "rejected"]
        assert refused == [3, 4, 17]
        assert (answer["accepted"], answer["rejected"]) == (17, 3)
        for index, each in enumerate(sent):
            assert bool(written(taking, each["id"])) == (index not in refused)
        assert send(client, key, sent[3]).status_code == 422
    finally:
        taking.source.execute("alter table usage_events drop constraint known")


def test_the_role_may_insert_and_no_more(taking: Served) -> None:
    url = taking.settings.ingest_database_url
    assert url
    for statement in (
        "select quantity from usage_events",
        "delete from usage_events",
        "update usage_events set quantity = 0",
        "select 1 from users",
    ):
        connection = psycopg2.connect(url.get_secret_value())
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), connection.cursor() as cursor:
            cursor.execute(statement)
        connection.close()


def test_doctor_tells_whether_the_roles_may(taking: Served, served: Served) -> None:
    def found(**variables: SecretStr) -> dict[str, tuple[bool, str]]:
        settings = taking.settings.model_copy(update=variables)
        return {f.what: (f.ok, f.detail) for f in examine(settings)}

    assert found()["ingestion"] == (True, "may insert events")
    taking.source.execute("revoke select (id) on usage_events from usage_ingest")
    try:
        ok, said = found()["ingestion"]
        assert not ok
        assert "permission denied for table usage_events" in said
    finally:
        taking.source.execute("grant select (id) on usage_events to usage_ingest")
    pages = found(
        publish_database_url=SecretStr(served.source.url),
        web_database_url=SecretStr(served.source.url.replace("postgres@", "usage_ingest@")),
    )["usage pages"]
    assert pages == (False, "USAGE_WEB_DATABASE_URL may not read the schema usage")
    readers = SecretStr(served.source.url.replace("postgres@", "dashboard@"))
    pages = found(
        publish_database_url=SecretStr(served.source.url),
        web_database_url=readers,
    )["usage pages"]
    assert pages[0], pages


def test_without_a_role_events_are_not_taken(serve: ServedFactory) -> None:
    served = serve(USAGE_INGEST_DATABASE_URL="")
    with served.client() as client:
        answer = send(client, by_token(MEMBER), event())
        assert answer.status_code == 503
        assert answer.headers["retry-after"]


def test_a_source_that_is_away_is_said_with_when_to_come_again(serve: ServedFactory) -> None:
    served = serve(USAGE_INGEST_DATABASE_URL="postgresql://usage@127.0.0.1:9/app")
    with served.client() as client:
        answer = send(client, bearer(served.key("events:write")), [event()])
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "127.0.0.1" not in answer.text
