"""Users, organisations, members, subscriptions and limits, landed whole, all from one state."""

from __future__ import annotations

from contextlib import AbstractContextManager

from usage_pipeline.app_db.fingerprints import FITS
from usage_pipeline.app_db.session import open_source, scan, source_query
from usage_pipeline.infra.disk import scratch
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted, write_parquet
from usage_pipeline.landing.erased_users import leave_out_erased
from usage_pipeline.landing.landed_days import in_use
from usage_pipeline.landing.replacement import NOBODY_ELSE
from usage_pipeline.settings import Settings

# Years 1 to 9999, which all engines and Python's dates have, less the day that a time zone moves
# an instant by and the one that is added to its date. Infinity is outside as well.
_FIRST_INSTANT, _LAST_INSTANT = "0001-01-03T00:00Z", "9999-12-30T00:00Z"
# Of a plan's limits, the columns that say what they are in words where they are no such number. The
# second is a column that the source may lack: of one member of a subscribed organisation.
MEMBER_LIMIT = "member_limit_quantity"
LIMITS = {"limit_quantity": "limit_raw", MEMBER_LIMIT: "member_limit_raw"}
ACCOUNT_TABLES = ("users", "orgs", "org_members", "subscriptions", "plan_limits")


def land_accounts(
    settings: Settings, replacing: AbstractContextManager[None] = NOBODY_ELSE
) -> dict[str, int]:
    """Replace the landed accounts, all from one state of the source.

    Args:
        replacing: entered around the renames, when the source is closed already.

    Returns:
        Rows by table.
    """
    rows = {}
    with in_use(settings), scratch(settings) as work:
        with open_source(settings, ACCOUNT_TABLES) as source:
            for table in ACCOUNT_TABLES:
                columns = source.columns[table]
                ids = [c for c in columns if c == "id" or c[-3:] == "_id"]
                texts = [f"cast({c} as varchar) as {c}" for c in ids]
                dates = [
                    f"cast(timezone('{settings.timezone}', {c}) as date) as {c[:-3]}_date"
                    for c in columns
                    if c.endswith("_at")
                ]
                remote = ", ".join(_usable(column) for column in columns)
                others = [c for c in columns if c not in ids]
                if table == "plan_limits":
                    others = [c for c in others if c not in LIMITS] + [*LIMITS, *LIMITS.values()]
                    if MEMBER_LIMIT not in columns:
                        remote += f", {_usable(MEMBER_LIMIT, 'null::numeric')}"
                query = f"select {remote} from ({source_query(table)}) as source"
                select = f"select {', '.join([*texts, *others, *dates])} from {scan(query)}"
                path = work / f"{table}.parquet"
                write_parquet(source.db, f"({select})", path)
                leave_out_erased(settings, table, path)
                ((rows[table],),) = source.db.execute(
                    f"select count(*) from read_parquet('{quoted(path)}')"
                ).fetchall()
        with replacing:
            for table in ACCOUNT_TABLES:
                name = f"{table}.parquet"
                (work / name).replace(settings.landing_dir / name)
    return rows


def complete_accounts(settings: Settings) -> None:
    """Give accounts that an older release landed the columns that staging reads now. The caller is
    the single writer."""
    path = settings.landing_dir / "plan_limits.parquet"
    if not path.exists():
        return
    with scratch(settings) as work, open_duckdb(settings, ":memory:") as db:
        described = db.execute(f"describe from '{quoted(path)}'").fetchall()
        absent = {*LIMITS, *LIMITS.values()} - {column for column, *_ in described}
        if absent:
            types = {True: "decimal(38, 9)", False: "varchar"}
            added = "".join(f", cast(null as {types[c in LIMITS]}) as {c}" for c in sorted(absent))
            write_parquet(db, f"(select *{added} from '{quoted(path)}')", work / path.name)
            (work / path.name).replace(path)


def _usable(column: str, value: str = "") -> str:
    """A column of an account, judged in Postgres: what no table can hold is landed as null, and
    a limit, whose null means something, as its text beside it; so is a negative one.

    Args:
        value: what it is where the source lacks the column.
    """
    if column in LIMITS:
        limit = value or column
        fits = f"{FITS.replace('quantity', limit)} and {limit} >= 0"
        return (
            f"(case when {fits} then {limit} end)::numeric(38,9) as {column}, "
            f"case when not ({fits}) then {limit}::text end as {LIMITS[column]}"
        )
    if column.endswith("_at"):
        usable = f"{column} >= '{_FIRST_INSTANT}' and {column} < '{_LAST_INSTANT}'"
        return f"case when {usable} then {column} end as {column}"
    return column
