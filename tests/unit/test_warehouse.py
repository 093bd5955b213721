"""Ranges of days, the pending days, and the writer's lock."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import days

from usage_pipeline.days import DayRange, merge_ranges, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.processes import lives
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer
from usage_pipeline.warehouse.pending import PendingDays

MONDAY = days("2024-01-01", "2024-01-02")
MIDWEEK = days("2024-01-03", "2024-01-05")


def test_ranges_that_touch_or_overlap_are_merged_and_empty_ones_vanish() -> None:
    assert merge_ranges(
        [
            days("2024-02-01", "2024-02-05"),
            days("2024-01-01", "2024-01-03"),
            days("2024-01-03", "2024-01-04"),
            days("2024-02-02", "2024-02-03"),
            days("2024-01-10", "2024-01-10"),
        ]
    ) == [days("2024-01-01", "2024-01-04"), days("2024-02-01", "2024-02-05")]


_OFFSETS = st.lists(st.integers(0, 80), max_size=30)


@given(_OFFSETS)
def test_ranges_of_days_hold_exactly_those_days(offsets: list[int]) -> None:
    wanted = {date(2024, 1, 20) + timedelta(days=offset) for offset in offsets}
    ranges = ranges_of_days(wanted)
    assert [day for each in ranges for day in each.days()] == sorted(wanted)
    assert all(a.end < b.start for a, b in pairwise(ranges))


@pytest.mark.parametrize(
    ("of", "months"),
    [
        (("2024-02-29", "2024-03-01"), ("2024-02-01", "2024-03-01")),
        (("2024-02-29", "2024-03-02"), ("2024-02-01", "2024-04-01")),
        (("2023-12-31", "2024-01-01"), ("2023-12-01", "2024-01-01")),
        (("2023-12-31", "2024-01-02"), ("2023-12-01", "2024-02-01")),
        (("2024-01-01", "2024-02-01"), ("2024-01-01", "2024-02-01")),
    ],
)
def test_whole_months_of_days(of: tuple[str, str], months: tuple[str, str]) -> None:
    assert days(*of).whole_months() == days(*months)


def started(script: str, settings: Settings, *, says: str) -> subprocess.Popen[str]:
    """Another process over the same home, once it has said its word; it waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(settings.home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == f"{says}\n"
    return process


class TestPendingDays:
    @pytest.fixture
    def settings(self, make_settings: Any) -> Settings:
        settings: Settings = make_settings()
        settings.home.mkdir(parents=True)
        return settings

    def pending(
        self, settings: Settings, version: str = "1", landed: tuple[DayRange, ...] = ()
    ) -> PendingDays:
        return PendingDays(settings, version, lambda: [d for r in landed for d in r.days()])

    def published(self, settings: Settings) -> PendingDays:
        """A warehouse whose only day was built and published."""
        pending = self.pending(settings)
        pending.begin([MONDAY])
        settings.warehouse_path.touch()
        pending.finish([MONDAY])
        pending.remove([MONDAY])
        return pending

    def test_a_new_warehouse_has_every_landed_day_pending(self, settings: Settings) -> None:
        pending = self.pending(settings, landed=(MONDAY, MIDWEEK))
        assert pending.ranges() == [MONDAY, MIDWEEK]
        assert pending.begin([]) == [MONDAY, MIDWEEK]

    def test_days_stay_pending_until_they_are_removed(self, settings: Settings) -> None:
        pending = self.published(settings)
        assert pending.ranges() == []
        pending.add(set(MIDWEEK.days()))
        assert self.pending(settings).ranges() == [MIDWEEK]  # another process
        assert pending.begin([]) == []  # they are not there yet
        pending.landed([MIDWEEK])
        pending.finish(pending.begin([]))
        pending.remove([days("2024-01-03", "2024-01-04")])
        assert pending.ranges() == [days("2024-01-04", "2024-01-05")]

    def test_every_landing_and_build_is_a_new_revision_and_an_extraction_is_none(
        self, settings: Settings
    ) -> None:
        pending = self.published(settings)
        revision = pending.revision()
        pending.add(set(MONDAY.days()))
        assert pending.revision() == revision
        pending.landed([MONDAY])
        assert pending.revision() > revision
        revision = pending.revision()
        pending.begin([])
        assert pending.revision() > revision
        assert pending.revision() == self.pending(settings).revision()

    def test_days_another_run_is_extracting_are_not_published_with_the_built_ones(
        self, settings: Settings
    ) -> None:
        pending = self.published(settings)
        pending.finish(pending.begin([MONDAY]))
        pending.add({*MONDAY.days(), *MIDWEEK.days()})
        assert pending.built() == [MONDAY]
        pending.remove([MONDAY])
        assert pending.built() == []
        assert pending.ranges() == [MONDAY, MIDWEEK]

    def test_built_days_are_pending_again_when_landing_changes(self, settings: Settings) -> None:
        """Even when it is about other days: what was built may be compared with it."""
        pending = self.published(settings)
        pending.finish(pending.begin([MONDAY]))
        pending.add(set(MIDWEEK.days()))
        self.pending(settings).landed([])  # another process, snapshots of other tables
        assert (pending.built(), pending.unbuilt()) == ([], [MONDAY])
        assert pending.ranges() == [MONDAY, MIDWEEK]

    def test_a_build_covers_what_an_earlier_one_left_unpublished(self, settings: Settings) -> None:
        pending = self.published(settings)
        pending.finish(pending.begin([MONDAY]))
        assert pending.begin([MIDWEEK]) == [MONDAY, MIDWEEK]
        assert pending.built() == []

    def test_another_version_makes_all_landed_days_pending_and_drops_the_warehouse(
        self, settings: Settings
    ) -> None:
        self.published(settings)
        other = self.pending(settings, "2", landed=(MONDAY, MIDWEEK))
        assert other.ranges() == [MONDAY, MIDWEEK]
        assert other.begin([]) == [MONDAY, MIDWEEK]
        assert not settings.warehouse_path.exists()

    def test_a_deleted_warehouse_makes_all_landed_days_pending(self, settings: Settings) -> None:
        self.published(settings)
        settings.warehouse_path.unlink()
        assert self.pending(settings, landed=(MIDWEEK,)).ranges() == [MIDWEEK]

    def test_a_kill_before_the_warehouse_exists_loses_no_pending_day(
        self, settings: Settings
    ) -> None:
        self.pending(settings, landed=(MONDAY,)).add(
            set(MIDWEEK.days())
        )  # killed before dbt made the file
        assert self.pending(settings).ranges() == [MONDAY, MIDWEEK]

    def test_an_extraction_that_was_cut_short_is_handed_to_the_next_run(
        self, settings: Settings
    ) -> None:
        pending = self.published(settings)
        pending.add(set(MIDWEEK.days()))  # and then it fails
        assert pending.add(set(MONDAY.days())) == {*MONDAY.days(), *MIDWEEK.days()}
        pending.landed([MONDAY, MIDWEEK])
        assert pending.add(set(MONDAY.days())) == set(MONDAY.days())

    def test_days_that_a_living_process_extracts_are_left_to_it(self, settings: Settings) -> None:
        self.published(settings)
        script = (
            "import sys; from datetime import date; from usage_pipeline.settings import Settings\n"
            "from usage_pipeline.warehouse.pending import PendingDays\n"
            "settings = Settings(_env_file=None, USAGE_HOME=sys.argv[1])\n"
            "PendingDays(settings, '1', list).add({date(2024, 1, 3)})\n"
            "print('added', flush=True); sys.stdin.readline()\n"
        )
        other = started(script, settings, says="added")
        pending = self.pending(settings)
        assert pending.add(set()) == set()
        other.kill()
        other.communicate()
        assert pending.add(set()) == {date(2024, 1, 3)}

    def test_a_warehouse_lost_twice_is_rebuilt_twice(self, settings: Settings) -> None:
        self.published(settings)
        settings.warehouse_path.unlink()
        landed = (MONDAY, MIDWEEK)
        again = self.pending(settings, landed=landed)
        again.begin([])
        settings.warehouse_path.touch()
        again.finish([MONDAY])
        again.remove([MONDAY])  # one pass published, then lost
        settings.warehouse_path.unlink()
        assert self.pending(settings, landed=landed).ranges() == [MONDAY, MIDWEEK]

    @pytest.mark.parametrize("content", ["", '{"version": "1", "pen', "{}"])
    def test_a_damaged_state_file_rebuilds_rather_than_fails(
        self, content: str, settings: Settings
    ) -> None:
        self.published(settings)
        (settings.home / "warehouse.json").write_text(content)
        assert self.pending(settings, landed=(MONDAY,)).ranges() == [MONDAY]

    def test_the_state_file_is_replaced_whole(self, settings: Settings) -> None:
        self.published(settings)
        state = json.loads((settings.home / "warehouse.json").read_text())
        assert state["pending"] == []
        assert not list(settings.home.glob("*.tmp"))


_HOLD_THEN_DIE = """
import os, sys
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer
with writer.exclusive(Settings(_env_file=None, USAGE_HOME=sys.argv[1]), "testing"):
    print("held", flush=True)
    sys.stdin.readline()
    os._exit(1)
"""


def test_one_writer_at_a_time_and_a_killed_one_frees_the_lock(
    make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    holder = started(_HOLD_THEN_DIE, settings, says="held")
    monkeypatch.setattr(writer, "LOCK_TIMEOUT_SECONDS", 0.0)
    told: list[str] = []
    with (
        pytest.raises(UsagePipelineError, match=rf"held by process {holder.pid} \(testing\)"),
        writer.exclusive(settings, "waiting", told.append),
    ):
        pass
    assert told == [f"process {holder.pid} (testing) on {platform.node()}"]
    holder.communicate("\n")
    with writer.exclusive(settings, "after the crash"):
        pass


def test_another_host_that_may_be_at_work_is_not_taken_for_dead(make_settings: Any) -> None:
    settings = make_settings()
    with writer.exclusive(settings, "first"):
        pass
    lock = settings.home / "writer.lock"
    lock.write_text("process 1 (publishing) on elsewhere")
    with (
        pytest.raises(UsagePipelineError, match=r"process 1 \(publishing\) on elsewhere has not"),
        writer.exclusive(settings, "second"),
    ):
        pass
    lock.write_text("")
    with writer.exclusive(settings, "third"):
        pass
    with pytest.raises(UsagePipelineError, match=r"Process 7 on elsewhere has not finished"):
        lives("elsewhere 7 1.5")


def test_a_new_version_leaves_the_warehouse_to_the_writer_that_has_it(make_settings: Any) -> None:
    settings = make_settings()
    landed = MONDAY.days()
    old, new = (PendingDays(settings, version, lambda: landed) for version in ("old", "new"))
    with writer.exclusive(settings, "building with the old version"):
        old.begin([MONDAY])
        settings.warehouse_path.write_text("half built")
        new.add(set(MIDWEEK.days()))  # an extraction, for which nobody waits
        assert settings.warehouse_path.read_text() == "half built"
        old.finish([MONDAY])
    assert new.built() == old.built() == []
    assert new.unbuilt() == [MONDAY]
    with writer.exclusive(settings, "landing"):
        new.landed([MIDWEEK])
    assert not settings.warehouse_path.exists()
    assert new.unbuilt() == [MONDAY, MIDWEEK]
