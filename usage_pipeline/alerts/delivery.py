"""The deliverer: gives messages their recipients, and sends what is due until nothing is.

Each endpoint's messages go one after the other in a thread of their own, and so do mails; one that
hangs holds up its own. The main thread alone talks to the databases: it leases, hands out, and
writes down what the threads report, a moment after it happened. What a killed deliverer had sent
and not written down is sent again when its lease is over, under the same id.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Event
from uuid import UUID, uuid4

from psycopg2.extensions import cursor as Cursor

from usage_pipeline.alerts import mail, outbox, webhooks
from usage_pipeline.alerts.outbox import MAIL, WEBHOOK, Delivery, Outcome, State
from usage_pipeline.app_db.recipients import (
    ADDRESSES,
    WEBHOOKS,
    Endpoint,
    Recipients,
    open_recipients,
)
from usage_pipeline.settings import Settings

ENDPOINTS_AT_ONCE = 64
MAILS_AT_ONCE = 2  # conversations with the mail server
A_TURN = 50  # messages leased together
ADDRESSED_TOGETHER = 10_000
RUN_SECONDS = 600.0  # what is due after that, or comes due meanwhile, is for the next run
_RECORD_SECONDS = 0.2
# No attempt begins that could outlast its lease.
_TURN_SECONDS = outbox.LEASE.total_seconds() - 60.0

Progress = Callable[[str, int, int], None]


@dataclass
class DeliveryReport:
    """Figures of one run.

    Attributes:
        addressed: messages that got their recipients.
        delivered: messages, once for each recipient.
        failed: attempts that will be repeated.
        dead: given up: refused for good, or too often.
        skipped: not to be sent any more: the recipient is gone.
        reasons: how often each was given.
        seconds: of the whole run.
    """

    addressed: int = 0
    delivered: int = 0
    failed: int = 0
    dead: int = 0
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, outcome: Outcome) -> None:
        """Add one outcome."""
        if outcome.end != "postponed":
            self.add(outcome.state, outcome.reason)

    def add(self, state: State, reason: str | None, number: int = 1) -> None:
        """Add attempts that came to a state."""
        self.delivered += number * (state == "delivered")
        self.failed += number * (state == "waiting")
        self.dead += number * (state == "dead")
        self.skipped += number * (state == "skipped")
        if reason:
            self.reasons[reason] += number


def deliver(
    settings: Settings, progress: Progress = lambda what, done, total: None
) -> DeliveryReport:
    """Send what is due, until nothing is or `RUN_SECONDS` have passed.

    Safe to run beside itself, and to kill.

    Raises:
        UsagePipelineError: a database fails. What no endpoint takes is no error, but reported.
    """
    started = time.perf_counter()
    with outbox.opened(settings) as cursor, open_recipients(settings) as source:
        cursor.connection.commit()
        source.note_schema(WEBHOOKS)
        if settings.smtp_url:
            source.note_schema(ADDRESSES)
        run = _Run(settings, cursor, source, progress)
        run.until_nothing_is_due()
    run.report.seconds = round(time.perf_counter() - started, 3)
    return run.report


class _Run:
    def __init__(
        self, settings: Settings, cursor: Cursor, source: Recipients, progress: Progress
    ) -> None:
        self.report = DeliveryReport()
        self._settings = settings
        self._schema = settings.publish_schema
        self._cursor = cursor
        self._source = source
        self._progress = progress
        self._lease = uuid4()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._unwritten: list[Outcome] = []
        self._busy: dict[
            Future[Outcome | None], UUID | None
        ] = {}  # with the endpoint; None for mails
        self._unwilling: set[UUID] = set()  # endpoints of which nothing came; for another run
        self._stopped = Event()

    def until_nothing_is_due(self) -> None:
        try:
            with ThreadPoolExecutor(ENDPOINTS_AT_ONCE + MAILS_AT_ONCE) as threads:
                try:
                    self._send_with(threads)
                finally:
                    self._stopped.set()
        except BaseException:
            # What the threads sent has arrived, whatever happened here.
            with suppress(Exception):
                self._cursor.connection.rollback()
                self._record()
            raise

    def _send_with(self, threads: ThreadPoolExecutor) -> None:
        until = time.monotonic() + RUN_SECONDS
        while True:
            turns = self._turns() if time.monotonic() < until else []
            self._cursor.connection.commit()  # the leases, before anything is sent
            for recipient, turn in turns:
                self._busy[threads.submit(self._take, turn)] = recipient
            if not self._busy:
                return
            done, _ = wait(self._busy, _RECORD_SECONDS, FIRST_COMPLETED)
            for future in done:
                webhook, refused = self._busy.pop(future), future.result()
                if webhook and refused:
                    self._refuse_all(webhook, refused)
            self._record()

    def _turns(self) -> list[tuple[UUID | None, Turn]]:
        """Lease what is due, as far as threads are free for it."""
        while self._address() == ADDRESSED_TOGETHER:
            self._cursor.connection.commit()
        busy = {webhook for webhook in self._busy.values() if webhook}
        but, free = busy | self._unwilling, ENDPOINTS_AT_ONCE - len(busy)
        webhooks_due = outbox.due_webhooks(self._cursor, self._schema, but, free) if free else []
        endpoints = self._source.endpoints(webhooks_due)
        turns: list[tuple[UUID | None, Turn]] = []
        for webhook in webhooks_due:
            if claimed := self._claim(WEBHOOK, webhook):
                turns.append((webhook, self._posts(endpoints.get(webhook), claimed)))
        for _ in range(MAILS_AT_ONCE - (len(self._busy) - len(busy))):
            if claimed := self._claim(MAIL):
                turns.append((None, self._mails(claimed)))
        return turns

    def _claim(self, channel: str, recipient: UUID | None = None) -> list[Delivery]:
        return outbox.claim(
            self._cursor,
            self._schema,
            self._lease,
            channel=channel,
            limit=A_TURN,
            recipient=recipient,
        )

    def _posts(self, endpoint: Endpoint | None, claimed: list[Delivery]) -> Turn:
        networks = self._settings.webhook_networks or ()
        return Turn(
            claimed, lambda may_go_on: webhooks.deliver(endpoint, claimed, networks, may_go_on)
        )

    def _mails(self, claimed: list[Delivery]) -> Turn:
        orgs = {delivery.org_id for delivery in claimed if delivery.org_id}
        addresses = self._source.addresses({delivery.recipient_id for delivery in claimed})
        names, managers = self._source.org_names(orgs), self._source.managers(orgs)
        return Turn(
            claimed,
            lambda may_go_on: mail.deliver(
                self._settings,
                claimed,
                addresses,
                org_names=names,
                managers=managers,
                may_go_on=may_go_on,
            ),
        )

    def _take(self, turn: Turn) -> Outcome | None:
        """In a thread of its own: report each outcome as it is known. Gives the last one when none
        of all was final."""
        last, final = None, False
        until = time.monotonic() + _TURN_SECONDS
        left = {id(delivery): delivery for delivery in turn.deliveries}
        unfinished = Outcome(turn.deliveries[0], "postponed")
        try:
            for outcome in turn.send(
                lambda: time.monotonic() < until and not self._stopped.is_set()
            ):
                left.pop(id(outcome.delivery))
                self._outcomes.put(outcome)
                last, final = outcome, final or outcome.state != "waiting"
        except Exception as error:
            # A message that cannot be made must not keep others back; the error may quote a secret.
            unfinished = Outcome(turn.deliveries[0], "failed", f"a {type(error).__name__} of ours")
        for delivery in left.values():
            self._outcomes.put(replace(unfinished, delivery=delivery))
        return None if final else last

    def _refuse_all(self, webhook: UUID, refused: Outcome) -> None:
        """What an endpoint that took nothing has to get besides goes the same way, untried: else
        each of its turns would be waited for."""
        self._unwilling.add(webhook)
        states = outbox.refuse(self._cursor, self._schema, self._lease, refused)
        if refused.end != "postponed":
            for state, number in states.items():
                self.report.add(state, refused.reason, number)

    def _record(self) -> None:
        self._unwritten += [self._outcomes.get() for _ in range(self._outcomes.qsize())]
        outcomes = self._unwritten
        outbox.record(self._cursor, self._schema, self._lease, outcomes)
        self._cursor.connection.commit()
        self._unwritten = []
        for outcome in outcomes:
            self.report.count(outcome)
        report = self.report
        done = report.delivered + report.failed + report.dead + report.skipped
        self._progress("delivering", done, done + A_TURN * len(self._busy))

    def _address(self) -> int:
        """Find out whom new messages are for; gives how many they are."""
        found = outbox.unaddressed(self._cursor, self._schema, ADDRESSED_TOGETHER)
        if not found:
            return 0
        mailed = [
            message
            for message in found
            if self._settings.smtp_url and message.event_type in mail.SUBJECTS
        ]
        hooks = _by_org(self._source.enabled_webhooks({m.org_id for m in found if m.org_id}))
        managers = _by_org(
            self._source.managers({m.org_id for m in mailed if m.org_id and not m.user_id})
        )
        recipients = [
            (message.message_id, WEBHOOK, webhook)
            for message in found
            for webhook in hooks.get(message.org_id, [])
        ]
        for message in mailed:
            people = [message.user_id] if message.user_id else managers.get(message.org_id, [])
            recipients += [(message.message_id, MAIL, person) for person in people]
        outbox.address(self._cursor, self._schema, [m.message_id for m in found], recipients)
        self.report.addressed += len(found)
        return len(found)


@dataclass(frozen=True)
class Turn:
    """Deliveries that one thread sends, and how."""

    deliveries: list[Delivery]
    send: Callable[[Callable[[], bool]], Iterator[Outcome]]


def _by_org(pairs: Iterable[tuple[UUID, UUID]]) -> dict[UUID | None, list[UUID]]:
    found: dict[UUID | None, list[UUID]] = {}
    for org, other in pairs:
        found.setdefault(org, []).append(other)
    return found
