"""Rollup: which of several results of one test counts, and an audit of nothing."""

from datetime import date
from typing import Any

import pytest
from support import days

from usage_pipeline.audit.gate import worst_results
from usage_pipeline.cli.rollups import _left_pending
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.rollup import Rollup
from usage_pipeline.warehouse.transform import NodeResult, _remedy


def result(status: str, failures: int | None = None) -> NodeResult:
    return NodeResult("test.usage_pipeline.keys.1", status, 0.1, failures, "")


def test_an_error_in_one_range_outweighs_a_pass_in_another() -> None:
    # A test that errors finds no rows; counting rows alone would have kept the pass.
    ranges = [result("pass", 0), result("error"), result("warn", 9)]
    assert [each.status for each in worst_results(ranges).values()] == ["error"]


def test_of_two_failures_the_one_with_more_rows_counts() -> None:
    ranges = [result("fail", 7), result("fail", 2)]
    assert [each.failures for each in worst_results(ranges).values()] == [7]


def test_a_stopped_rollup_notes_the_days_that_it_did_not_come_to(make_settings: Any) -> None:
    settings = make_settings()
    settings.home.mkdir()
    Rollup(settings).pending.add({date(2026, 11, 20)})  # which an earlier night left
    said = _left_pending(settings, days("2026-11-01", "2026-11-25"))
    assert "[2026-11-01, 2026-11-25);" in said
    assert Rollup(settings).pending.ranges() == [days("2026-11-01", "2026-11-25")]


def test_an_audit_before_anything_is_landed_says_so(make_settings: Any) -> None:
    with pytest.raises(UsagePipelineError, match=r"No day is landed .*usage-pipeline rollup"):
        Rollup(make_settings()).audit()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('No magic bytes found at end of file "d/part-0.parquet"', "Delete the named landing file"),
        ('Failed to read file "d/part-0.parquet": ZSTD', "Delete the named landing file"),
        ('Invalid string encoding found in Parquet file "d/part-0.parquet"', "Correct the cause"),
        ('Conversion Error of "x" in "d/part-0.parquet"', "Correct the cause"),
    ],
)
def test_only_a_file_that_cannot_be_read_is_to_be_deleted(words: str, remedy: str) -> None:
    assert _remedy(words).startswith(remedy)
