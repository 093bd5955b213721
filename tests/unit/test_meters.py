"""The meters file: what is accepted, and that each error names file, line and key."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.meters.event_data import event_data_reducer, json_path
from usage_pipeline.meters.file import load_meters, parse_meters
from usage_pipeline.meters.meter import AGGREGATIONS, EVENT_TYPES, Meter
from usage_pipeline.meters.version import dbt_vars, meters_version
from usage_pipeline.settings import DBT_PROJECT_DIR


def written(path: Path, text: str) -> Path:
    file = path / "meters.yml"
    file.write_text(text, encoding="utf-8")
    return file


FULL = """\
meters:
  - key: ai_tokens_gpt
    event_type: ai_tokens_used
    aggregation: sum
    value: $.usage.total
    filter: {$.model: [gpt-4, gpt-4o], $.cached: false, $.version: 4}
    dimensions: {model: $.model}
    unit: tokens
    description: Tokens used on GPT models
  - {key: calls, event_type: api_call, aggregation: count}
"""


def test_a_full_meter_is_read(tmp_path: Path) -> None:
    assert parse_meters(written(tmp_path, FULL)) == [
        Meter(
            key="ai_tokens_gpt",
            event_type="ai_tokens_used",
            aggregation="sum",
            value="$.usage.total",
            filter={"$.model": ["gpt-4", "gpt-4o"], "$.cached": ["false"], "$.version": ["4"]},
            dimensions={"model": "$.model"},
            unit="tokens",
            description="Tokens used on GPT models",
        ),
        Meter(key="calls", event_type="api_call", aggregation="count"),
    ]


def test_a_number_in_a_filter_is_spelled_as_numbers_of_event_data_are(tmp_path: Path) -> None:
    values = "[1.50, 15e-1, -0, 1000, 1e3, '1.50', 007, 1_000, 0x10, v1.50, 2024-01-01]"
    filtered = FULL.replace("$.version: 4", f"$.version: {values}")
    (meter, _) = parse_meters(written(tmp_path, filtered))
    assert meter.filter["$.version"] == (
        ["1.5", "1.5", "0", "1000", "1000", "1.50", "007", "1_000", "0x10", "v1.50", "2024-01-01"]
    )


def test_the_default_file_sums_the_quantity_of_each_event_type() -> None:
    meters = parse_meters(DBT_PROJECT_DIR / "meters.yml")
    assert [meter.key for meter in meters] == list(EVENT_TYPES)
    assert all(meter.event_type == meter.key for meter in meters)
    assert {(meter.aggregation, meter.value) for meter in meters} == {("sum", None)}
    assert not any(meter.reads_event_data for meter in meters)


@pytest.mark.parametrize(
    ("keys", "thresholds"),
    [
        ("", ["0.8", "1"]),
        ("alert_at: []", []),
        ("alert_at: [120%, 50 %, 1.0, 1.1]", ["0.5", "1", "1.1", "1.2"]),
        ("alert_at: [12.5%, 0.000000001]", ["0.000000001", "0.125"]),
        (
            "alert_at: [10%, 30%, 50%, 100%]\n    alert_every: 100%",
            ["0.1", "0.3", "0.5", *map(str, range(1, 101))],
        ),
    ],
)
def test_alerts_are_at_shares_of_a_limit(keys: str, thresholds: list[str], tmp_path: Path) -> None:
    text = f"meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    {keys}\n"
    (meter,) = parse_meters(written(tmp_path, text))
    assert meter.alert_thresholds == [Decimal(threshold) for threshold in thresholds]
    (plain,) = parse_meters(written(tmp_path, text.replace(keys, "") if keys else text))
    assert meters_version([meter]) == meters_version([plain])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_is_accepted(aggregation: str, tmp_path: Path) -> None:
    text = f"meters:\n  - {{key: k, event_type: e, aggregation: {aggregation}, value: quantity}}\n"
    (meter,) = parse_meters(written(tmp_path, text))
    assert meter.aggregation == aggregation


BAD = {
    "no mapping": ("- 1\n", 1, "meters"),
    "another top-level key": ("metres: []\n", 1, "metres"),
    "empty list": ("meters: []\n", 1, "meters"),
    "meter is text": ("meters:\n  - api_call\n", 2, "meter"),
    "unknown key": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    agg: x\n",
        5,
        "agg",
    ),
    "key given twice in one meter": ("meters:\n  - key: a\n    key: b\n", 3, "key"),
    "missing event_type": ("meters:\n  - key: a\n    aggregation: count\n", 2, "event_type"),
    "missing aggregation": ("meters:\n  - key: a\n    event_type: e\n", 2, "aggregation"),
    "missing key": ("meters:\n  - event_type: e\n    aggregation: count\n", 2, "key"),
    "not snake_case": (
        "meters:\n  - key: ApiCalls\n    event_type: e\n    aggregation: count\n",
        2,
        "key",
    ),
    "quote in the event type": (
        'meters:\n  - key: a\n    event_type: "e\'; drop"\n    aggregation: count\n',
        3,
        "event_type",
    ),
    "unknown aggregation": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: median\n",
        4,
        "aggregation",
    ),
    "value missing": ("meters:\n  - key: a\n    event_type: e\n    aggregation: sum\n", 2, "value"),
    "value is no path": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: sum\n    value: usage.total\n",
        5,
        "value",
    ),
    "path with a quote": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: sum\n    value: $.a'b\n",
        5,
        "value",
    ),
    "filter without values": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n"
        "    filter:\n      $.m: []\n",
        6,
        "filter",
    ),
    "alerts are no list": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    alert_at: 80%\n",
        5,
        "alert_at",
    ),
    "an alert at nothing": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    alert_at: [0.5, 0]\n",
        5,
        "alert_at",
    ),
    "an alert below nothing": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    alert_at: [-10%]\n",
        5,
        "alert_at",
    ),
    "an alert of ten digits": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n"
        "    alert_at: [0.0000000001]\n",
        5,
        "alert_at",
    ),
    "an alert that is no number": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    alert_at: [soon]\n",
        5,
        "alert_at",
    ),
    "an alert given twice": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n"
        "    alert_at: [0.8, 80%]\n",
        5,
        "alert_at",
    ),
    "a step that is a list": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    alert_every: [100%]\n",
        5,
        "alert_every",
    ),
    "a step of nothing": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n    alert_every: 0%\n",
        5,
        "alert_every",
    ),
    "filter by something else than a path": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n"
        "    filter:\n      model: [x]\n",
        6,
        "filter",
    ),
    "dimension not snake_case": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n"
        "    dimensions:\n      Model: $.m\n",
        6,
        "dimensions",
    ),
    "dimension is no path": (
        "meters:\n  - key: a\n    event_type: e\n    aggregation: count\n"
        "    dimensions:\n      model: m\n",
        6,
        "model",
    ),
    "key used twice": (
        "meters:\n  - {key: a, event_type: e, aggregation: count}\n"
        "  - {key: a, event_type: f, aggregation: count}\n",
        3,
        "a",
    ),
    "null key": ("meters:\n  - key:\n    event_type: e\n    aggregation: count\n", 2, "key"),
    "tab instead of spaces": ("meters:\n\t- key: a\n", 2, "YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_names_file_line_and_key(case: str, tmp_path: Path) -> None:
    text, line, key = BAD[case]
    path = written(tmp_path, text)
    with pytest.raises(UsagePipelineError) as failure:
        parse_meters(path)
    assert failure.value.problem.startswith(f"{path}:{line}: ")
    assert key in failure.value.problem
    assert failure.value.remedy


def test_an_empty_and_an_absent_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsagePipelineError, match="the file is empty"):
        parse_meters(written(tmp_path, ""))
    with pytest.raises(UsagePipelineError, match="Set USAGE_METERS_FILE"):
        parse_meters(tmp_path / "absent.yml")


def test_paths_are_refused_where_event_data_is_not_landed(
    tmp_path: Path, make_settings: Any
) -> None:
    variables = {"USAGE_METERS_FILE": written(tmp_path, FULL), "USAGE_LAND_EVENT_DATA": False}
    with pytest.raises(UsagePipelineError, match=r"ai_tokens_gpt read event_data.*LAND_EVENT_DATA"):
        load_meters(make_settings(**variables))
    assert len(load_meters(make_settings(**variables | {"USAGE_LAND_EVENT_DATA": True}))) == 2


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("$.usage", '$."usage"'),
        ("$.usage.total-ms[0]", '$."usage"."total-ms"[0]'),
        ("$[12].x", '$[12]."x"'),
    ],
)
def test_json_path_quotes_every_name(path: str, quoted: str) -> None:
    assert json_path(path) == quoted


def test_the_version_changes_with_the_numbers_and_not_with_the_prose(tmp_path: Path) -> None:
    version = meters_version(parse_meters(written(tmp_path, FULL)))
    prose = FULL.replace("Tokens used on GPT models", "GPT").replace("unit: tokens", "unit: t")
    assert meters_version(parse_meters(written(tmp_path, prose))) == version
    for old, new in (("gpt-4o", "gpt-5"), ("sum", "max"), ("$.usage.total", "$.usage.x")):
        changed = parse_meters(written(tmp_path, FULL.replace(old, new)))
        assert meters_version(changed) != version


def test_event_types_of_meters_are_known_types(tmp_path: Path) -> None:
    text = "meters:\n  - {key: a, event_type: file_opened, aggregation: count}\n"
    assert dbt_vars(parse_meters(written(tmp_path, text)))["event_types"] == sorted(
        [*EVENT_TYPES, "file_opened"]
    )


@pytest.mark.parametrize(
    ("event_type", "data", "reduced"),
    [
        (
            "ai_tokens_used",
            '{"usage": {"total": 0.12345678901234567890, "by": "Ada"}, "model": "ü", "note": 1}',
            '{"usage": {"total": 0.12345678901234567890}, "model": "ü"}',
        ),
        ("ai_tokens_used", '{"usage": "Ada", "model": 1e400}', '{"usage": null, "model": 1e400}'),
        (
            "ai_tokens_used",
            '{"parts": ["Ada", {"n": -7, "by": "Ada"}, "Bob"]}',
            '{"parts": [null, {"n": -7}, null]}',
        ),
        ("ai_tokens_used", '["Ada"]', "[null]"),
        ("ai_tokens_used", "no JSON", None),
        ("ai_tokens_used", None, None),
        ("api_call", '{"model": "gpt-4"}', None),  # counted, with nothing read of it
    ],
)
def test_event_data_is_reduced_to_what_the_meters_read(
    tmp_path: Path, event_type: str, data: str | None, reduced: str | None
) -> None:
    text = """
meters:
  - {key: calls, event_type: api_call, aggregation: count}
  - key: tokens
    event_type: ai_tokens_used
    aggregation: sum
    value: $.usage.total
    filter: {"$.parts[1].n": ["-7"]}
    dimensions: {model: $.model}
"""
    meters = parse_meters(written(tmp_path, text))
    assert event_data_reducer(meters)(event_type, data) == reduced
