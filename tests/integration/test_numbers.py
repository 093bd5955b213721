"""How numbers are read from text and JSON: the macros of engine.sql, and Postgres, Decimal."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import jinja2
import pytest
from support import AppDatabase, day, roll_up, snapshot_query

from usage_pipeline.meters.event_data import spelled_number
from usage_pipeline.settings import DBT_PROJECT_DIR

MACROS: Any = (
    jinja2.Environment()
    .from_string((DBT_PROJECT_DIR / "macros/engine.sql").read_text(encoding="utf-8"))
    .module
)

# Each reads the document and the path that it is given.
PATH, NESTED = '$."n"', '$."a"."n"'


def quantities(texts: list[str]) -> list[Decimal | None]:
    """What the models make of each text."""
    query = f"select {MACROS.duckdb__to_quantity('t')} from (select unnest($1) as t)"
    return [value for (value,) in duckdb.execute(query, [texts]).fetchall()]


def at(path: str, documents: list[str]) -> list[str | None]:
    """What the models find at a path, as text."""
    query = f"select {MACROS.duckdb__json_text('d', path)} from (select unnest($1) as d)"
    return [value for (value,) in duckdb.execute(query, [documents]).fetchall()]


def _number(random: random.Random) -> str:
    """A number in one of many spellings, often near a limit of DECIMAL(38,9)."""
    whole = random.choice(["", "0", "00", "9" * 29, "1" + "0" * 28, str(random.randrange(10**12))])
    length = random.choice([0, 1, 8, 9, 10, 11, 30])
    fraction = random.choice(
        ["", "5", "4" * 9 + "5", "9" * 10, "".join(random.choices("0123456789", k=length))]
    )
    if not whole and not fraction:
        whole = "7"
    point = "." if fraction or random.random() < 0.3 else ""
    exponent = random.choice(["", "", "e0", "E+3", "e-9", "e-12", "e30", "e-41", "e0009", "e-300"])
    space = random.choice(["", "", "", " ", "\t", "\n", "\v", "\f\r"])
    return space + random.choice(["", "-", "+"]) + whole + point + fraction + exponent + space


def test_a_numeric_string_is_the_number_that_postgres_casts_it_to(new_database: Any) -> None:
    source: AppDatabase = new_database(schema=False)
    # 29 integer digits at most, so that its numeric(38,9) holds what the models' type holds
    source.execute(
        "create function cast_or_null(t text) returns numeric language plpgsql as "
        "'begin return t::numeric(38,9); exception when others then return null; end'"
    )
    seeded = random.Random(1)
    texts = [
        *("0.000000000009", "8.5e-12", "+.00005e30", "+5.", ".5", "-0", "", " ", ".", "e5", "1e"),
        *("1 2", "--1", "+-1", "1.2.3", "1,5", "$1", "½", "٣", "1e+", "1e5.0", "1d5", "true"),
        *("0.0000000005", "-0.0000000005", "0.00000000049999", "5e-10", "-4.9e-10", "0e300"),
        "99999999999999999999999999999.9999999994",
        "99999999999999999999999999999.9999999995",
        "-99999999999999999999999999999.9999999995",
        *("1e29", "1e28", "0.1e30", "1000e-3", "1e9999", "1e-9999", "1" * 40, "0" * 60 + "1"),
        *(_number(seeded) for _ in range(4000)),
    ]
    expected = source.query("select cast_or_null(t) from unnest(%s::text[]) as t", [texts])
    assert {
        text: (found, value)
        for text, found, (value,) in zip(texts, quantities(texts), expected, strict=True)
        if found != value
    } == {}


def test_what_is_no_number_in_every_release_of_postgres_is_invalid() -> None:
    """NaN and infinity; and hexadecimal digits and underscores, which releases from 16 on read."""
    texts = ["NaN", "Infinity", "-inf", "0x1F", "0b1", "0o7", "1_000", "1e12345"]
    assert quantities(texts) == [None] * len(texts)


SPELLINGS = {
    "1.50": "1.5",
    "1.5": "1.5",
    "15e-1": "1.5",
    "0.10": "0.1",
    "1e3": "1000",
    "1E+3": "1000",
    "1.0": "1",
    "-0": "0",
    "-0.0": "0",
    "0e7": "0",
    "1000": "1000",
    "-12.500e-3": "-0.0125",
    "5e-324": "0." + "0" * 323 + "5",
    "1e-400": "0." + "0" * 399 + "1",
    "1e400": "1" + "0" * 400,
    "0.000000000009": "0.000000000009",
    "12345678901234567.01": "12345678901234567.01",
    "12345678901234567890120": "12345678901234567890120",
    "18446744073709551616.0": "18446744073709551616",
    "-9223372036854775809": "-9223372036854775809",
    "0.1000000000000000055": "0.1000000000000000055",
}


@pytest.mark.parametrize(
    "beside",
    [
        "1",
        "12345678901234567.02",
        '"12345678901234567.03"',
        '"{\\"n\\": 7, \\\\"',
        '[1e400, {"n": 3.30}, "é\\n-5"]',
    ],
)
def test_a_number_has_one_spelling_whatever_else_the_document_holds(beside: str) -> None:
    written = list(SPELLINGS)
    for document, path in (
        ('{"b": %s, "n": %s}', PATH),
        ('{"b": {"n": %s}, "a": {"n": %s}}', NESTED),
        ('{"n": %s, "a": {"x": "n", "n": %s}}', NESTED),
    ):
        documents = [document % (beside, number) for number in written]
        assert dict(zip(written, at(path, documents), strict=True)) == SPELLINGS


def test_a_number_beside_an_equal_double_is_not_taken_for_it() -> None:
    document = '{"a": {"n": 12345678901234567.01}, "b": {"n": 12345678901234567.02}}'
    assert at('$."b"."n"', [document]) == ["12345678901234567.02"]


def test_what_is_no_number_stays_as_it_is() -> None:
    values = {
        '"1.50"': "1.50",
        '"1e3"': "1e3",
        '"a\\"1.5\\\\"': 'a"1.5\\',
        "true": "true",
        "null": None,
        '[1.50, "2.50"]': '[1.50,"2.50"]',
        '{"x": 12345678901234567.02, "y": 1.0}': '{"x":12345678901234567.02,"y":1.0}',
    }
    assert dict(zip(values, at(PATH, [f'{{"n": {v}}}' for v in values]), strict=True)) == values
    assert at(PATH, ['{"m": 12345678901234567.02}', "[]", "3.5"]) == [None] * 3


def test_random_documents_are_spelled_like_decimals() -> None:
    seeded = random.Random(2)
    numbers = [
        f"{seeded.choice(['', '-'])}{seeded.randrange(10 ** seeded.randrange(1, 25))}"
        f"{seeded.choice(['', '.0', '.50', f'.{seeded.randrange(10**20):020}'])}"
        f"{seeded.choice(['', '', 'e5', 'E-7', 'e+30', 'e-330'])}"
        for _ in range(3000)
    ]
    documents = [f'{{"m": {seeded.choice(numbers)}, "n": {number}}}' for number in numbers]
    found = at(PATH, documents)
    for number, text in zip(numbers, found, strict=True):
        assert text is not None
        assert Decimal(text) == Decimal(number), number
        assert text == spelled_number(number), number


def test_postgres_reads_every_spelling_as_the_number(new_database: Any) -> None:
    source: AppDatabase = new_database(schema=False)
    ((same,),) = source.query(
        "select bool_and(spelled::numeric = written::jsonb::text::numeric) "
        "from unnest(%s::text[], %s::text[]) as s (written, spelled)",
        [list(SPELLINGS), list(SPELLINGS.values())],
    )
    assert same
    assert {n: spelled_number(n) for n in SPELLINGS} == SPELLINGS


METERS = """\
meters:
  - {key: size, event_type: api_call, aggregation: sum, value: $.b.n, dimensions: {size: $.b.n}}
  - {key: sizes, event_type: api_call, aggregation: unique_count, value: $.b.n}
  - {key: new, event_type: api_call, aggregation: count, filter: {$.version: 1.50}}
"""


def test_filters_dimensions_and_distinct_values_see_the_one_spelling(
    new_database: Any, make_settings: Any, tmp_path: Path
) -> None:
    source: AppDatabase = new_database()
    (tmp_path / "meters.yml").write_text(METERS)
    documents = (
        '{"a": {"n": 12345678901234567.01}, "b": {"n": 12345678901234567.02}, "version": 1.50}',
        '{"b": {"n": 0.10}, "version": 15e-1}',
        '{"b": {"n": 0.1}, "version": 1.5}',
        '{"b": {"n": "8.5e-12"}, "version": "1.50"}',
        '{"b": {"n": 0.000000000009}}',
    )
    source.insert(
        "usage_events",
        [
            (str(UUID(int=at)), str(UUID(int=7)), None, "api_call", document, 1, "2024-03-30Z")
            for at, document in enumerate(documents)
        ],
    )
    settings = make_settings(
        USAGE_APP_DATABASE_URL=source.url, USAGE_METERS_FILE=tmp_path / "meters.yml"
    )
    roll_up(settings, day("2024-03-30"))
    assert snapshot_query(
        settings, "select metric_type, total_quantity, event_count from usage_monthly order by 1"
    ) == [
        ("new", Decimal(3), 3),
        # 8.5e-12 and 9e-12 round to nothing
        ("size", Decimal("12345678901234567.22"), 5),
        ("sizes", Decimal(4), 5),
    ]
    assert snapshot_query(
        settings,
        "select dimension_value, event_count from usage_daily_by_dimension order by 1",
    ) == [("0.000000000009", 1), ("0.1", 2), ("12345678901234567.02", 1), ("8.5e-12", 1)]
