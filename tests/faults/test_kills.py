"""A rollup that is killed or fails, wherever it is, is made good by the next ordinary one.

The source changes, a rollup is killed, loses its connection or its disk, the source changes again,
and another rollup runs: of another day, or of the same days. What it leaves has to equal what the
same two rollups leave undisturbed, to the last cell and file; and readers never see anything in
between.

`make test` kills at the points between two places that have to agree and at a few random times;
`make faults` at all points and 200 random times.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import pytest
from faults.child import EXPLAINED, KILLS, LOSSES
from faults.house import House, State
from support import Row, day, days, numbers_only, postgres_tables, snapshot_tables

from usage_pipeline.days import DayRange

KILLED = days("2024-03-30", "2024-04-01")
QUICK_POINTS = (
    "between a landed file and its manifest",
    "after Postgres committed",
    "between two exports",
)
KILLS_AT_RANDOM, QUICK_KILLS = 200, 2
ALERTS_POINTS = (
    "before alerts are committed",
    "before limits are compared",
    "after alerts are committed",
)

# What the killed run has to bring in: a late event, an invalid one, a lost user, corrections,
# events that move to the next day, a new user and the end of a subscription.
CHANGES = """
    insert into usage_events values
        ('00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-0000000000aa', null,
         'api_call', null, 7.000000001, '2024-03-30T23:59:59.999999Z'),
        ('00000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-0000000000aa', null,
         'ai_tokens_used', null, 'NaN', '2024-03-31T00:00Z');
    delete from usage_events where created_at >= '2024-03-31Z' and created_at < '2024-04-01Z'
        and user_id = (select max(user_id::text)::uuid from usage_events);
    update usage_events set quantity = quantity + 1
        where created_at >= '2024-03-30Z' and created_at < '2024-03-30T06:00Z';
    update usage_events set created_at = created_at + interval '1 day'
        where created_at >= '2024-03-30T12:00Z' and created_at < '2024-03-30T14:00Z';
    insert into users values
        ('00000000-0000-4000-8000-0000000000aa', null, '2024-03-30Z', null);
    update subscriptions set status = 'canceled', canceled_at = '2024-03-31T12:00Z';
"""


@dataclass(frozen=True)
class Repair:
    """What happens in the source after the kill, and the rollup that follows."""

    change: str
    ranges: DayRange


REPAIRS = {
    "another day": Repair(
        """delete from usage_events
               where created_at >= '2024-04-01T03:00Z' and created_at < '2024-04-01T09:00Z';
           update subscriptions set status = 'active', canceled_at = null""",
        day("2024-04-01"),
    ),
    # Some numbers are again what they were before the killed run.
    "the same days": Repair(
        """update usage_events set quantity = quantity - 1
               where created_at >= '2024-03-30Z' and created_at < '2024-03-30T06:00Z'""",
        KILLED,
    ),
}


@dataclass(frozen=True)
class Undisturbed:
    """The published rows that readers may see after a kill, what each repair has to lead to, and
    how long the run takes that is killed elsewhere."""

    before: dict[str, list[Row]]
    after: dict[str, list[Row]]
    repaired: dict[str, State]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(house: House) -> Undisturbed:
    house.put_back()
    before = house.state().tables
    house.database.execute(CHANGES)
    seconds = house.run(KILLED)
    after = house.state().tables
    assert after != before
    house.keep("done")
    repaired = {}
    for name, repair in REPAIRS.items():
        house.put_back("done")
        house.database.execute(repair.change)
        house.run(repair.ranges)
        repaired[name] = house.state()
        assert repaired[name].tables != after
    return Undisturbed(before, after, repaired, seconds)


def assert_readers_see_one_state(house: House, undisturbed: Undisturbed) -> bool:
    """The state before the killed run or the one after it; gives whether both see the former."""
    seen = [
        numbers_only(tables)
        for tables in (snapshot_tables(house.settings), postgres_tables(house.database.url))
    ]
    for tables in seen:
        assert tables in (undisturbed.before, undisturbed.after)
    return seen == [undisturbed.before] * 2


def repair(house: House, undisturbed: Undisturbed, name: str) -> None:
    house.database.execute(REPAIRS[name].change)
    house.run(REPAIRS[name].ranges)
    assert_repaired(house, undisturbed, name)


def assert_repaired(house: House, undisturbed: Undisturbed, name: str) -> None:
    differences = house.state().differences(undisturbed.repaired[name])
    if name == "the same days":  # whose numbers are restated once or twice
        differences.pop("usage_restatements", None)
    assert differences == {}
    house.assert_at_rest()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    thorough = metafunc.config.getoption("thorough")
    if "point" in metafunc.fixturenames:
        metafunc.parametrize("point", [*KILLS, *LOSSES] if thorough else [*QUICK_POINTS, *LOSSES])
    if "alerts_point" in metafunc.fixturenames:
        points = ALERTS_POINTS if thorough else ALERTS_POINTS[:1]
        metafunc.parametrize("alerts_point", points)
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(KILLS_AT_RANDOM if thorough else QUICK_KILLS))


def test_a_fault_at_a_point(house: House, undisturbed: Undisturbed, point: str) -> None:
    house.put_back()
    house.database.execute(CHANGES)
    process = house.start(KILLED, point)
    process.join()
    assert process.exitcode == (EXPLAINED if point in LOSSES else -9)
    unchanged = assert_readers_see_one_state(house, undisturbed)
    # A run that died before it asked for its days has to be asked again.
    name = "the same days" if unchanged and house.asks_for_nothing() else "another day"
    repair(house, undisturbed, name)


def test_alerts_of_a_killed_run_are_told_once_even_in_a_new_month(
    house: House, alerts_point: str
) -> None:
    house.put_back()
    database, april = house.database, day("2024-04-01")
    person = "00000000-0000-4000-8000-0000000000aa"
    # nobody else uses that much
    database.execute("insert into plan_limits values ('free', 'api_call', 1e12)")
    event = (str(UUID(int=1)), person, None, "api_call", None, "1e12", "2024-04-01T12:00Z")
    database.insert("usage_events", [event])
    process = house.start(april, alerts_point)
    process.join()
    assert process.exitcode == -9
    status = "select user_id::text, status from usage.usage_limit_status where status <> 'ok'"
    assert database.query(status) == [(person, "exceeded")]
    alerts = "select user_id::text, month::text, threshold from usage.usage_alerts order by 3"
    committed = alerts_point == "after alerts are committed"
    crossed = [(person, "2024-04-01", Decimal(share)) for share in ("0.8", "1")]
    assert database.query(alerts) == (crossed if committed else [])

    for _ in range(2):
        house.run(day("2024-05-01"))
        assert database.query(status) == []
        assert database.query(alerts) == crossed
        assert database.query("select event_type from usage.outbox_messages") == [
            ("usage.limit_exceeded",)
        ]
    house.assert_at_rest()


def test_killed_at_a_random_time(house: House, undisturbed: Undisturbed, seed: int) -> None:
    """Every third repair is killed as well."""
    dice = random.Random(seed)
    house.put_back()
    house.database.execute(CHANGES)
    kill_after(house, KILLED, dice.uniform(0, undisturbed.seconds))
    unchanged = assert_readers_see_one_state(house, undisturbed)
    name = dice.choice(list(REPAIRS))
    if unchanged and house.asks_for_nothing():
        name = "the same days"
    if seed % 3 == 0:
        house.database.execute(REPAIRS[name].change)
        kill_after(house, REPAIRS[name].ranges, dice.uniform(0, undisturbed.seconds))
        house.run(REPAIRS[name].ranges)
        assert_repaired(house, undisturbed, name)
    else:
        repair(house, undisturbed, name)


def kill_after(house: House, ranges: DayRange, seconds: float) -> None:
    process = house.start(ranges)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (-9, 0)  # zero if it was done by then
