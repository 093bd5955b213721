"""`python -m bench.forecast`: how good forecasts turn out, and how many odd days are found.

A history is rolled up by the pipeline, in a home and an embedded Postgres of its own: the sample,
or events of a file. Its last weeks are landed a fortnight at a time, and after each the published
`usage_forecast_accuracy` is noted: a rolling back-test. Then days are made odd in the source,
rolled up again, and looked for in `usage_anomalies`; what else is found was odd before, or is not.

With `--statsforecast PYTHON`, an interpreter that has that package, its models forecast the same
days of the same series.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from usage_pipeline.app_db.sample import load_sample
from usage_pipeline.app_db.schema import create_schema
from usage_pipeline.audit.gate import blocking_failures
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.infra.postgres import connect
from usage_pipeline.rollup import Rollup
from usage_pipeline.settings import Settings

ORIGINS, FORTNIGHT = 6, timedelta(days=14)
ODD_DAYS = 28  # the last ones, of which some are made odd
SPIKE = 6  # times the subject's mean day
COLUMNS = "id, user_id, org_id, event_type, event_data, quantity, created_at"
Odd = tuple[date, str, str | None, str | None, str]


def main(words: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.forecast", description=__doc__)
    parser.add_argument("--events", type=Path, metavar="CSV", help="instead of the sample")
    parser.add_argument("--days", type=int, default=200, help="of history; default %(default)s")
    parser.add_argument("--odd", type=int, default=60, help="days made odd; default %(default)s")
    parser.add_argument("--statsforecast", metavar="PYTHON", help="compare with its models too")
    chosen = parser.parse_args(words)
    home = Path(tempfile.mkdtemp(prefix="f"))
    try:
        end = _last_day(chosen.events) if chosen.events else date(2025, 7, 1)
        start = end - timedelta(days=chosen.days)
        settings = Settings(_env_file=None, USAGE_HOME=home / "h", USAGE_START_DATE=start)  # type: ignore[call-arg]
        url = app_database_url(settings)
        create_schema(url)
        if chosen.events:
            _load(url, chosen.events, start, end, home / "events.csv")
        else:
            days, zone = chosen.days, settings.zone
            load_sample(url, events=300_000, days=days, users=800, seed=7, end=end, zone=zone)
        series: dict[tuple[Any, ...], dict[str, Any]] = {}
        _print_accuracy(_back_test(settings, DayRange(start, end), series))
        if chosen.statsforecast:
            pq.write_table(pa.Table.from_pylist([*series.values()]), home / "series.parquet")
            peers = Path(__file__).with_name("forecast_peers.py")
            subprocess.run([chosen.statsforecast, peers, home / "series.parquet"], check=True)
        _print_anomalies(*_odd_days(settings, url, end, chosen.odd))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _last_day(events: Path) -> date:
    query = f"select max(cast(created_at as timestamptz))::date from '{quoted(events)}'"
    ((last,),) = duckdb.execute(query).fetchall()
    assert isinstance(last, date)
    return last


def _load(url: str, events: Path, start: date, end: date, file: Path) -> None:
    duckdb.execute(
        f"copy (select {COLUMNS} from read_csv('{quoted(events)}', all_varchar = true)"
        f" where cast(created_at as timestamptz) >= '{start}'"
        f" and cast(created_at as timestamptz) < '{end}') to '{file}' (header)"
    )
    with connect(url) as connection, connection.cursor() as cursor, file.open() as rows:
        cursor.copy_expert(f"copy usage_events ({COLUMNS}) from stdin (format csv, header)", rows)


def _roll_up(settings: Settings, *ranges: DayRange) -> None:
    rollup = Rollup(settings)
    rollup.allow_fewer_events = True
    rollup.land_events([day for days in ranges for day in days.days()])
    rollup.land_accounts()
    rollup.build_staging()
    rollup.build_days(ranges)
    rollup.build_months(ranges)
    rollup.build_current()
    if failures := blocking_failures(rollup.audit()):
        raise RuntimeError(f"the audit failed: {failures}")
    rollup.publish("bench")


def _published(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(settings.snapshot_path), read_only=True) as db:
        return db.execute(query).fetchall()


def _back_test(
    settings: Settings, days: DayRange, series: dict[tuple[Any, ...], dict[str, Any]]
) -> dict[tuple[str, int], list[list[float]]]:
    """By scope and horizon, of each origin and meter: MASE, naive MASE, coverage, series.

    Args:
        series: takes what was compared, with its days.
    """
    found: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    start = days.start
    for number in range(ORIGINS):
        end = days.end - FORTNIGHT * (ORIGINS - 1 - number)
        _roll_up(settings, DayRange(start, end))
        start = end
        for scope, horizon, *figures in _published(
            settings,
            "select scope, horizon, mase, naive_mase, coverage, series"
            " from usage_forecast_accuracy where scope in ('platform', 'org') or series >= 5",
        ):
            found[scope, horizon].append([float(figure) for figure in figures])
        series |= _compared(settings)
    return found


def _compared(settings: Settings) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Each forecast that was compared with what came: its outcome, and its series from the first
    day with an event to the last one that was forecast, nothing for a day without an event."""
    subject = "scope, user_id, org_id, metric_type"
    query = f"""
        with cells as (
            select case when org_id is null then 'user' else 'member' end as scope, user_id,
                org_id, metric_type, usage_date, total_quantity from usage_daily
            union all
            select 'org', null, org_id, metric_type, usage_date, total_quantity
            from org_usage_daily where org_id is not null
            union all
            select 'platform', null, null, metric_type, usage_date, total_quantity
            from platform_usage_daily
        ),
        tested as (
            select *, as_of_date - horizon::integer as origin_date
            from usage_forecast_fits where mase is not null
        ),
        days as (
            select tested.*, cells.usage_date, cells.total_quantity::double as quantity,
                min(cells.usage_date) over (
                    partition by {", ".join(f"tested.{c}" for c in subject.split(", "))},
                        tested.as_of_date, tested.horizon
                ) as first_date
            from tested
            inner join cells on cells.usage_date <= tested.as_of_date
                and {
        " and ".join(f"cells.{c} is not distinct from tested.{c}" for c in subject.split(", "))
    }
        )
        select {subject}, as_of_date, horizon, any_value(mase)::double,
            any_value(naive_mase)::double, any_value(days_within / tested_days)::double,
            any_value(first_date), map_from_entries(list((usage_date, quantity)))
        from days group by {subject}, as_of_date, horizon
    """
    found = {}
    with open_duckdb(settings, settings.warehouse_path, read_only=True) as db:
        for *key, mase, naive_mase, within, first, by_day in db.execute(query).fetchall():
            scope, *_, as_of, horizon = key
            length = (as_of - first).days + 1
            found[tuple(key)] = {
                "scope": scope,
                "horizon": horizon,
                "mase": mase,
                "naive_mase": naive_mase,
                "within": within,
                "quantities": [by_day.get(first + timedelta(days=i)) for i in range(length)],
            }
    return found


def _print_accuracy(found: dict[tuple[str, int], list[list[float]]]) -> None:
    print("| scope | days ahead | MASE | of seasonal naive | within the band | forecasts |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (scope, horizon), rows in sorted(found.items()):
        mase, naive, within, series = zip(*rows, strict=True)
        figures = f"{mean(mase):.2f} | {mean(naive):.2f} | {mean(within):.0%} | {sum(series):,.0f}"
        print(f"| {scope} | {horizon} | {figures} |")


def _odd_days(
    settings: Settings, url: str, end: date, wanted: int
) -> tuple[dict[Odd, str], dict[Odd, set[str]]]:
    """Days made odd, with how, and days found odd, with the rules that did."""
    first = end - timedelta(days=ODD_DAYS)
    subjects = _published(
        settings,
        f"""
        with days as (
            select case when org_id is null then 'user' else 'member' end as scope,
                cast(user_id as varchar) as user_id, cast(org_id as varchar) as org_id,
                metric_type, usage_date, total_quantity from usage_daily
            union all
            select 'org', null, cast(org_id as varchar), metric_type, usage_date, total_quantity
            from org_usage_daily where org_id is not null
            union all
            select 'platform', null, null, metric_type, usage_date, total_quantity
            from platform_usage_daily
        )
        select scope, user_id, org_id, metric_type, avg(total_quantity)
        from days where usage_date >= '{end - timedelta(days=56)}'
        group by all having count(*) >= 40 and avg(total_quantity) > 0 order by all
        """,
    )
    if not subjects:
        raise RuntimeError("nobody uses a meter on most days")
    draw = random.Random(7)
    odd: dict[Odd, str] = {}
    by_scope = defaultdict(list)
    for subject in subjects:
        by_scope[subject[0]].append(subject)
    with connect(url) as connection, connection.cursor() as cursor:
        for number in range(wanted):
            scope = sorted(by_scope)[number % len(by_scope)]
            _, user, org, metric, usual = draw.choice(by_scope[scope])
            day = first + timedelta(days=draw.randrange(ODD_DAYS))
            where = f"event_type = '{metric}' and created_at >= '{day} UTC'"
            where += f" and created_at < '{day + timedelta(days=1)} UTC'"
            where += f" and user_id = '{user}'" if user else ""
            where += f" and org_id = '{org}'" if org else " and org_id is null" if user else ""
            kind = ("spike", "drop")[number // len(by_scope) % 2]
            if kind == "drop":
                cursor.execute(f"delete from usage_events where {where}")
            else:
                cursor.execute(
                    "insert into usage_events (id, user_id, org_id, event_type, quantity,"
                    " created_at) select gen_random_uuid(), user_id, org_id, event_type,"
                    f" {SPIKE} * {usual}, created_at from usage_events where {where} limit 1"
                )
            if cursor.rowcount:
                odd[day, scope, user, org, metric] = kind
        connection.commit()
    _roll_up(settings, *ranges_of_days({day for day, *_ in odd}))
    found: dict[Odd, set[str]] = defaultdict(set)
    for day, scope, user, org, metric, rule in _published(
        settings,
        "select usage_date, scope, cast(user_id as varchar), cast(org_id as varchar), metric_type,"
        f" rule from usage_anomalies where usage_date >= '{first}'",
    ):
        found[(day, scope, user, org, metric)].add(rule)
    return odd, found


def _print_anomalies(odd: dict[Odd, str], found: dict[Odd, set[str]]) -> None:
    print(
        "\n| scope | made a spike, found | made a drop, found | found | of these made, or by it |"
    )
    print("| --- | --- | --- | --- | --- |")
    for scope in ("platform", "org", "member", "user"):
        made = {at: kind for at, kind in odd.items() if at[1] == scope}
        shown = []
        for kind in ("spike", "drop"):
            wanted = [at for at in made if made[at] == kind]
            shown.append(f"{len(wanted)}, {sum(at in found for at in wanted)}")
        seen = [at for at in found if at[1] == scope]
        due = sum(_explained(at, odd) for at in seen)
        print(f"| {scope} | {' | '.join(shown)} | {len(seen)} | {due} |")


def _explained(at: Odd, odd: dict[Odd, str]) -> bool:
    """Whether it was made odd, or one that it holds, or that holds it."""
    day, _, user, org, metric = at

    def same(left: str | None, right: str | None) -> bool:
        return left is None or right is None or left == right

    return any(
        day == other[0] and metric == other[4] and same(user, other[2]) and same(org, other[3])
        for other in odd
    )


if __name__ == "__main__":
    main()
