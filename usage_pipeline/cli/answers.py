"""Why a number is what it is: `explain`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer

from usage_pipeline.cli.options import Day, Month, valid_settings
from usage_pipeline.cli.show import out
from usage_pipeline.meters.meter import Meter
from usage_pipeline.operations.explain import Answer, Number, Proof, Question, Restatement
from usage_pipeline.operations.explain import explain as answer_to
from usage_pipeline.operations.status import spelled
from usage_pipeline.settings import Settings

MOST_LINES = 12  # of restatements
_INDENT = 11  # the labels' column


def explain(
    month: Month,
    metric: Annotated[str, typer.Option(help="The metric, such as api_call.")],
    *,
    user: Annotated[UUID | None, typer.Option(help="Of a user.")] = None,
    org: Annotated[
        UUID | None, typer.Option(help="Of an organisation, or of the user in it.")
    ] = None,
    platform: Annotated[bool, typer.Option("--platform", help="Of the whole platform.")] = False,
    day: Day = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="What was published then, such as 2026-05-03T09:00; in USAGE_TIMEZONE.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say why a published number is what it is.

    The number in all three places, its meter in words, the days it is made of, events that were
    counted and set aside, its proof against the source, every restatement with cause and run, and
    the alerts it raised. With `--as-of` it is the number that was published at that moment. Exit
    code 1 when the number is not known, or the places do not agree.

    Example: `usage-pipeline explain --platform --month 2026-05 --metric api_call`
    """
    settings = valid_settings()
    if bool(user or org) == platform:
        raise typer.BadParameter("write --user UUID, --org UUID or both, or --platform")
    if day and day.replace(day=1) != month:
        raise typer.BadParameter(f"{day} is no day of {month:%Y-%m}", param_hint="--day")
    moment = _moment(settings, as_of) if as_of else None
    answer = answer_to(settings, Question(metric, month, user, org, day, moment))
    if as_json:
        print(json.dumps(asdict(answer) | {"alike": answer.alike}, default=_plain, indent=1))
    else:
        for line in _page(settings, answer):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    if not answer.alike:
        raise typer.Exit(1)


def _moment(settings: Settings, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time; write 2026-05-03T09:00", param_hint="--as-of"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=settings.zone)


def _plain(value: Any) -> str | int:
    return value.isoformat() if isinstance(value, date) else str(value)


def _page(settings: Settings, answer: Answer) -> Iterator[str]:
    """Lines that fit the terminal, labels on the left."""
    question, show = answer.question, _Shown(settings, answer.meter)
    whose = " in ".join(
        f"{what} {who}"
        for what, who in (("user", question.user_id), ("organisation", question.org_id))
        if who
    )
    when = f", as it was at {show.at(question.as_of)}" if question.as_of else ""
    period = f"on {question.day}" if question.day else f"in {question.month:%Y-%m}"
    yield from textwrap.wrap(
        f"{question.metric} of {whose or 'the platform'} {period}{when}", out.width
    )
    yield f"Days and times are of {settings.timezone}."
    yield ""
    for label, lines in told(settings, answer):
        for number, line in enumerate(lines):
            yield from textwrap.wrap(
                line,
                out.width,
                initial_indent=("" if number else label).ljust(_INDENT),
                subsequent_indent=" " * (_INDENT + 2),
            )


def told(settings: Settings, answer: Answer) -> Iterator[tuple[str, Iterable[str]]]:
    """An answer in words: labels, and lines of what is said beside each."""
    question, publish = answer.question, answer.publish
    show = _Shown(settings, answer.meter)
    yield "Number", show.numbers(answer.numbers, answer.total, answer.event_count)
    yield (
        "Published",
        [
            f"snapshot {publish.snapshot_id[:8]} of {show.at(publish.published_at)},"
            f" run {publish.run_id[:8]}",
            *_places(answer, show),
        ],
    )
    if question.as_of:
        changed = answer.now != answer.numbers
        yield "Now", [show.row(n) for n in answer.now] or ["nothing"] if changed else ["the same"]
    yield "Meter", [in_words(answer.meter) if answer.meter else "not recorded by older releases"]
    yield "Events", _events(answer, show)
    if not question.day and answer.days:
        yield "Days", _days(answer.days, show)
    yield "Proof", _proof(answer.proof, show)
    yield "Restated", _restated(answer, show)
    if answer.alerts is None:
        yield "Alerts", ["not known, since Postgres cannot be read"]
    else:
        yield "Alerts", [_alert(alert, show) for alert in answer.alerts] or ["none"]
    if answer.waiting:
        days = ", ".join(map(str, answer.waiting))
        yield "Waiting", [f"{days}: another state of these days is not published yet"]


class _Shown:
    """Quantities and instants for people."""

    def __init__(self, settings: Settings, meter: Meter | None) -> None:
        self.zone = settings.zone
        self.unit = f" {meter.unit}" if meter and meter.unit else ""

    def at(self, moment: datetime) -> str:
        return f"{moment.astimezone(self.zone):%Y-%m-%d %H:%M:%S}"

    def quantity(self, quantity: Decimal | None) -> str:
        return "not held" if quantity is None else spelled(quantity)

    def row(self, number: Number) -> str:
        org = f", organisation {number.org_id}" if number.org_id else ""
        return (
            f"{self.quantity(number.total_quantity)}{self.unit}, {events(number.event_count)}{org}"
        )

    def numbers(
        self, numbers: Sequence[Number], total: Decimal | None, event_count: int
    ) -> list[str]:
        if not numbers:
            return ["nothing is published: no valid event"]
        if len(numbers) == 1:
            return [self.row(numbers[0])]
        together = "" if total is None else f"{spelled(total)}{self.unit}, "
        return [f"{together}{events(event_count)}, of which", *map(self.row, numbers)]


def events(count: int) -> str:
    return f"{count:,} event{'' if count == 1 else 's'}"


def in_words(meter: Meter) -> str:
    """What a meter measures, in a sentence without a full stop."""
    value = meter.value or "quantity"
    what = {
        "sum": f"sum of {value}",
        "count": "number",
        "unique_count": f"number of distinct values of {value}",
        "max": f"greatest {value}",
        "min": f"smallest {value}",
        "avg": f"average {value}",
        "latest": f"newest {value}",
    }[meter.aggregation]
    where = " and ".join(f"{path} is {' or '.join(v)}" for path, v in meter.filter.items())
    said = f"{what} of events {meter.event_type}{f' where {where}' if where else ''}"
    return f"{meter.description}: {said}" if meter.description else said


def _places(answer: Answer, show: _Shown) -> Iterator[str]:
    alike = [place for place, rows in answer.places.items() if rows == answer.numbers]
    if alike:
        yield f"the same in {', '.join(alike)}"
    for place, rows in answer.places.items():
        if place not in alike:
            has = rows if isinstance(rows, str) else "; ".join(map(show.row, rows)) or "nothing"
            yield f"NOT THE SAME in {place}: {has}"


def _events(answer: Answer, show: _Shown) -> Iterator[str]:
    if answer.question.as_of:
        yield f"{events(answer.event_count)} counted then"
        return
    between = ""
    if answer.first_event_at and answer.last_event_at:
        between = f", {show.at(answer.first_event_at)} to {show.at(answer.last_event_at)}"
    yield f"{events(answer.event_count)} counted{between}"
    for reason, count in answer.set_aside.items():
        yield f"{events(count)} set aside: {reason}"
    if not answer.set_aside:
        yield "none set aside"


def _days(days: Sequence[Number], show: _Shown) -> Iterator[str]:
    """In columns, organisations by the beginning of their ids."""
    quantities = [show.quantity(number.total_quantity) for number in days]
    counts = [events(number.event_count) for number in days]
    widths = max(map(len, quantities)), max(map(len, counts))
    for number, quantity, count in zip(days, quantities, counts, strict=True):
        org = f"  in {str(number.org_id)[:8]}" if number.org_id else ""
        yield f"{number.usage_date}  {quantity:>{widths[0]}}  {count:>{widths[1]}}{org}"


def _proof(proof: Sequence[Proof], show: _Shown) -> Iterator[str]:
    """Of all users' events, as it is compared."""
    if not proof:
        yield "no event of this meter was compared"
        return
    equal = [line for line in proof if line.matches]
    if equal:
        yield (
            f"{_of_days(equal)} equal to the source for all users, last found"
            f" {show.at(max(line.checked_at for line in equal))}"
        )
    if unasked := [line for line in proof if line.matches is None]:
        yield f"{_of_days(unasked)} equal to what was landed; the source was not asked"
    for line in proof:
        if line.matches is False or len(proof) == 1:
            sides = (
                ("source", line.source_events, line.source_sum),
                ("landed", line.landed_events, line.landed_sum),
                ("published", line.published_events, line.published_sum),
            )
            told = "; ".join(
                f"{side} {events(count)}, {show.quantity(quantity)}"
                for side, count, quantity in sides
                if count is not None
            )
            yield f"{'DIFFERS ' if line.matches is False else ''}{line.usage_date}: {told}"


def _of_days(lines: Sequence[Proof]) -> str:
    return f"{len(lines):,} day{'' if len(lines) == 1 else 's'}"


def _restated(answer: Answer, show: _Shown) -> Iterator[str]:
    if not answer.restatements:
        yield "never"
    for change in answer.restatements[-MOST_LINES:]:
        org = f", in {str(change.org_id)[:8]}" if change.org_id else ""
        yield f"{change.usage_date} {_change(change, show)}{org}"
        version = f", meters {change.meters_version}" if change.meters_version else ""
        rebuild = version if change.cause == "rebuild" else ""
        yield f"  {show.at(change.restated_at)} {change.cause}, run {change.run_id[:8]}{rebuild}"
    if (more := len(answer.restatements) - MOST_LINES) > 0:
        yield f"and {more:,} earlier ones, which --json lists"


def _change(change: Restatement, show: _Shown) -> str:
    counts = f"{change.old_event_count:,} to {change.new_event_count:,} events"
    if change.numbers > 1:
        return f"{change.numbers:,} numbers of users, {counts}"
    old, new = (show.quantity(q) for q in (change.old_quantity, change.new_quantity))
    return f"{old} to {new}{show.unit}, {counts}"


def _alert(alert: dict[str, Any], show: _Shown) -> str:
    used, limit = (show.quantity(alert[f"{what}_quantity"]) for what in ("used", "limit"))
    share = spelled(alert["threshold"] * 100)
    member = f" as a member of {alert['org_id']}" if alert["scope"] == "member" else ""
    crossed = f"{share}% of the limit{member} on {alert['usage_date']}"
    told = f"{crossed}: {used} of {limit}{show.unit}"
    for what in ("raised", "resolved", "recrossed"):
        if moment := alert[f"{what}_at"]:
            told += f", {what} {show.at(moment)}"
    return told
