"""Rollup: which of several results of one test counts, and an audit of nothing."""

from typing import Any

import pytest

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.rollup import Rollup, _badness
from usage_pipeline.warehouse.transform import NodeResult


def result(status: str, failures: int | None = None) -> NodeResult:
    return NodeResult("test.usage_pipeline.keys.1", status, 0.1, failures, "")


def test_an_error_in_one_range_outweighs_a_pass_in_another() -> None:
    # A test that errors finds no rows; counting rows alone would have kept the pass.
    ranges = [result("pass", 0), result("error"), result("warn", 9)]
    assert max(ranges, key=_badness).status == "error"


def test_of_two_failures_the_one_with_more_rows_counts() -> None:
    assert max([result("fail", 2), result("fail", 7)], key=_badness).failures == 7


def test_an_audit_before_anything_is_landed_says_so(make_settings: Any) -> None:
    with pytest.raises(UsagePipelineError, match=r"No day is landed .*usage-pipeline rollup"):
        Rollup(make_settings()).audit()
