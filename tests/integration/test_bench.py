"""The benchmark counts no time without an equal result. Its figures are nobody's business here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import DatabaseFactory

from bench.compare import cells
from bench.peers import aggregate, aggregate_cells, prepare_aggregates
from bench.plan import Run
from bench.report import BEGIN, END, Report
from bench.shape import Shape

ADA, BOB = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
ORG = "00000000-0000-4000-8000-0000000000ff"


@pytest.fixture
def run(short_tmp: object) -> Iterator[Run]:
    run = Run(Shape(scale=0.0002, repeats=1), short_tmp())  # type: ignore[operator]
    yield run
    run.server.stop()


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
    run.everything(("landing",))
    assert run.unequal == []
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    Report(run, ("landing",)).write(tmp_path)
    written = page.read_text()
    assert written.startswith(f"before\n{BEGIN}\n| what | who |")
    assert written.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in written

    # One row less than the source has: what landing would report had it lost an event.
    landed = run.measurements["land_full"][0].figures
    assert landed["rows"] == 1000
    wrong = {"rows": 999, "total": landed["total"]}
    run.check(
        "land_full", "landed", url=run.server.url(), start="2025-09-01", end="2025-09-02", **wrong
    )
    assert run.unequal == ["land_full (1 differences)"]
    Report(run, ("landing",)).write(tmp_path)
    rows = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert [
        (row["median"], row["verdict"])
        for row in rows
        if row["what"] == "landing a day with event_data" and row["who"] == "usage-pipeline"
    ] == [("unequal", "not measured")]
