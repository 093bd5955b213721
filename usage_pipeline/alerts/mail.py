"""E-mail: a message to one person, by SMTP.

An address is read from the source when the mail leaves. It is in the mail and in the conversation
with the mail server, and nowhere else: what that server says repeats addresses, so only its code
is kept.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from decimal import Decimal
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import UUID

from usage_pipeline.alerts.events import LIMIT_EXCEEDED, LIMIT_RESOLVED, LIMIT_WARNING, spelled
from usage_pipeline.alerts.outbox import Delivery, Outcome
from usage_pipeline.infra.outbound import time_limit
from usage_pipeline.settings import MAIL_ADDRESS, Settings

# Of these people are told; totals and anomalies are for systems.
SUBJECTS = {
    LIMIT_WARNING: "{metric_type}: {percent} % of the limit used",
    LIMIT_EXCEEDED: "{metric_type}: {percent} % of the limit reached",
    LIMIT_RESOLVED: "{metric_type}: below {percent} % of the limit again",
}
CONNECT_SECONDS = 10.0
MAIL_SECONDS = 30.0  # for all of one mail's conversation
_PORTS = {"smtp": 25, "smtps": 465}
_LONGEST_NAME = 100
_PERMANENT = 500  # codes from here on will not be others tomorrow


class NoServer(Exception):
    """The mail server cannot be used; why, without what it said."""


@contextmanager
def connected(settings: Settings) -> Iterator[smtplib.SMTP]:
    """A conversation with the mail server, logged in.

    Raises:
        NoServer: it cannot be reached, or refuses.
    """
    assert settings.smtp_url
    url = urlsplit(settings.smtp_url.get_secret_value())
    host, port = str(url.hostname), url.port or _PORTS[url.scheme]
    tls = ssl.create_default_context()
    with ExitStack() as stack:
        try:
            server = (
                smtplib.SMTP_SSL(host, port, timeout=CONNECT_SECONDS, context=tls)
                if url.scheme == "smtps"
                else smtplib.SMTP(host, port, timeout=CONNECT_SECONDS)
            )
            stack.callback(server.close)
            _log_in(server, url, tls)
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise NoServer(_in_words(error)) from None
        yield server
        with suppress(smtplib.SMTPException, OSError):
            server.quit()


def _log_in(server: smtplib.SMTP, url: SplitResult, tls: ssl.SSLContext) -> None:
    encrypted = isinstance(server, smtplib.SMTP_SSL)
    with _time_limit(server):
        server.ehlo()
        if not encrypted and server.has_extn("starttls"):
            server.starttls(context=tls)
            encrypted = True
    if url.username:
        if not encrypted:
            raise NoServer("it offers no encryption for the password")
        with _time_limit(server):
            server.login(unquote(url.username), unquote(url.password or ""))


def _time_limit(server: smtplib.SMTP) -> AbstractContextManager[Any]:
    assert server.sock
    return time_limit(server.sock, MAIL_SECONDS)


def deliver(
    settings: Settings,
    deliveries: Sequence[Delivery],
    addresses: Mapping[UUID, str],
    *,
    org_names: Mapping[UUID, str],
    managers: Collection[tuple[UUID, UUID]],
    may_go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Outcome]:
    """Send messages to people, one after the other, and say how each went.

    Args:
        addresses: of the users that have one and are not deleted.
        managers: organisation and user of its owners and admins, as it is now.
        may_go_on: asked before each; when not, the rest have no outcome.
    """
    usable = []
    for delivery in deliveries:
        if not settings.smtp_url:
            yield Outcome(delivery, "skipped", "no mail server is set any more")
        elif why := _unusable(delivery, addresses, managers):
            yield Outcome(delivery, "skipped", why)
        else:
            usable.append(delivery)
    if not usable:
        return
    done = 0
    try:
        with connected(settings) as server:
            for delivery in usable:
                if not may_go_on():
                    return
                address = addresses[delivery.recipient_id]
                name = org_names.get(delivery.org_id, "") if delivery.org_id else ""
                yield _send(settings, server, delivery, address, name)
                done += 1
    except NoServer as error:
        why = f"the mail server: {error}"
        yield from (Outcome(delivery, "failed", why) for delivery in usable[done:])


def _unusable(
    delivery: Delivery, addresses: Mapping[UUID, str], managers: Collection[tuple[UUID, UUID]]
) -> str | None:
    user = delivery.recipient_id
    if user not in addresses:
        return "the user is deleted or has no address"
    if delivery.user_id is None and (delivery.org_id, user) not in managers:
        return "the user is no longer an owner or admin"
    return None if MAIL_ADDRESS.fullmatch(addresses[user]) else "the user's address is none"


def _send(
    settings: Settings, server: smtplib.SMTP, delivery: Delivery, address: str, org_name: str
) -> Outcome:
    """Send one mail.

    Raises:
        NoServer: the conversation broke off.
    """
    mail = compose(settings, delivery, address, org_name)
    try:
        with _time_limit(server):
            server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        ((code, _),) = error.recipients.values()
        return _refused(delivery, code)
    except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
        return _refused(delivery, error.smtp_code)
    except smtplib.SMTPNotSupportedError:
        return Outcome(delivery, "dead", "the mail server takes no such address")
    except (smtplib.SMTPException, OSError) as error:
        raise NoServer(_in_words(error)) from None
    return Outcome(delivery, "delivered")


def _refused(delivery: Delivery, code: int) -> Outcome:
    why = f"the mail server refused it with {code}"
    return Outcome(delivery, "dead" if code >= _PERMANENT else "failed", why)


def compose(settings: Settings, delivery: Delivery, address: str, org_name: str) -> EmailMessage:
    """The mail of a message to one person."""
    subject, text = _words(delivery.event_type, delivery.payload, org_name)
    mail = EmailMessage()
    mail["Subject"] = subject
    for header, whose in (("To", address), ("From", str(settings.mail_from))):
        user, _, domain = whose.partition("@")
        mail[header] = Address(username=user, domain=domain)
    mail["Date"] = format_datetime(delivery.created_at)
    # The same at each attempt: mail programs show a mail once that comes twice.
    mail["Message-ID"] = f"<{delivery.message_id.hex}.{delivery.recipient_id.hex[:8]}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text)
    return mail


def _words(event_type: str, payload: Mapping[str, Any], org_name: str) -> tuple[str, str]:
    """Subject and text."""
    percent = spelled(Decimal(payload["threshold"]) * 100)
    metric, plan, org = (
        _one_line(it) for it in (payload["metric_type"], payload["plan"], org_name)
    )
    whose = {"user": "Your personal usage", "member": "Your usage", "org": "Usage"}
    where = f" in {org or 'your organisation'}" if payload["org_id"] else ""
    lines = [
        f"{whose[payload['scope']]}{where}, {payload['month'][:7]}, up to {payload['usage_date']}:",
        "",
        f"{metric}: {payload['used_quantity'] or 'unknown'} "
        f"of {payload['limit_quantity'] or 'unlimited'}",
    ]
    if plan:
        lines.append(f"Plan: {plan}")
    return SUBJECTS[event_type].format(metric_type=metric, percent=percent), "\n".join(lines) + "\n"


def _one_line(text: str | None) -> str:
    """Of the application, whose users may have chosen it."""
    return " ".join((text or "").split())[:_LONGEST_NAME]


def _in_words(error: Exception) -> str:
    """What went wrong, in words of ours, since the server's repeat addresses."""
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"it refuses the login with {error.smtp_code}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"it refuses with {error.smtp_code}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not valid"
    if isinstance(error.__context__ or error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, (smtplib.SMTPException, ssl.SSLError)):
        return "the conversation broke off"
    return "it cannot be reached"
