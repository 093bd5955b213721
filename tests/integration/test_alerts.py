"""What alerts make of any course of published limits: told once, whatever happens.

Published tables are written here by hand, in the columns that are read of them; that they become
so by a rollup is in tests/golden/test_limits.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from support import AppDatabase
from typer.testing import CliRunner

from usage_pipeline.alerts import limits
from usage_pipeline.alerts.limits import AlertReport
from usage_pipeline.cli import show
from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.meters.meter import Meter
from usage_pipeline.orchestration.metadata import alerts_metadata
from usage_pipeline.settings import Settings

SAME = str(UUID(int=1))  # a user and an organisation may have the same id
USER, ORG, MEMBER = ("user", SAME, None), ("org", None, SAME), ("member", SAME, SAME)
Subject = tuple[str, str | None, str | None]
MARCH = date(2024, 3, 1)
TABLES = """
    drop schema if exists usage cascade;
    create schema usage;
    create table usage.snapshot (snapshot_id text);
    create table usage.platform_metrics_daily (metric_date date, event_count bigint);
    create table usage.usage_limits_monthly (
        month date, scope text, user_id uuid, org_id uuid, metric_type text, plan text,
        used_quantity numeric(38, 9), limit_quantity numeric(38, 9), used_ratio numeric(38, 9),
        status text
    );
    create table usage.usage_monthly (
        month date, user_id uuid, org_id uuid, metric_type text, total_quantity numeric(38, 9),
        updated_at timestamptz
    );
    create table usage.usage_snapshots (
        snapshot_id text, published_at timestamptz, timezone text, meters_version text
    );
"""


@dataclass(frozen=True)
class Status:
    """Of one subject; a limit of None is unlimited."""

    used: str
    limit: str | None = "100"
    known: bool = True
    subject: Subject = USER


class World:
    """A publish schema, and what is told of it."""

    def __init__(self, database: AppDatabase, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self.meters = meters()
        self.begin()

    def begin(self) -> None:
        self.database.execute(TABLES)
        self._snapshots = 0
        self._published: dict[date, dict[Subject, tuple[Status, datetime]]] = {}

    def publish(
        self,
        day: date,
        statuses: Iterable[Status],
        missing: Iterable[date] = (),
        *,
        last_month: Iterable[Status] = (),
        version: str = "a",
        zone: str = "UTC",
    ) -> AlertReport:
        """A snapshot as of a day, judged."""
        self.write(day, statuses, missing, last_month=last_month, version=version, zone=zone)
        return self.judge()

    def write(
        self,
        day: date,
        statuses: Iterable[Status],
        missing: Iterable[date] = (),
        *,
        last_month: Iterable[Status] = (),
        version: str = "a",
        zone: str = "UTC",
    ) -> None:
        """A snapshot as of a day: the statuses of its month, and those of the month before that are
        others than they were."""
        month = day.replace(day=1)
        before = (month - timedelta(days=1)).replace(day=1)
        self._snapshots += 1
        at = datetime(2024, 1, 1, self._snapshots % 24, tzinfo=UTC) + timedelta(self._snapshots)
        identity = f"snapshot {self._snapshots}"
        self.database.execute(
            "truncate usage.snapshot, usage.platform_metrics_daily, usage.usage_limits_monthly,"
            f" usage.usage_monthly; insert into usage.snapshot values ('{identity}')"
        )
        self.database.insert("usage.usage_snapshots", [(identity, at, zone, version)])
        every = [month + timedelta(n) for n in range((day - month).days + 1)]
        rows = [(each, None if each in missing else 1) for each in every]
        self.database.insert("usage.platform_metrics_daily", rows)
        known = self._published
        known[month] = self._stamped(month, {s.subject: s for s in statuses}, at)
        older = {subject: status for subject, (status, _) in known.get(before, {}).items()}
        older |= {status.subject: status for status in last_month}
        known[before] = self._stamped(before, older, at)
        found = [
            (
                of,
                *status.subject,
                "calls",
                "pro",
                status.used,
                status.limit if status.known else None,
                None,
                "not read" if status.known else None,
            )
            for of in (before, month)
            for status, _ in known[of].values()
        ]
        used = [
            (of, *status.subject[1:], "calls", status.used, stamp)
            for of in (before, month)
            for status, stamp in known[of].values()
        ]
        if found:
            self.database.insert("usage.usage_limits_monthly", found)
            self.database.insert("usage.usage_monthly", used)

    def _stamped(
        self, month: date, statuses: dict[Subject, Status], at: datetime
    ) -> dict[Subject, tuple[Status, datetime]]:
        """With when the use of each was last another one."""
        known = self._published.get(month, {})
        return {
            subject: (
                status,
                known[subject][1]
                if subject in known and known[subject][0].used == status.used
                else at,
            )
            for subject, status in statuses.items()
        }

    def judge(self) -> AlertReport:
        return limits.judge(self.settings, self.meters)

    def rows(self) -> list[tuple[Any, ...]]:
        """Scope, month, threshold, and whether it is open, crossed again, told."""
        return self.database.query(
            "select scope, month, threshold, resolved_at is null, recrossed_at is not null,"
            " announced_at is not null from usage.usage_alerts order by 2, 1, 3"
        )

    def states(self) -> dict[str, str]:
        """Of each threshold, in percent."""
        words = {(True, False): "open", (False, False): "resolved", (True, True): "crossed again"}
        return {
            f"{threshold:.0%}": words.get((is_open, again), "resolved again")
            for _, _, threshold, is_open, again, _ in self.rows()
        }

    def messages(self) -> list[tuple[str, str, str]]:
        """Kind, scope and threshold."""
        if self.database.query("select to_regclass('usage.outbox_messages')") == [(None,)]:
            return []
        return self.database.query(
            "select replace(event_type, 'usage.limit_', ''), payload->>'scope',"
            " payload->>'threshold' from usage.outbox_messages order by 1, 2, 3, payload->>'month'"
        )


def meters(at: Iterable[str] = ("0.8", "1"), every: str | None = None) -> list[Meter]:
    shares = tuple(map(Decimal, at))
    step = Decimal(every) if every else None
    return [Meter("calls", "api_call", "sum", alert_at=shares, alert_every=step)]


@pytest.fixture(scope="module")
def made(new_database: Any, make_settings: Any) -> World:
    database = new_database()
    return World(database, make_settings(USAGE_APP_DATABASE_URL=database.url))


@pytest.fixture
def world(made: World) -> World:
    """Begun on the first of March, with nothing crossed."""
    made.begin()
    made.meters = meters()
    made.publish(MARCH, [])
    return made


def march(day: int) -> date:
    return date(2024, 3, day)


def test_of_two_thresholds_at_once_the_higher_is_told(world: World) -> None:
    world.meters = meters(["0.1", "0.3", "0.5"], every="1")
    world.publish(march(2), [Status("8")])
    assert (world.states(), world.messages()) == ({}, [])
    report = world.publish(march(3), [Status("30")])
    assert (report.raised, report.messages) == (2, 1)
    assert world.states() == {"10%": "open", "30%": "open"}
    assert world.messages() == [("warning", "user", "0.3")]
    report = world.publish(march(4), [Status("29")])
    assert (report.raised, report.resolved) == (0, 1)
    assert world.states() == {"10%": "open", "30%": "resolved"}
    world.publish(march(5), [Status("299")])
    assert [*world.states()] == ["10%", "30%", "50%", "100%", "200%"]
    assert ("exceeded", "user", "2") in world.messages()


def test_the_highest_crossed_threshold_of_110_of_95_is_110_percent(world: World) -> None:
    world.meters = meters(["0.5", "1", "1.1", "1.2"])
    world.publish(march(2), [Status("110", "95")])
    assert [*world.states()] == ["50%", "100%", "110%"]
    assert world.messages() == [("exceeded", "user", "1.1")]
    ((payload,),) = world.database.query("select payload from usage.outbox_messages")
    assert payload == {
        "scope": "user",
        "user_id": SAME,
        "org_id": None,
        "metric_type": "calls",
        "month": "2024-03-01",
        "threshold": "1.1",
        "used_quantity": "110",
        "limit_quantity": "95",
        "plan": "pro",
        "usage_date": "2024-03-02",
        "snapshot_id": "snapshot 2",
    }


def test_thresholds_are_reached_exactly(world: World) -> None:
    great = "99999999999999999999999999999.999999999"
    world.publish(
        march(2),
        [
            Status("79.999999999"),
            Status("0.000000001", "0", subject=ORG),
            # four fifths of the greatest limit are 79999999999999999999999999999.9999999992
            Status("79999999999999999999999999999.999999999", great, subject=MEMBER),
        ],
    )
    assert {row[0] for row in world.rows()} == {"org"}
    world.publish(
        march(3),
        [
            Status("80"),
            Status("0", "0", subject=ORG),
            Status("80" + "0" * 27, great, subject=MEMBER),
        ],
    )
    found = [(scope, f"{share:f}"[:3], is_open) for scope, _, share, is_open, *_ in world.rows()]
    assert found == [
        ("member", "0.8", True),
        ("org", "0.8", False),
        ("org", "1.0", False),
        ("user", "0.8", True),
    ]


def test_no_limit_an_unknown_one_and_negative_use_cross_nothing(world: World) -> None:
    world.publish(
        march(2),
        [
            Status("1e20", None),
            Status("-5", subject=ORG),
            Status("1e20", known=False, subject=MEMBER),
        ],
    )
    assert world.rows() == []


def test_what_is_crossed_again_is_told_once_a_month_and_anew_in_the_next(world: World) -> None:
    for day, used in ((2, "85"), (3, "79"), (4, "85"), (5, "79"), (6, "85")):
        world.publish(march(day), [Status(used)])
    assert world.states() == {"80%": "crossed again"}
    told = [("resolved", "user", "0.8"), ("warning", "user", "0.8")]
    assert world.messages() == told
    world.publish(date(2024, 4, 1), [Status("3")])
    assert world.messages() == told
    world.publish(date(2024, 4, 2), [Status("85")])
    assert world.messages() == [*told, told[1]]
    assert [row[1:4] for row in world.rows()] == [
        (MARCH, Decimal("0.8"), True),
        (date(2024, 4, 1), Decimal("0.8"), True),
    ]


APRIL = date(2024, 4, 1)


def test_the_last_day_of_a_month_that_comes_with_the_next_is_told(world: World) -> None:
    """The 29th is judged; the nights of the 30th, the 31st and the 1st come together."""
    world.publish(march(29), [Status("70"), Status("85", subject=ORG)])
    late = [Status("101"), Status("85", subject=ORG)]
    report = world.publish(APRIL, [Status("3")], last_month=late)
    assert (report.raised, report.messages) == (2, 1)
    assert world.messages() == [("exceeded", "user", "1"), ("warning", "org", "0.8")]
    ((payload,),) = world.database.query(
        "select payload from usage.outbox_messages where event_type = 'usage.limit_exceeded'"
    )
    shown = ("month", "usage_date", "used_quantity", "snapshot_id")
    assert [payload[name] for name in shown] == ["2024-03-01", "2024-03-31", "101", "snapshot 3"]
    assert world.publish(date(2024, 4, 2), [Status("3")]).raised == 0


def test_a_late_event_of_a_month_that_is_over_is_told_once(world: World) -> None:
    world.publish(march(31), [Status("79"), Status("50", subject=MEMBER)])
    world.publish(APRIL, [])
    for day, used in ((2, "80"), (3, "79"), (4, "80"), (5, "100")):
        world.publish(date(2024, 4, day), [], last_month=[Status(used)])
    # back below it resolves nothing, and is news of no month that is over
    assert world.messages() == [("exceeded", "user", "1"), ("warning", "user", "0.8")]
    # of the month before that nobody is told any more
    may = date(2024, 5, 1)
    world.publish(may, [])
    world.publish(may, [], last_month=[Status("100", subject=ORG)])
    assert world.messages()[0] == ("exceeded", "org", "1")
    assert {row[1] for row in world.rows()} == {MARCH, APRIL}


def test_of_a_month_that_is_over_only_new_use_crosses(world: World) -> None:
    """Not a limit that is lowered, nor a plan that is another one."""
    world.publish(march(31), [Status("70"), Status("70", subject=ORG)])
    lower = [Status("70", "60"), Status("71", "60", subject=ORG)]
    world.publish(APRIL, [], last_month=lower)
    assert world.messages() == [("exceeded", "org", "1")]


def test_what_was_resolved_and_is_crossed_by_the_last_day_is_open_again(world: World) -> None:
    world.publish(march(28), [Status("85"), Status("85", subject=ORG)])
    world.publish(march(29), [Status("70"), Status("85", subject=ORG)])
    told = [("resolved", "user", "0.8"), ("warning", "org", "0.8"), ("warning", "user", "0.8")]
    assert world.messages() == told
    world.publish(APRIL, [], last_month=[Status("85"), Status("70", subject=ORG)])
    assert world.messages() == told
    assert [(row[0], *row[3:5]) for row in world.rows()] == [
        ("org", True, False),
        ("user", True, True),
    ]


def test_a_rebuild_tells_nobody_of_the_month_before(world: World) -> None:
    """Other meters, another zone, or another home make all numbers anew."""
    world.publish(march(31), [Status("70")])
    for used, zone in (("100", "UTC"), ("101", "Asia/Tokyo")):
        new = [Status(used)]
        assert world.publish(APRIL, [], last_month=new, version="b", zone=zone).raised == 0
    world.write(APRIL, [], last_month=[Status("200")], version="b", zone="Asia/Tokyo")
    world.database.execute("delete from usage.usage_snapshots where snapshot_id <> 'snapshot 5'")
    assert world.judge().raised == 0
    assert world.messages() == []
    world.publish(APRIL, [], last_month=[Status("201")], version="b", zone="Asia/Tokyo")
    assert world.messages() == [("exceeded", "user", "1")]


def test_a_first_start_notes_what_is_crossed_of_the_month_before(made: World) -> None:
    made.begin()
    made.meters = meters()
    made.write(march(31), [Status("120")])
    made.write(date(2024, 4, 9), [Status("5")])
    assert made.judge().silent
    made.publish(date(2024, 4, 10), [Status("5")], last_month=[Status("121")])
    assert (made.messages(), {row[1] for row in made.rows()}) == ([], {MARCH})


def test_a_look_that_was_killed_is_made_up_for_in_the_new_month(world: World) -> None:
    """Published and not judged; the next run looks before it publishes, and finds the 1st."""
    world.publish(march(29), [Status("70")])
    world.write(APRIL, [], last_month=[Status("101")])
    world.write(date(2024, 4, 2), [])
    assert world.judge().messages == 1
    assert world.messages() == [("exceeded", "user", "1")]


def test_a_limit_that_is_lowered_raised_or_goes(world: World) -> None:
    world.publish(march(2), [Status("85", "1000"), Status("85", "1000", subject=ORG)])
    world.publish(march(3), [Status("85"), Status("85", "85", subject=ORG)])
    crossed = [("exceeded", "org", "1"), ("warning", "user", "0.8")]
    assert world.messages() == crossed
    world.publish(march(4), [Status("85"), Status("85", "85", subject=ORG)])
    assert world.messages() == crossed
    # A limit of which nobody knows what is meant takes nothing back; to have none, or no use, does.
    world.publish(march(4), [Status("85", known=False), Status("85", None, subject=ORG)])
    gone = [("exceeded", "org", "1"), ("resolved", "org", "1"), ("warning", "user", "0.8")]
    assert world.messages() == gone
    world.publish(march(4), [])
    assert world.messages() == sorted([*gone, ("resolved", "user", "0.8")])


def test_the_first_look_at_a_history_is_silent_until_asked(made: World) -> None:
    made.begin()
    made.meters = meters()
    report = made.publish(march(2), [Status("120"), Status("90", subject=ORG)])
    assert (report.silent, report.raised, report.messages) == (True, 3, 0)
    assert made.publish(march(3), [Status("130"), Status("90", subject=ORG)]).raised == 0
    made.publish(march(3), [Status("130"), Status("100", subject=ORG)])
    assert made.messages() == [("exceeded", "org", "1")]

    # Of organisation's 80 % nobody was told, but of its 100 %.
    dry = backfill(made, "--dry-run")
    assert "1 message; nothing was changed." in dry
    assert all(cell in dry for cell in ("user", SAME, "calls", "2024-03", "100%", "120", "100"))
    assert made.messages() == [("exceeded", "org", "1")]
    assert "1 message to be sent." in backfill(made)
    told = [("exceeded", "org", "1"), ("exceeded", "user", "1")]
    assert made.messages() == told
    assert "0 messages" in backfill(made)
    made.publish(march(4), [Status("130"), Status("100", subject=ORG)])
    assert made.messages() == told


def test_what_nobody_was_told_of_is_told_when_it_is_crossed_again(made: World) -> None:
    made.begin()
    made.meters = meters()
    made.publish(march(2), [Status("120"), Status("85", subject=ORG)])  # silent
    made.publish(march(3), [Status("10"), Status("85", subject=ORG)])
    assert made.messages() == []
    assert made.publish(march(4), [Status("120"), Status("85", subject=ORG)]).messages == 1
    told = [("exceeded", "user", "1")]
    assert made.messages() == told
    assert [row[3:] for row in made.rows() if row[0] == "user"] == [(True, True, True)] * 2
    # Since it was told, so is that it is over, once.
    for day, used in ((5, "10"), (6, "120"), (7, "10"), (8, "120")):
        made.publish(march(day), [Status(used), Status("85", subject=ORG)])
    assert made.messages() == [*told, ("resolved", "user", "1")]


def backfill(world: World, *options: str) -> str:
    environment = {
        "USAGE_HOME": str(world.settings.home),
        "USAGE_APP_DATABASE_URL": world.database.url,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show.out, "width", 200)
        result = CliRunner().invoke(app, ["alerts", "backfill", *options], env=environment)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_threshold_is_shown_exactly(made: World) -> None:
    made.begin()
    made.meters = meters(["0.125"])
    report = made.publish(march(2), [Status("13")])
    assert " 12.5% " in backfill(made, "--dry-run")
    assert "| 12.5% |" in alerts_metadata(report)["raised by threshold"].md_str


def test_an_older_state_is_not_judged(world: World) -> None:
    """As a restored home publishes it; what it lacks is not taken back."""
    world.publish(march(10), [Status("85")])
    world.database.execute("truncate usage.usage_snapshots")  # of those after its backup
    for day in (march(9), date(2024, 2, 29)):
        report = world.publish(day, [Status("110", subject=ORG)])
        assert "older" in report.skipped
    assert world.states() == {"80%": "open"}
    world.publish(march(10), [Status("85")])
    assert world.messages() == [("warning", "user", "0.8")]


def test_a_day_that_is_missing_takes_nothing_back(world: World) -> None:
    world.publish(march(10), [Status("85")])
    world.publish(march(11), [Status("10"), Status("90", subject=ORG)], missing=[march(4)])
    assert world.messages() == [("warning", "org", "0.8"), ("warning", "user", "0.8")]
    world.publish(march(11), [Status("85"), Status("90", subject=ORG)])
    assert {row[3:5] for row in world.rows()} == {(True, False)}


def test_a_history_that_is_rolled_up_piece_by_piece_alerts_nobody(
    new_database: Any, make_settings: Any
) -> None:
    database: AppDatabase = new_database()
    world = World(database, make_settings(USAGE_APP_DATABASE_URL=database.url))
    world.publish(MARCH, [])
    event = (str(UUID(int=1)), SAME, None, "api_call", None, 1)
    database.insert("usage_events", [(*event, "2024-05-06T00:00Z")])  # 36 days after 31 March
    assert "far ahead" in world.publish(march(31), [Status("120")]).skipped
    assert world.rows() == []
    database.execute("update usage_events set created_at = created_at - interval '1 microsecond'")
    world.publish(march(31), [Status("120")])
    assert world.messages() == [("exceeded", "user", "1")]


def test_a_first_start_in_pieces_tells_nobody_before_it_has_caught_up(
    new_database: Any, make_settings: Any
) -> None:
    """The look that comes to the day before the first start is the last silent one."""
    database: AppDatabase = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    world, yesterday = World(database, settings), settings.today() - timedelta(1)
    event = (str(UUID(int=1)), SAME, None, "api_call", None, 1)
    database.insert("usage_events", [(*event, settings.day_start(yesterday).isoformat())])
    crossed = [Status("120"), Status("120", subject=ORG), Status("120", subject=MEMBER)]
    for piece, ago in enumerate((20, 10, 0)):
        day = yesterday - timedelta(ago)
        assert world.publish(day, crossed[: piece + 1]).silent
    assert (len(world.rows()) >= 6, world.messages()) == (True, [])
    world.meters = meters(["0.8", "1", "1.2"])
    world.publish(yesterday, crossed)
    assert [scope for _, scope, _ in world.messages()] == ["member", "org", "user"]


def test_alerts_of_an_earlier_checkout_go_on(world: World) -> None:
    world.database.execute("alter table usage.alerts_judged drop column silent_until")
    world.publish(march(2), [Status("85")])
    assert world.messages() == [("warning", "user", "0.8")]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (
            "drop table usage.alerts_judged",
            "alerts_judged in schema usage in Postgres is lost",
        ),
        ("drop table usage.usage_alerts", "usage_alerts in schema usage in Postgres is lost"),
        ("alter table usage.usage_alerts drop column raised_at", "Postgres lacks raised_at"),
    ],
)
def test_damaged_alerts_say_what_to_do_and_it_helps(world: World, damage: str, found: str) -> None:
    world.publish(march(2), [Status("85")])
    world.database.execute(damage)
    with pytest.raises(UsagePipelineError) as caught:
        world.publish(march(3), [Status("120")])
    assert found in caught.value.problem
    assert '"usage".usage_alerts and "usage".alerts_judged' in caught.value.remedy
    world.database.execute("drop table if exists usage.usage_alerts, usage.alerts_judged")
    assert world.judge().silent
    assert world.messages() == [("warning", "user", "0.8")]
    world.publish(march(4), [Status("120"), Status("80", subject=ORG)])
    assert world.messages() == [("warning", "org", "0.8"), ("warning", "user", "0.8")]


def test_a_source_that_has_ended_has_been_caught_up_with(
    new_database: Any, make_settings: Any
) -> None:
    database: AppDatabase = new_database()
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url)
    world, today = World(database, settings), settings.today()
    event = (str(UUID(int=1)), SAME, None, "api_call", None, 1)
    last = today - timedelta(10)
    database.insert("usage_events", [(*event, settings.day_start(last).isoformat())])
    assert world.publish(today - timedelta(20), []).silent
    assert world.publish(last, [Status("120")]).silent
    assert not world.publish(last, [Status("120"), Status("80", subject=ORG)]).silent
    assert world.messages() == [("warning", "org", "0.8")]


def test_thresholds_that_change_are_judged_by_what_is_known(world: World) -> None:
    world.meters = meters(["0.5", "0.9"])
    world.publish(march(2), [Status("95"), Status("60", subject=ORG)])
    told = [("warning", "org", "0.5"), ("warning", "user", "0.9")]
    assert world.messages() == told
    # 60 % is news for the organisation, not for the user; and what is left out stays as it is.
    world.meters = meters(["0.6"])
    world.publish(march(3), [Status("95"), Status("60", subject=ORG)])
    assert world.messages() == sorted([*told, ("warning", "org", "0.6")])
    assert {row[3] for row in world.rows()} == {True}
    world.publish(march(4), [Status("85"), Status("60", subject=ORG)])
    assert ("resolved", "user", "0.9") in world.messages()


def test_a_failure_records_nothing_and_the_next_look_makes_up_for_it(world: World) -> None:
    world.write(march(2), [Status("85")])
    # a table in the outbox's place, into which no message goes
    world.database.execute("create table usage.outbox_messages (nothing text)")
    with pytest.raises(UsagePipelineError):
        world.judge()
    assert world.rows() == []
    world.database.execute("drop table usage.outbox_messages")
    world.judge()
    assert world.messages() == [("warning", "user", "0.8")]


def test_without_a_day_there_is_nothing_to_judge(world: World) -> None:
    """As after a start date that is later than all landed days."""
    world.write(march(2), [])
    world.database.execute("truncate usage.platform_metrics_daily")
    assert world.judge() == AlertReport()


def test_a_meter_that_goes_or_gets_another_name_takes_nothing_back(world: World) -> None:
    world.publish(march(2), [Status("120")])
    world.meters = [Meter("invocations", "api_call", "sum")]
    world.publish(march(3), [])
    assert world.states() == {"80%": "open", "100%": "open"}
    assert world.messages() == [("exceeded", "user", "1")]
    world.meters = meters()
    world.publish(march(4), [Status("90")])
    assert world.states() == {"80%": "open", "100%": "resolved"}


def test_an_alert_is_unique_by_constraint(world: World) -> None:
    world.publish(march(2), [Status("85"), Status("85", subject=ORG), Status("85", subject=MEMBER)])
    for scope in ("user", "org", "member"):
        with pytest.raises(Exception, match="usage_alerts_grain"):
            world.database.execute(
                "insert into usage.usage_alerts select * from usage.usage_alerts where scope = %s",
                [scope],
            )


def test_readers_may_read_alerts_and_nothing_of_the_outbox(world: World) -> None:
    database = world.database
    database.execute(
        "do $$ begin create role usage_reader; exception when duplicate_object then end $$;"
        " grant usage on schema usage to usage_reader"
    )
    world.publish(march(2), [Status("85")])
    allowed = "select has_table_privilege('usage_reader', 'usage.' || %s, 'select')"
    assert database.query(allowed, ["usage_alerts"]) == [(True,)]
    assert database.query(allowed, ["outbox_messages"]) == [(False,)]


def test_a_person_is_forgotten(world: World) -> None:
    world.publish(march(2), [Status("85"), Status("85", subject=ORG), Status("85", subject=MEMBER)])
    limits.forget(world.settings, UUID(SAME))
    assert [row[0] for row in world.rows()] == ["org"]
    assert world.messages() == []  # the organisation's id is the person's here


# --- any course ------------------------------------------------------------------------------

SHARES = ("0.1", "0.5", "0.8", "1", "1.5")
STATUSES = st.builds(
    Status,
    used=st.sampled_from(["-1", "0", "9", "10", "49.999999999", "50", "80", "99", "100", "200"]),
    limit=st.sampled_from([None, "0", "40", "100", "100", "100"]),
    known=st.sampled_from([True, True, True, False]),
)


@dataclass(frozen=True)
class Step:
    """The newest day moves on by days, or back; then these statuses are published."""

    days: int
    statuses: dict[Subject, Status]
    late: dict[Subject, Status]
    is_missing: bool
    shares: list[str]


STEPS = st.builds(
    Step,
    days=st.sampled_from([0, 0, 1, 1, 1, 9, 30, -1]),
    statuses=st.dictionaries(st.sampled_from([USER, ORG, MEMBER]), STATUSES),
    late=st.dictionaries(st.sampled_from([USER, ORG, MEMBER]), STATUSES, max_size=2),
    is_missing=st.sampled_from([False, False, False, True]),
    shares=st.just(["0.8", "1"]) | st.lists(st.sampled_from(SHARES), unique=True),
)


@dataclass
class Alert:
    is_open: bool = True
    again: bool = False
    told: bool = True
    end_is_news: bool = True


@dataclass
class Oracle:
    """The rules in plain Python: alerts by subject, month and threshold, and messages."""

    alerts: dict[tuple[Subject, date, Decimal], Alert] = field(default_factory=dict)
    messages: list[tuple[str, str, str]] = field(default_factory=list)
    judged_to: date | None = None
    published: dict[date, dict[Subject, Status]] = field(default_factory=dict)
    changed: set[tuple[Subject, date]] = field(default_factory=set)

    def publish(self, day: date, step: Step) -> None:
        month = day.replace(day=1)
        before = (month - timedelta(days=1)).replace(day=1)
        self._note(month, step.statuses)
        self._note(before, self.published.get(before, {}) | step.late)
        if self.judged_to and day < self.judged_to:
            return
        silent, self.judged_to = self.judged_to is None, day
        of_members = {(ORG, when) for who, when in self.changed if who == MEMBER}
        late = {
            subject: status
            for subject, status in self.published[before].items()
            if silent or (subject, before) in self.changed | of_members
        }
        self.changed = set()
        for judged, statuses in ((month, step.statuses), (before, late)):
            news, falls = self._judged(judged, statuses, step, silent, is_over=judged == before)
            if not silent:
                self._tell(judged, highest(news), highest(falls))

    def _note(self, month: date, statuses: dict[Subject, Status]) -> None:
        """What is published of a month, and whose use of it is another one."""
        known = self.published.get(month, {})
        self.changed |= {
            (subject, month)
            for subject, status in statuses.items()
            if subject not in known or known[subject].used != status.used
        }
        self.published[month] = dict(statuses)

    def _judged(
        self,
        month: date,
        statuses: dict[Subject, Status],
        step: Step,
        silent: bool,
        is_over: bool,
    ) -> tuple[list[tuple[Subject, Decimal]], list[tuple[Subject, Decimal]]]:
        falls: list[tuple[Subject, Decimal]] = []
        news: list[tuple[Subject, Decimal]] = []
        for (subject, its_month, share), alert in self.alerts.items():
            if its_month == month:
                was_told = alert.told
                if self._falls(alert, statuses.get(subject), share, step, is_over):
                    falls.append((subject, share))
                if alert.told and not was_told:
                    news.append((subject, share))
        for subject, status in statuses.items():
            for share in map(Decimal, step.shares):
                key = subject, month, share
                if key not in self.alerts and reached(status, share):
                    self.alerts[key] = Alert(told=not silent, end_is_news=not silent)
                    news.append((subject, share))
        return news, falls

    def _falls(
        self, alert: Alert, status: Status | None, share: Decimal, step: Step, is_over: bool
    ) -> bool:
        """Whether anybody is told of it."""
        if reached(status, share):
            if not alert.is_open:  # who was not told of the first time is of this one
                alert.end_is_news = not alert.told
                alert.is_open = alert.again = alert.told = True
        elif is_over:
            return False
        elif alert.is_open and not step.is_missing and (status is None or status.known):
            alert.is_open = False
            return alert.end_is_news
        return False

    def _tell(
        self,
        month: date,
        news: list[tuple[Subject, Decimal]],
        falls: list[tuple[Subject, Decimal]],
    ) -> None:
        for subject, share in news:
            known = [
                other
                for (who, when, other), alert in self.alerts.items()
                if (who, when) == (subject, month) and alert.is_open
            ]
            if share == max(known):
                kind = "exceeded" if share >= 1 else "warning"
                self.messages.append((kind, subject[0], str(share)))
        self.messages += [("resolved", subject[0], str(share)) for subject, share in falls]


def reached(status: Status | None, share: Decimal) -> bool:
    if status is None or not status.known or status.limit is None:
        return False
    used, limit = Decimal(status.used), Decimal(status.limit)
    return used >= limit * share and (limit > 0 or used > 0)


def highest(crossings: list[tuple[Subject, Decimal]]) -> list[tuple[Subject, Decimal]]:
    ordered = sorted(crossings, key=str)
    return [max(group) for _, group in groupby(ordered, key=lambda crossing: crossing[0])]


def test_any_course_of_limits_is_told_as_plain_python_says(
    made: World, request: pytest.FixtureRequest
) -> None:
    thorough = request.config.getoption("thorough")

    @profile(
        max_examples=1_000 if thorough else 40,
        derandomize=not thorough,
        deadline=None,
        database=None,
    )
    @given(st.lists(STEPS, min_size=1, max_size=10))
    def any_course(steps: list[Step]) -> None:
        made.begin()
        oracle, day = Oracle(), march(5)
        for step in steps:
            day += timedelta(step.days)
            missing = [day] if step.is_missing else []
            made.meters = meters(step.shares)
            statuses = [
                Status(s.used, s.limit, s.known, subject) for subject, s in step.statuses.items()
            ]
            late = [Status(s.used, s.limit, s.known, subject) for subject, s in step.late.items()]
            made.publish(day, statuses, missing, last_month=late)
            if made.judge().skipped == "":  # a second look finds nothing
                assert made.judge().raised == 0
            oracle.publish(day, step)
        found = sorted(made.rows()) if oracle.judged_to else []
        expected = sorted(
            (subject[0], month, share, a.is_open, a.again, a.told)
            for (subject, month, share), a in oracle.alerts.items()
        )
        assert found == expected
        assert made.messages() == sorted(oracle.messages)

    any_course()
