"""`webhooks`: what is told to organisations' systems, and to people."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.delivery import deliver as send
from usage_pipeline.alerts.outbox import State
from usage_pipeline.alerts.webhooks import NoAnswer, Unusable, try_out
from usage_pipeline.app_db.recipients import open_recipients
from usage_pipeline.cli.options import valid_settings
from usage_pipeline.cli.show import out, progress
from usage_pipeline.errors import UsagePipelineError

Webhook = Annotated[UUID | None, typer.Option(metavar="UUID", help="This webhook only.")]
Org = Annotated[UUID | None, typer.Option(metavar="UUID", help="This organisation only.")]


def _message_id(text: str) -> UUID:
    try:
        return UUID(text.removeprefix("msg_"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not the id of a message; see list") from None


def deliver() -> None:
    """Send what is due.

    To webhooks, and by e-mail where `USAGE_SMTP_URL` is set. Under `up` this happens by itself.
    What a receiver does not take is tried again by a later call, for two days. Exit code 1 when a
    message was given up.

    Example: `usage-pipeline webhooks deliver`
    """
    settings = valid_settings()
    with progress("delivering") as (bar, task):
        report = send(
            settings,
            lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    out.print(
        f"{report.delivered:,} delivered, {report.failed:,} to be sent again, "
        f"{report.dead:,} given up, {report.skipped:,} without a recipient any more, "
        f"in {report.seconds:.1f} s."
    )
    for reason, times in report.reasons.most_common():
        out.print(f"  {times:,} times: {reason}", highlight=False)
    if report.dead:
        raise typer.Exit(1)


def test(
    org: Annotated[UUID, typer.Option(metavar="UUID", help="Whose webhooks.")],
    webhook: Webhook = None,
) -> None:
    """Send a test event to an organisation's webhooks.

    At once, and once: a signed `usage.test`, also to those that are not enabled. Exit code 1 when
    one does not answer with a status of 200 to 299.

    Example: `usage-pipeline webhooks test --org 7f1c9d52-0000-4000-8000-000000000000`
    """
    settings = valid_settings()
    with open_recipients(settings) as source:
        endpoints = [e for e in source.endpoints_of(org) if webhook in (None, e.webhook_id)]
    if not endpoints:
        raise UsagePipelineError(
            "There is no such webhook", "Look at the organisation's rows in org_webhooks"
        )
    failed = False
    for endpoint in endpoints:
        started = time.perf_counter()
        try:
            answer = try_out(endpoint, settings.webhook_networks or ())
            said, took = f"HTTP {answer.status}", 200 <= answer.status < 300
        except (NoAnswer, Unusable) as error:
            said, took = str(error), False
        failed = failed or not took
        out.print(
            f"{'ok  ' if took else 'FAIL'} webhook {endpoint.webhook_id}"
            f"{'' if endpoint.enabled else ' (disabled)'}: {said},"
            f" {time.perf_counter() - started:.2f} s",
            soft_wrap=True,
            highlight=False,
        )
    if failed:
        raise typer.Exit(1)


def list_deliveries(
    state: Annotated[
        State | None, typer.Option(help="Only such; default waiting and dead ones.")
    ] = None,
    org: Org = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
) -> None:
    """Show messages on their way, newest first.

    By default those that wait, and those that were given up. Neither URLs nor addresses are shown.
    Exit code 1 when a message was given up in the last week.

    Example: `usage-pipeline webhooks list --state dead`
    """
    settings = valid_settings()
    # A line each, of whatever length: ids are to be copied, and lines to be searched.
    for listed in outbox.listed(settings, state, org, limit):
        due = listed.due_at.astimezone(UTC)
        again = "due" if due <= datetime.now(UTC) else f"again {due:%Y-%m-%d %H:%M} UTC"
        out.print(
            f"{outbox.known_as(listed.message_id)} {listed.event_type}"
            f" to {listed.channel} {listed.recipient_id}:"
            f" {again if listed.state == 'waiting' else listed.state}"
            f", {listed.attempts} attempt{'' if listed.attempts == 1 else 's'}"
            f"{f', {listed.reason}' if listed.reason else ''}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    found = outbox.waiting(settings)
    out.print(
        f"{found.due:,} due, {found.later:,} to be sent again, {found.dead:,} given up in the last "
        f"{outbox.SHOWN_FOR.days} days."
    )
    if found.dead:
        raise typer.Exit(1)


def replay(
    message: Annotated[
        UUID | None,
        typer.Argument(parser=_message_id, metavar="[MESSAGE]", help="Its id, as listed."),
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    webhook: Webhook = None,
) -> None:
    """Send messages again.

    One, to all who should have it by now, delivered or not; or with `--dead` all that were given
    up. They have the id that they had, so that a receiver knows them, and leave with the next
    delivery.

    Example: `usage-pipeline webhooks replay --dead`
    """
    settings = valid_settings()
    if (message is None) == (not dead):
        raise typer.BadParameter("Name a message, or give --dead")
    again = outbox.replay(settings, message, webhook)
    if not again:
        raise UsagePipelineError(
            "Nothing to send again", "List messages with `usage-pipeline webhooks list`"
        )
    out.print(f"{again:,} leave with the next `usage-pipeline webhooks deliver`, or under `up`.")
