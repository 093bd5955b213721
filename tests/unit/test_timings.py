"""Seconds by stage, with a clock that the test moves."""

from __future__ import annotations

import time

import pytest

from usage_pipeline.infra.timings import Timings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_stage_inside_another_counts_for_itself_only(clock: list[float]) -> None:
    timings = Timings()
    for _ in range(2):
        with timings.stage("outer"):
            clock[0] += 1
            with timings.stage("inner"):
                clock[0] += 10
                with timings.stage("innermost"):
                    clock[0] += 100
            clock[0] += 2
    clock[0] += 1000  # outside of any stage
    assert timings.seconds == {"outer": 6.0, "inner": 20.0, "innermost": 200.0}


def test_a_stage_hands_seconds_up_to_the_one_around_it(clock: list[float]) -> None:
    timings = Timings()
    with timings.stage("models"):
        clock[0] += 1
        with timings.stage("start"):
            clock[0] += 10
            timings.hand_up(7)
    assert timings.seconds == {"models": 8.0, "start": 3.0}


def test_a_stage_that_fails_is_counted_too(clock: list[float]) -> None:
    timings = Timings()
    with pytest.raises(ValueError, match="no"), timings.stage("outer"), timings.stage("inner"):
        clock[0] += 3
        raise ValueError("no")
    assert timings.seconds == {"outer": 0.0, "inner": 3.0}
