"""How numbers look on a page: rounded for people, never towards a limit, and exact beside it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from usage_pipeline.meters.meter import Meter
from usage_pipeline.web.figures import Amount, State, together
from usage_pipeline.web.pages.base import change, exact, human, percent, plain, share_of_limit
from usage_pipeline.web.pages.overview import sparkline


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        ("0", "calls", "0"),
        ("0.000000001", "calls", "0"),
        ("12.345", "runs", "12.35"),
        ("-12.345", "runs", "-12.35"),
        ("99999.999", "calls", "100,000"),
        ("99999.99", "calls", "99,999.99"),
        ("100000", "calls", "100 k"),
        ("1234567", "calls", "1.23 M"),
        ("-1234567", "calls", "-1.23 M"),
        ("12345678", "calls", "12.3 M"),
        ("999999999", "calls", "1,000 M"),
        ("1e9", "calls", "1 B"),
        ("12345678901234567890", "calls", "12,345,679 T"),
        ("0", "bytes", "0 B"),
        ("999", "bytes", "999 B"),
        ("1000", "bytes", "1 kB"),
        ("34400000", "bytes", "34.4 MB"),
        ("1e15", "bytes", "1 PB"),
    ],
)
def test_as_people_say_it(value: str, unit: str, said: str) -> None:
    assert human(Decimal(value), unit).replace("\N{NO-BREAK SPACE}", " ") == said


def test_unknown_is_not_zero() -> None:
    assert (human(None), exact(None), percent(None), plain(None)) == ("–", "–", "–", "")


def test_exact_has_all_digits() -> None:
    great = Decimal("12345678901234567890123456789.123456789")
    assert exact(great) == "12,345,678,901,234,567,890,123,456,789.123456789"
    assert plain(great) == "12345678901234567890123456789.123456789"
    assert plain(Decimal("1000.500000000")) == "1000.5"
    assert plain(Decimal("0E-9")) == "0"


# Events of 29 digits before the point are taken, and Python's own decimals have 28 digits.
GREATEST = Decimal("99999999999999999999999999999.999999999")


def test_great_totals_are_added_up_to_the_last_digit() -> None:
    meter = Meter("bytes", "storage_used", "sum")
    quantities = [Decimal("12345678901234567890123456789.123456789"), Decimal("0.000000001")]
    total = Decimal("12345678901234567890123456789.123456790")
    assert together(meter, quantities) == total
    one, other = (Amount(quantity, 1) for quantity in quantities)
    assert one.plus(other, meter) == Amount(total, 2)


def test_the_greatest_numbers_have_words() -> None:
    said = {
        percent(GREATEST): "9,999,999,999,999,999,999,999,999,999,999.9 %",
        change(-GREATEST): "10,000,000,000,000,000,000,000,000,000,000.0 %",
        human(GREATEST): "100,000,000,000,000,000 T",
        human(GREATEST, "bytes"): "100,000,000,000,000 PB",
        change(Decimal("1e38")): "10,000,000,000,000,000,000,000,000,000,000,000,000,000.0 %",
    }
    for found, wanted in said.items():
        assert found.replace("\N{NO-BREAK SPACE}", " ") == wanted


def test_nothing_below_a_limit_is_said_to_be_at_it() -> None:
    for ratio, said in (
        ("0.799999999", "79.9 %"),
        ("0.8", "80.0 %"),
        ("0.999999999", "99.9 %"),
        ("1", "100.0 %"),
        ("20.5", "2,050.0 %"),
    ):
        assert percent(Decimal(ratio)).replace("\N{NO-BREAK SPACE}", " ") == said
    assert change(Decimal("-0.1234")).replace("\N{NO-BREAK SPACE}", " ") == "12.3 %"


def test_a_small_line_stays_in_its_box() -> None:
    assert sparkline([]) == sparkline([Decimal(1)]) == sparkline([Decimal(1), None]) == ""
    assert sparkline([Decimal(0), Decimal(5), Decimal(10)]) == "0.0,30.0 60.0,16.0 120.0,2.0"
    assert sparkline([Decimal(5), None, Decimal(5)]) == "0.0,2.0 120.0,2.0"
    assert sparkline([Decimal(-10), Decimal(0)]) == "0.0,30.0 120.0,2.0"
    assert sparkline([Decimal(0), Decimal(0)]) == "0.0,30.0 120.0,30.0"


def test_a_limit_that_is_almost_reached_is_not_said_to_be() -> None:
    row = {
        "used_quantity": Decimal("999999999.9"),
        "limit_quantity": Decimal(1_000_000_000),
        "used_ratio": Decimal("1.000000000"),  # as it is published, rounded to nine digits
    }
    assert percent(share_of_limit(row)).startswith("99.9")
    assert share_of_limit({**row, "used_ratio": None}) is None


def test_days_that_are_not_landed_are_told_of_the_periods_that_have_them() -> None:
    first, last = date(2026, 4, 1), date(2026, 5, 31)
    gap = (date(2026, 4, 30), date(2026, 5, 1))
    state = State("id", datetime.now(UTC), first, last, (), {}, gap, None)
    assert state.missing_in(state.month(first)) == [date(2026, 4, 30)]
    assert state.missing_in(state.window("month")) == []
    assert state.missing_in(state.window("year")) == [*gap]
