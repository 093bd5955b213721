"""What the plots of materialisations show, by hand."""

from __future__ import annotations

import duckdb

from usage_pipeline.orchestration.metadata import anomalies_by_day


def test_odd_days_are_drawn_by_day_and_scope() -> None:
    """Of organisations one, none and two on the last three of 70 landed days; of users one on the
    first, which is too long ago, and one on the last."""
    with duckdb.connect() as db:
        db.execute("""
            create table stg_landed_days as
            select date '2024-01-01' + day::integer as usage_date from range(70) as days (day);
            create table usage_anomalies as
            select date '2024-01-01' + day::integer as usage_date, scope
            from (values (67, 'org'), (69, 'org'), (69, 'org'), (69, 'user'), (0, 'user'))
                as odd (day, scope)
        """)
        lines = anomalies_by_day(db).splitlines()
    assert lines[2:] == [f"| org | {'▁' * 57}▄▁█ | 3 |", f"| user | {'▁' * 59}█ | 1 |"]
