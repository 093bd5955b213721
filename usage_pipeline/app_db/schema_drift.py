"""The source's schema as landing sees it, and what changed in it, in `landing/source_schema.json`.

A column that is new, gone or of another type stops no run as long as the reviewed queries still
work; it is written down here, so that a check can say so. Nothing here reads a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from psycopg2.extensions import connection as PostgresConnection

from usage_pipeline.infra.disk import replace_text
from usage_pipeline.settings import Settings

CHANGES_KEPT = 1000

# Name → type, by table. A label of an enum is an entry like a column: `event_type = 'api_call'`.
Shape = Mapping[str, Mapping[str, str]]

_COLUMNS = """
    select cls.relnamespace::regnamespace || '.' || cls.relname, col.attname,
           format_type(col.atttypid, col.atttypmod),
           (select array_agg(label.enumlabel::text) from pg_enum as label
            where label.enumtypid = col.atttypid)
    from pg_class as cls
    inner join pg_attribute as col on cls.oid = col.attrelid
    where cls.oid = any(%s) and col.attnum > 0 and not col.attisdropped
"""


@dataclass(frozen=True)
class SchemaChange:
    """One difference to the schema that an earlier run saw.

    Attributes:
        seen_at: when a run first saw it, as ISO 8601 in UTC.
        change: what is different, in words, with the name of table and column.
    """

    seen_at: str
    change: str


def read_shape(postgres: PostgresConnection, table_oids: Iterable[int]) -> Shape:
    """All columns of these tables, those that no query reads included, and labels of enums.

    Args:
        table_oids: as `cursor.description` gives them for the columns of a query.
    """
    shape: dict[str, dict[str, str]] = {}
    with postgres.cursor() as cursor:
        cursor.execute(_COLUMNS, (sorted(table_oids),))
        for table, column, kind, labels in cursor.fetchall():
            entries = shape.setdefault(table, {})
            entries[column] = kind
            entries.update({f"{column} = '{label}'": "label of the enum" for label in labels or ()})
    return shape


def record_shape(settings: Settings, shape: Shape) -> None:
    """Keep this shape of the tables in it, and list what differs from the shape kept before.

    A table that was never seen is no change. Two runs at once may overwrite each other's entry;
    the next run then sees the difference again.
    """
    known, changes = _read(settings)
    seen_at = datetime.now(UTC).isoformat()
    found = [
        SchemaChange(seen_at, change)
        for table, entries in sorted(shape.items())
        for change in _differences(table, known.get(table, entries), entries)
    ]
    tables = {**known, **shape}
    if tables == known:
        return
    content = {
        "tables": tables,
        "changes": [asdict(change) for change in [*changes, *found][-CHANGES_KEPT:]],
    }
    settings.landing_dir.mkdir(parents=True, exist_ok=True)
    replace_text(
        settings, settings.source_schema_path, json.dumps(content, indent=1, sort_keys=True)
    )


def recent_changes(settings: Settings, age: timedelta) -> list[SchemaChange]:
    """The changes first seen no longer ago than this, oldest first."""
    since = datetime.now(UTC) - age
    return [c for c in _read(settings)[1] if datetime.fromisoformat(c.seen_at) >= since]


def _differences(table: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    changes = []
    for name in sorted({*old, *new}):
        what = f"{table}.{name}"
        if name not in old:
            changes.append(f"{what} is new ({new[name]})")
        elif name not in new:
            changes.append(f"{what} is gone ({old[name]})")
        elif old[name] != new[name]:
            changes.append(f"{what} was {old[name]}, is {new[name]}")
    return changes


def _read(settings: Settings) -> tuple[Shape, list[SchemaChange]]:
    """What is recorded; nothing when the file is absent or unreadable."""
    try:
        content = json.loads(settings.source_schema_path.read_text())
        return content["tables"], [SchemaChange(**change) for change in content["changes"]]
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return {}, []
