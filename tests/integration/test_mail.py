"""E-mails to a real mail server, from people and organisations of a real source."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from receivers import MailReceiver, receiving_mail
from support import AppDatabase

from usage_pipeline.alerts import mail, outbox
from usage_pipeline.alerts.delivery import deliver
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.operations.doctor import examine
from usage_pipeline.settings import Settings

ACME = UUID(int=1)
OWNER, ADMIN, MEMBER, DELETED, NAMELESS, ALONE = (UUID(int=number) for number in range(11, 17))
CERTIFICATE = Path(__file__).parents[1] / "tls" / "example.pem"


@pytest.fixture(scope="module")
def source(new_database: Any) -> AppDatabase:
    return new_database()


@pytest.fixture(scope="module")
def server() -> Iterator[MailReceiver]:
    with receiving_mail() as made:
        yield made


@pytest.fixture
def settings(source: AppDatabase, make_settings: Any, server: MailReceiver) -> Settings:
    source.execute("truncate users, orgs, org_members, org_webhooks")
    source.execute("drop schema if exists usage cascade")
    server.mails.clear()
    server.answers.clear()
    then = "2026-01-01Z"
    people = {
        OWNER: "owner@example.com",
        ADMIN: "ädmin@example.com",
        MEMBER: "member@example.com",
        ALONE: "alone@example.com",
        NAMELESS: None,
        DELETED: "deleted@example.com",
    }
    source.insert("users", [(str(i), email, then, None) for i, email in people.items()])
    source.execute("update users set deleted_at = now() where id = %s", [str(DELETED)])
    source.insert("orgs", [(str(ACME), "Acme\r\nBcc: eve@example.com", then, None)])
    roles = {OWNER: "owner", ADMIN: "admin", MEMBER: "member", DELETED: "owner", NAMELESS: "admin"}
    source.insert(
        "org_members", [(str(ACME), str(person), role, then) for person, role in roles.items()]
    )
    return mailing(make_settings, source, server.url)


def mailing(make_settings: Any, source: AppDatabase, url: str) -> Settings:
    made: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url,
        USAGE_MAIL_FROM="usage@example.com",
        USAGE_SMTP_URL=url,
    )
    return made


def add(
    settings: Settings,
    org: UUID | None = ACME,
    user: UUID | None = None,
    event_type: str = "usage.limit_exceeded",
) -> UUID:
    payload = {
        "scope": "org" if user is None else "member" if org else "user",
        "user_id": user,
        "org_id": org,
        "metric_type": "api_call",
        "month": "2026-05-01",
        "threshold": "1",
        "used_quantity": "110.50",
        "limit_quantity": "95",
        "plan": "team",
        "usage_date": "2026-05-12",
        "snapshot_id": "a-snapshot",
    }
    message = Message(event_type, f"{event_type} {org} {user}", org, user, payload)
    with outbox.opened(settings) as cursor:
        outbox.add(cursor, settings.publish_schema, [message])
    return message.message_id


def states(source: AppDatabase) -> dict[UUID, tuple[str, str | None]]:
    rows = source.query("select recipient_id, state, reason from usage.outbox_deliveries")
    return {UUID(person): (state, reason) for person, state, reason in rows}


def test_owners_and_admins_are_told_of_their_organisation(
    source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    message_id = add(settings)
    assert deliver(settings).delivered == 2
    told = {address: sent for (address,), sent in server.mails}
    assert told.keys() == {"owner@example.com", "ädmin@example.com"}
    sent = told["owner@example.com"]
    assert sent["From"] == "usage@example.com"
    assert sent["To"] == "owner@example.com"
    assert sent["Subject"] == "api_call: 100 % of the limit reached"
    assert sent["Message-ID"] == f"<{message_id.hex}.{OWNER.hex[:8]}@example.com>"
    assert sent["Auto-Submitted"] == "auto-generated"
    assert sent["Bcc"] is None
    assert sent.get_content().splitlines() == [
        "Usage in Acme Bcc: eve@example.com, 2026-05, up to 2026-05-12:",
        "",
        "api_call: 110.5 of 95",
        "Plan: team",
    ]
    nobody = ("skipped", "the user is deleted or has no address")
    assert states(source) == {
        OWNER: ("delivered", None),
        ADMIN: ("delivered", None),
        DELETED: nobody,
        NAMELESS: nobody,
    }


@pytest.mark.parametrize(("org", "user"), [(None, ALONE), (ACME, MEMBER)])
def test_a_person_is_told_of_their_own_usage(
    org: UUID | None, user: UUID, source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    add(settings, org, user)
    deliver(settings)
    assert states(source) == {user: ("delivered", None)}
    (((address,), _),) = server.mails
    assert address == {ALONE: "alone@example.com", MEMBER: "member@example.com"}[user]


def test_nobody_is_mailed_of_totals(
    source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    message = Message(
        "usage.test", "a test", ACME, None, {"org_id": ACME, "webhook_id": UUID(int=9)}
    )
    with outbox.opened(settings) as cursor:
        outbox.add(cursor, settings.publish_schema, [message])
    report = deliver(settings)
    assert (report.addressed, states(source), server.mails) == (1, {}, [])


def test_who_is_no_owner_any_more_is_not_told(
    source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    server.answers["owner@example.com"] = "451 come back, owner@example.com"
    add(settings)
    deliver(settings)
    assert states(source)[OWNER] == ("waiting", "the mail server refused it with 451")
    source.execute("update org_members set role = 'member'")
    source.execute("update usage.outbox_deliveries set due_at = now()")
    deliver(settings)
    assert states(source)[OWNER] == ("skipped", "the user is no longer an owner or admin")
    assert [address for (address,), _ in server.mails] == ["ädmin@example.com"]


def test_a_refused_address_is_not_kept(
    source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    server.answers["alone@example.com"] = "550 no such user alone@example.com here"
    add(settings, None, ALONE)
    assert deliver(settings).dead == 1
    assert states(source) == {ALONE: ("dead", "the mail server refused it with 550")}
    kept = source.query("select deliveries::text from usage.outbox_deliveries as deliveries")
    kept += source.query("select messages::text from usage.outbox_messages as messages")
    assert "@" not in str(kept)


@pytest.mark.parametrize(
    "address",
    [
        "alone@example.com\r\nBcc: eve@example.com",
        "alone@example.com, eve@example.com",
        "Alone <alone@example.com>",
        "alone",
        "@",
        " ",
    ],
)
def test_an_address_that_is_none_gets_no_mail(
    address: str, source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    source.execute("update users set email = %s where id = %s", [address, str(ALONE)])
    add(settings, None, ALONE)
    deliver(settings)
    assert (states(source)[ALONE][0], server.mails) == ("skipped", [])


def test_without_a_mail_server_nobody_is_mailed_also_later(
    source: AppDatabase, settings: Settings, server: MailReceiver, make_settings: Any
) -> None:
    without: Settings = make_settings(USAGE_APP_DATABASE_URL=source.url)
    add(settings)
    assert deliver(without).addressed == 1
    assert deliver(settings).delivered == 0
    assert server.mails == []


def test_mails_that_wait_when_the_server_is_unset_are_not_sent(
    source: AppDatabase, settings: Settings, server: MailReceiver, make_settings: Any
) -> None:
    server.answers["alone@example.com"] = "451 later"
    add(settings, None, ALONE)
    deliver(settings)
    source.execute("update usage.outbox_deliveries set due_at = now()")
    deliver(make_settings(USAGE_APP_DATABASE_URL=source.url))
    assert states(source) == {ALONE: ("skipped", "no mail server is set any more")}


def test_a_message_that_cannot_be_written_keeps_no_other_back(
    source: AppDatabase, settings: Settings, server: MailReceiver
) -> None:
    broken = add(settings, None, ALONE)
    source.execute("update usage.outbox_messages set payload = '{}'")
    add(settings, ACME, MEMBER)
    deliver(settings)
    for _ in range(50):  # until the good one comes first
        if server.mails:
            break
        source.execute("update usage.outbox_deliveries set due_at = now(), attempts = 1")
        deliver(settings)
    assert [address for (address,), _ in server.mails] == ["member@example.com"]
    assert states(source) == {
        ALONE: ("waiting", "a KeyError of ours"),
        MEMBER: ("delivered", None),
    }
    assert source.query(
        "select message_id from usage.outbox_deliveries where state = 'waiting'"
    ) == [(str(broken),)]


def test_a_password_is_sent_encrypted_only(
    source: AppDatabase, settings: Settings, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving_mail(auth_require_tls=False) as plain:
        url = plain.url.replace("//", "//usage:p%40ss%3Aword@")
        add(settings, None, ALONE)
        deliver(mailing(make_settings, source, url))
        why = "the mail server: it offers no encryption for the password"
        assert states(source) == {ALONE: ("waiting", why)}
        assert (plain.logins, plain.mails) == ([], [])


@pytest.fixture
def named(source: AppDatabase, monkeypatch: pytest.MonkeyPatch) -> AppDatabase:
    """The source, while mail.example.com is this machine, with a certificate that is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    original = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kwargs: original(
            "127.0.0.1" if host == "mail.example.com" else host, *args, **kwargs
        ),
    )
    return source


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
@pytest.mark.parametrize("password", ["p%40ss%3Aword", "wrong"])
def test_the_server_is_logged_in_to_by_tls(
    scheme: str, password: str, settings: Settings, make_settings: Any, named: AppDatabase
) -> None:
    source = named
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    options: dict[str, Any] = {"smtp": {"tls_context": context}, "smtps": {"ssl_context": context}}[
        scheme
    ]
    if scheme == "smtps":
        options["auth_require_tls"] = False  # it does not know that it is encrypted
    with receiving_mail(**options) as server:
        url = server.url.replace("smtp:", f"{scheme}:").replace(
            "127.0.0.1", f"usage:{password}@mail.example.com"
        )
        add(settings, None, ALONE)
        deliver(mailing(make_settings, source, url))
        if password == "wrong":
            why = "the mail server: it refuses the login with 535"
            assert (states(source), server.mails) == ({ALONE: ("waiting", why)}, [])
        else:
            assert states(source) == {ALONE: ("delivered", None)}
            assert server.logins == [(b"usage", b"p@ss:word")]


def test_a_certificate_of_nobody_is_refused(
    source: AppDatabase, settings: Settings, make_settings: Any
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with receiving_mail(tls_context=context) as server:
        add(settings, None, ALONE)
        deliver(mailing(make_settings, source, server.url))
        assert states(source) == {
            ALONE: ("waiting", "the mail server: its certificate is not valid")
        }


def test_a_server_that_is_away_or_hangs_costs_one_attempt(
    source: AppDatabase,
    settings: Settings,
    make_settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mail, "CONNECT_SECONDS", 0.3)
    add(settings, None, ALONE)
    add(settings, ACME, MEMBER)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        deliver(mailing(make_settings, source, f"smtp://127.0.0.1:{port}"))
    hung = ("waiting", "the mail server: it did not answer in time")
    assert states(source) == {ALONE: hung, MEMBER: hung}
    source.execute("update usage.outbox_deliveries set due_at = now()")
    deliver(mailing(make_settings, source, f"smtp://127.0.0.1:{port}"))
    away = ("waiting", "the mail server: it cannot be reached")
    assert states(source) == {ALONE: away, MEMBER: away}
    assert source.query("select distinct attempts from usage.outbox_deliveries") == [(2,)]


def test_doctor_asks_the_mail_server(
    source: AppDatabase, settings: Settings, make_settings: Any
) -> None:
    def of_mail(settings: Settings) -> list[tuple[bool, str]]:
        found = [
            f for f in examine(settings) if f.what in ("mail server", "source table user_emails")
        ]
        return [(finding.ok, finding.detail) for finding in found]

    fine = mailing_everything(settings, make_settings, source)
    assert of_mail(fine) == [(True, "readable"), (True, "answers")]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    away = mailing_everything(settings, make_settings, source, f"smtp://127.0.0.1:{port}")
    assert of_mail(away)[1] == (False, "The mail server of USAGE_SMTP_URL: it cannot be reached")
    without = make_settings(USAGE_APP_DATABASE_URL=source.url, DAGSTER_PG_URL=source.url)
    assert of_mail(without) == []


def mailing_everything(
    settings: Settings, make_settings: Any, source: AppDatabase, url: str = ""
) -> Settings:
    assert settings.smtp_url
    made: Settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url,
        DAGSTER_PG_URL=source.url,
        USAGE_MAIL_FROM="usage@example.com",
        USAGE_SMTP_URL=url or settings.smtp_url.get_secret_value(),
    )
    return made
