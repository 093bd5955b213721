"""The benchmark counts no time without an equal result. Its figures are nobody's business here."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import DatabaseFactory

from bench import budgets
from bench.compare import cells
from bench.measure import MeasurementFailed
from bench.peers import aggregate, aggregate_cells, prepare_aggregates
from bench.plan import PLACES, Run
from bench.report import BEGIN, END, Report
from bench.shape import Shape

ADA, BOB = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
ORG = "00000000-0000-4000-8000-0000000000ff"


@pytest.fixture(scope="module")
def source(short_tmp: Callable[[], Path]) -> Path:
    """Of a server that is filled once."""
    return short_tmp()


@pytest.fixture
def run(short_tmp: Callable[[], Path], source: Path) -> Iterator[Run]:
    run = Run(Shape(scale=0.0002, history_days=4, year=5, nights=1), short_tmp(), source)
    yield run
    run.close()


def test_aggregate_usage_equals_totals_by_hand_and_a_billionth_is_a_difference(
    new_database: DatabaseFactory, tmp_path: Path
) -> None:
    database = new_database()
    events = [
        (ADA, ORG, "api_call", "1.0000000004", "2025-09-01 00:00+00"),  # rounds to 1
        (ADA, ORG, "api_call", "-0.25", "2025-09-01 23:59:59.999999+00"),
        (ADA, ORG, "api_call", "NaN", "2025-09-01 12:00+00"),
        (ADA, ORG, "api_call", "9" * 30, "2025-09-01 12:00+00"),
        (ADA, None, "api_call", "7", "2025-09-01 12:00+00"),
        (ADA, ORG, "not_known", "7", "2025-09-01 12:00+00"),
        (BOB, ORG, "storage_used", "5", "2025-09-02 00:00+00"),  # the next day
    ]
    for event in events:
        database.execute(
            "insert into usage_events (user_id, org_id, event_type, quantity, created_at) "
            "values (%s, %s, %s, %s, %s)",
            event,
        )
    made, ours = tmp_path / "made.csv", tmp_path / "ours.parquet"
    prepare_aggregates(database.url)
    aggregate(database.url, "2025-09-01")
    aggregate(database.url, "2025-09-01")  # the second run updates the same rows
    aggregate_cells(database.url, str(made))

    def differences(total: str) -> int:
        rows = {
            "user_id": [ADA, ADA],
            "org_id": [ORG, None],
            "metric_type": ["api_call", "api_call"],
            "total_quantity": pa.array([Decimal(total), Decimal(7)], pa.decimal128(38, 9)),
            "event_count": [2, 1],
        }
        pa.parquet.write_table(pa.table(rows), ours)
        return int(cells(str(ours), str(made))["differences"])

    assert differences("0.75") == 0
    assert differences("0.750000001") == 2  # ours is not there, theirs is not here


def test_totals_that_are_floats_are_not_equal(tmp_path: Path) -> None:
    row = {"user_id": [ADA], "org_id": [ORG], "metric_type": ["api_call"], "event_count": [1]}
    exact, inexact = tmp_path / "exact.parquet", tmp_path / "inexact.parquet"
    total = pa.array([Decimal(1)], pa.decimal128(38, 9))
    pa.parquet.write_table(pa.table({**row, "total_quantity": total}), exact)
    pa.parquet.write_table(pa.table({**row, "total_quantity": [1.0]}), inexact)
    assert cells(str(exact), str(inexact)) == {"differences": -1, "why": "its totals are floats"}


def test_a_run_fills_the_page_and_an_unequal_result_loses_its_time(
    run: Run, tmp_path: Path
) -> None:
    report = Report(run, tmp_path)
    run.everything(("landing",), 1, report.save)
    assert run.unequal == []
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report.write()
    written = page.read_text()
    assert written.startswith(f"before\n{BEGIN}\n| what | who |")
    assert written.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in written

    # One row less than the source has: what landing would report had it lost an event.
    landed = run.measurements["land_full"][0].figures
    assert landed["rows"] == 1000
    wrong = {"rows": 999, "total": landed["total"]}
    run.check(
        "land_full", "landed", url=run.server.url(), start="2025-07-04", end="2025-07-05", **wrong
    )
    assert run.unequal == ["land_full (1 differences)"]
    report.write()
    (row,) = _rows(tmp_path, "landing a day with event_data", "usage-pipeline")
    assert (row["median"], row["verdict"]) == ("unequal", "not measured")


def test_a_run_goes_on_where_it_stopped_but_not_with_other_code(run: Run, tmp_path: Path) -> None:
    report = Report(run, tmp_path)
    before = {
        "made_at": "2025-01-01T00:00:00+00:00",
        "machine": {"processor": "abacus", "cores": "1"},
        "data": {"scale": 0.0002},
        "rows": [
            {"what": what, "who": "usage-pipeline", "median": "8.00 s (7.00–9.00)", "ratio": "2×"}
            for what in ("landing a day with event_data", "no longer measured")
        ],
    }
    report.compare_with(before)
    report.compare_with({**before, "data": {"scale": 1.0}, "rows": []})  # says nothing of this one
    run.everything(("landing",), 1, report.save)
    kept = {key: list(measured) for key, measured in run.measurements.items()}
    cut_short = replace(kept["land_full"][0], round=1)

    run.measurements["land_full"].append(cut_short)  # killed in the second round
    report.save()
    run.measurements, run.rounds = defaultdict(list), {}
    report = Report(run, tmp_path)
    report.resume()
    assert run.measurements == kept
    run.everything(("landing",), 1)  # nothing is left to do
    assert run.measurements == kept
    run.everything(("landing",), 2)
    assert [m.round for m in run.measurements["land_full"]] == [0, 1]
    report.write()
    (row,) = _rows(tmp_path, "landing a day with event_data", "usage-pipeline")
    assert (row["rounds"], row["before"], row["commit"]) == ("2", "8.00 s, 2×", run.commit)
    assert "on abacus with 1 cores" in (tmp_path / "benchmarks.md").read_text()

    run.product = "another"
    with pytest.raises(MeasurementFailed, match="another product"):
        report.resume()


def test_published_rows_are_counted_as_a_reader_sees_them(run: Run, tmp_path: Path) -> None:
    run.everything(("publish",), 1)
    new, changed, unchanged = (
        run.measurements[f"publish_{change}"][0].figures
        for change in ("new", "changed", "unchanged")
    )
    # 200 cells of a day, the only rows of the source that come or change.
    assert (new["rows"], changed["rows"], unchanged["rows"]) == (200, 200, 0)
    # usage_daily has a row of its own for each.
    assert new["rows_written"] >= 200
    assert changed["rows_written"] >= 200
    assert unchanged["rows_written"] == 0
    assert run.unequal == []
    report = Report(run, tmp_path)
    report.write()
    what = "publishing new rows of usage_aggregations, Postgres"
    (row,) = _rows(tmp_path, what, "200 rows that a reader sees")
    assert (row["budget"], row["aim"]) == ("≥ 150,000 rows/s", "≥ 250,000 rows/s")


def test_every_night_after_a_history_begins_with_that_history(run: Run, tmp_path: Path) -> None:
    run.everything(("year",), 1)
    assert run.unequal == []
    rounds = {key: len(measured) for key, measured in run.measurements.items()}
    assert rounds == {
        "backfill_tenth_after_3": 1,
        "tenth_night_after_3": 1,
        "backfill_tenth_after_5": 1,
        "row_night": 1,
        "tenth_night_after_5": 1,
    }
    night = run.measurements["row_night"][0].figures
    assert night["bytes"].keys() == set(PLACES)
    assert min(night["bytes"].values()) > 0
    assert {"models", "publishing", "imports and Dagster"} <= night["stages"].keys()

    def published() -> int:
        ((events,),) = run.server.query(
            "select sum(event_count)::int from usage.usage_daily", database="pub_tenth_after_5"
        )
        return int(events)

    invalid = 3  # of the great day: a NaN, one too large, one of no known type
    assert published() == 5 * 10 + 100 - invalid
    home = run.grown("tenth_after_5", "tenth", 5)  # as the next round has it
    assert published() == 5 * 10
    assert not list(Path(home["USAGE_HOME"]).glob("landing/usage_events/*=2025-07-04"))
    Report(run, tmp_path).write()
    (row,) = _rows(tmp_path, "a night of 100 events after 5 days", "usage-pipeline")
    assert row["ratio"].endswith("×")
    assert (tmp_path / "benchmarks.md").read_text().count("bytes: ") == len(PLACES)


def test_a_budget_is_met_at_its_limit_and_its_aim_is_no_budget() -> None:
    assert budgets.HISTORY_ENGINE.met(1_000_000)
    assert not budgets.HISTORY_ENGINE.met(999_999)
    assert budgets.FIXED_OVERHEAD.met(12)
    assert not budgets.FIXED_OVERHEAD.met(12.1)
    assert (str(budgets.FIXED_OVERHEAD), budgets.FIXED_OVERHEAD.spelled_aim()) == (
        "≤ 12 s",
        "≤ 8 s",
    )


def _rows(directory: Path, what: str, who: str) -> list[dict[str, str]]:
    rows = json.loads((directory / "benchmarks.json").read_text())["rows"]
    return [row for row in rows if (row["what"], row["who"]) == (what, who)]
