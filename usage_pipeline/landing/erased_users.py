"""Who is erased, known by salted digests only, and what a landed table looks like without them.

Landing asks here before it puts a file in place. Which layers an erasure goes through, and in
which order, is said in `operations.erasure`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

import duckdb
from duckdb.func import SPECIAL as NULLS_TOO

from usage_pipeline.infra.disk import replace_text
from usage_pipeline.infra.duckdb_files import open_duckdb, quoted
from usage_pipeline.meters.event_data import event_data_reducer
from usage_pipeline.meters.file import load_meters
from usage_pipeline.settings import Settings


def leave_out_erased(settings: Settings, table: str, file: Path) -> None:
    """Rewrite a file that was just extracted when it names an erased person."""
    people = read(settings).named_in(settings, table, file)
    if people:
        without = file.with_suffix(".without")
        rewrite(settings, table, file, people, without)
        without.replace(file)


# The column that names a person; `_without` says what stays of the row.
PERSON_COLUMNS = {
    "usage_events": "user_id",
    "users": "id",
    "org_members": "user_id",
    "subscriptions": "user_id",
}
# As text inside event_data, with or without dashes.
_ANY_UUID = "-?".join(f"[0-9a-fA-F]{{{digits}}}" for digits in (8, 4, 4, 4, 12))
_MENTION = "erased"  # stands in event_data in the place of the id
_FILE = "from read_parquet($1, hive_partitioning = false)"


@dataclass(frozen=True)
class ErasedUsers:
    """The content of `$USAGE_HOME/erased_users.json`.

    Attributes:
        salt: random, in hex; without it the digests say nothing, with it they only answer
            whether an id that one already has is among them.
        digests: of each erased person, sha256 of the salt followed by the id.
    """

    salt: str
    digests: list[str]

    def __contains__(self, user_id: UUID) -> bool:
        return self._digest(user_id) in self.digests

    def among(self, db: duckdb.DuckDBPyConnection, people: str) -> list[UUID]:
        """The erased ones of the persons that a query lists in its column `person`."""
        if not self.digests:
            return []
        rows = db.execute(
            f"with people as ({people}) select distinct person from people"
            " where sha256(concat($salt, person)) in (select unnest($digests))",
            {"salt": self.salt, "digests": self.digests},
        ).fetchall()
        return [person for (person,) in rows]

    def named_in(self, settings: Settings, table: str, file: Path) -> list[UUID]:
        """The erased persons whom a landed file names, in event_data too."""
        if not self.digests or table not in PERSON_COLUMNS:
            return []
        people = f"select distinct try_cast({PERSON_COLUMNS[table]} as uuid) as person from landed"
        if table == "usage_events":
            mentions = f"regexp_extract_all(event_data, '{_ANY_UUID}')"
            people += f" union all select try_cast(unnest({mentions}) as uuid) from landed"
        with open_duckdb(settings, ":memory:") as db:
            db.read_parquet(str(file), hive_partitioning=False).create_view("landed")
            return self.among(db, people)

    def with_user(self, user_id: UUID) -> ErasedUsers:
        return ErasedUsers(self.salt, sorted({*self.digests, self._digest(user_id)}))

    def _digest(self, user_id: UUID) -> str:
        return hashlib.sha256(f"{self.salt}{user_id}".encode()).hexdigest()


def read(settings: Settings) -> ErasedUsers:
    """Who is erased; a list without entries when nobody is."""
    try:
        return ErasedUsers(**json.loads(_path(settings).read_text()))
    except FileNotFoundError:
        return ErasedUsers(secrets.token_hex(32), [])


def add(settings: Settings, user_id: UUID) -> None:
    """Put a person on the list, for good."""
    erased = read(settings).with_user(user_id)
    replace_text(settings, _path(settings), json.dumps(asdict(erased), indent=1))


def rewrite(
    settings: Settings, table: str, file: Path, people: Sequence[UUID], target: Path
) -> None:
    """Write a landed file again without the persons.

    Events stay, with what the meters count of them, so totals by organisation and meter do too.
    """
    with open_duckdb(settings, ":memory:") as db:
        if table == "usage_events":
            reduce = event_data_reducer(load_meters(settings))
            db.create_function(
                "counted", reduce, ["varchar", "varchar"], "varchar", null_handling=NULLS_TOO
            )
        columns = [row[0] for row in db.execute(f"describe {_FILE}", [str(file)]).fetchall()]
        db.execute(
            f"copy ({_without(table, columns, people)}) to '{quoted(target)}'"
            " (format parquet, compression zstd)",
            [str(file)],
        )


def events_that_name(user_id: UUID) -> str:
    """SQL: whether a landed event is the person's, or mentions them."""
    mentioned = f"coalesce(regexp_matches(event_data, '{id_pattern([user_id])}'), false)"
    return f"{_belongs_to('usage_events', [user_id])} or {mentioned}"


def id_pattern(people: Sequence[UUID]) -> str:
    """A regular expression for ids as text: any case, with or without dashes."""
    return "(?i)" + "|".join(str(person).replace("-", "-?") for person in people)


def _belongs_to(table: str, people: Sequence[UUID]) -> str:
    listed = ", ".join(f"'{person}'" for person in people)
    return f"coalesce(try_cast({PERSON_COLUMNS[table]} as uuid) in ({listed}), false)"


def _without(table: str, columns: Sequence[str], people: Sequence[UUID]) -> str:
    """SQL: the rows of a landed table without the persons."""
    theirs = _belongs_to(table, people)
    if table == "org_members":
        return f"{_FILE} where not {theirs}"

    def kept(column: str) -> str:
        if column == "event_data":
            own = f"case when {theirs} then counted(event_type, event_data) else event_data end"
            return f"regexp_replace({own}, '{id_pattern(people)}', '{_MENTION}', 'g') as event_data"
        # A user without an id keeps the population's totals, for which local dates are enough.
        if column == PERSON_COLUMNS[table] or (table == "users" and column[-5:] != "_date"):
            return f"case when {theirs} then null else {column} end as {column}"
        return column

    return f"select {', '.join(map(kept, columns))} {_FILE}"


def _path(settings: Settings) -> Path:
    return settings.home / "erased_users.json"
