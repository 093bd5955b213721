"""The commands in the order of `--help`, and how a command ends."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from usage_pipeline.cli import (
    alerts,
    answers,
    app_db,
    health,
    keys,
    meters,
    rollups,
    users,
    web,
    webhooks,
)
from usage_pipeline.cli.show import print_error
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra import interrupts
from usage_pipeline.infra.permissions import UMASK
from usage_pipeline.infra.postgres import redact

app = typer.Typer(
    help="Usage events of a SaaS application, turned into numbers one can bill on.",
    epilog="`--debug`, anywhere, shows the traceback of a failure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(rollups.rollup)
app.command()(rollups.demo)
app.command()(rollups.up)
app.command()(web.web)
app.command()(health.reconcile)
app.command()(answers.explain)
app.command()(users.export)
app.command("erase-user")(users.erase_user)
app.command()(health.status)
app.command()(health.doctor)

alert_commands = typer.Typer(
    help="Who is told of a crossed limit.",
    no_args_is_help=True,
)


@alert_commands.callback()
def alerts_group() -> None:
    """So that one command alone is a group as well."""


alert_commands.command("backfill")(alerts.backfill)
app.add_typer(alert_commands, name="alerts")

webhook_commands = typer.Typer(help="Messages to webhooks and people.", no_args_is_help=True)
webhook_commands.command("deliver")(webhooks.deliver)
webhook_commands.command("test")(webhooks.test)
webhook_commands.command("list")(webhooks.list_deliveries)
webhook_commands.command("replay")(webhooks.replay)
app.add_typer(webhook_commands, name="webhooks")

key_commands = typer.Typer(help="Keys that programs call the API with.", no_args_is_help=True)
key_commands.command("create")(keys.create)
key_commands.command("list")(keys.list_keys)
key_commands.command("rotate")(keys.rotate)
key_commands.command("revoke")(keys.revoke)
app.add_typer(key_commands, name="keys")

meter_commands = typer.Typer(
    help="What a change of the meters file does.",
    no_args_is_help=True,
)
meter_commands.command("plan")(meters.plan)
meter_commands.command("apply")(meters.apply)
meter_commands.command("diff")(meters.diff)
app.add_typer(meter_commands, name="meters")

app_db_commands = typer.Typer(
    help="The source's tables and sample data, for tests.",
    no_args_is_help=True,
)
app_db_commands.command("init")(app_db.init)
app_db_commands.command("load-sample")(app_db.load_sample)
app.add_typer(app_db_commands, name="app-db")


def main() -> None:
    """Entry point: expected failures are one line on stderr, `--debug` shows the traceback."""
    interrupts.install()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        os.umask(UMASK)
        app()
    except Exception as error:
        if debug:
            # Written here, since the causes of a failure may quote a connection string.
            sys.stderr.write(redact(traceback.format_exc()))
        else:
            print_error(_in_one_line(error))
        sys.exit(1)


def _in_one_line(error: Exception) -> UsagePipelineError:
    if isinstance(error, UsagePipelineError):
        return error
    first_line = (str(error).splitlines() or [""])[0]
    return UsagePipelineError(
        redact(f"Unexpected {type(error).__name__}: {first_line}"),
        "Run the same again with --debug, and report what it shows",
    )
