"""What the source is asked for each night, against the same by plain arithmetic."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from usage_pipeline.app_db.fingerprints import fingerprint, source_fingerprints, source_totals
from usage_pipeline.days import DayRange

EXACT = Context(prec=200)
NINTH = Decimal("1e-9")
GREATEST = Decimal("99999999999999999999999999999.9999999995")  # rounds to 30 digits from here on
ODD = (
    *("NaN", "Infinity", "-Infinity", "1e29", "-1e29", "1e400", str(GREATEST), f"-{GREATEST}"),
    *("99999999999999999999999999999.9999999994", "-99999999999999999999999999999.9999999994"),
    *("0.0000000005", "-0.0000000005", "0.00000000049999", "1.0000000015", "-2.5000000025"),
    *("0", "-0", "0.000000000000", "1.500000000000000", "123456789.123456789123456", "1e-300"),
)


def _valid(text: str) -> Decimal | None:
    """The quantity as it counts, by the rules of the specification."""
    number = Decimal(text)
    if not number.is_finite() or number.copy_abs() >= GREATEST:  # abs() would round
        return None
    return number.quantize(NINTH, ROUND_HALF_UP, EXACT)


@pytest.mark.parametrize("type_of_events", ["text", "kind"])
def test_totals_and_fingerprints_of_the_source_are_exact(
    type_of_events: str, new_database: Any, make_settings: Any
) -> None:
    """Any quantity that Postgres holds, in a zone whose days have 23 and 25 hours."""
    seeded, zone = random.Random(11), ZoneInfo("America/New_York")
    database = new_database()
    if type_of_events == "kind":
        database.execute(
            "create type kind as enum ('api_call', 'user_active');"
            " alter table usage_events alter column event_type type kind using event_type::kind"
        )
    first, last = date(2024, 3, 8), date(2024, 3, 12)
    rows, events = [], []
    for n in range(3000):
        digits = seeded.choice((0, 2, 9, 15))
        plain = Decimal(seeded.randint(-(10**20), 10**20)).scaleb(-digits)
        text = seeded.choice(ODD) if n % 3 == 0 else format(plain, "f")
        kind = seeded.choice(("api_call", "user_active", None))
        at = datetime(2024, 3, 7, 20, tzinfo=UTC) + timedelta(
            microseconds=seeded.randrange(5 * 86400 * 10**6)
        )
        events.append((text, kind, at))
        rows.append((str(UUID(int=n)), str(UUID(int=1)), None, kind, None, text, at))
    database.execute("alter table usage_events alter column event_type drop not null")
    database.insert("usage_events", rows)
    settings = make_settings(USAGE_APP_DATABASE_URL=database.url, USAGE_TIMEZONE="America/New_York")
    whole, one = DayRange(first, last), DayRange(first, first + timedelta(days=1))
    totals: dict[date, dict[Any, list[Decimal]]] = defaultdict(lambda: defaultdict(list))
    states: dict[date, list[tuple[str, datetime]]] = defaultdict(list)
    for text, kind, at in events:
        on, counted = at.astimezone(zone).date(), _valid(text)
        states[on].append((text, at))
        if counted is not None:
            totals[on][kind].append(counted)

    def added(numbers: list[Decimal]) -> Decimal:
        total = Decimal(0)
        for number in numbers:
            total = EXACT.add(total, number)
        return total

    for days in (whole, one):
        found = source_totals(settings, [days])
        assert found == {
            on: {kind: (len(numbers), added(numbers)) for kind, numbers in totals[on].items()}
            for on in days.days()
        }
        assert source_fingerprints(settings, days) == {
            on: fingerprint(
                len(states[on]),
                added([v for text, _ in states[on] if (v := _valid(text)) is not None]),
                max(at for _, at in states[on]),
            )
            for on in days.days()
        }
