"""How landed events are read: by the models, by proofs, and by exports.

Older releases landed ids as text. DuckDB reads all files in the types of the first one, so the
types are named here.
"""

from __future__ import annotations

import re

EXTRACT_AGAIN = "Delete the named landing file; the next run extracts that day again"
# DuckDB's words for a file that it cannot read; others name one that holds what is not expected.
_UNREADABLE = re.compile(
    r"No magic bytes|too small to be a Parquet|Footer length error|Failed to read file"
)
_TYPES = {
    "id": "varchar",
    "user_id": "uuid",
    "org_id": "uuid",
    "event_type": "varchar",
    "event_data": "varchar",
    "quantity": "decimal(38, 9)",
    "quantity_raw": "varchar",
    "created_at": "timestamptz",
}


def landed_events(files: str, id_type: str = "varchar") -> str:
    """SQL: the events of landed files with their `usage_date`, whichever release landed them.

    Args:
        files: SQL for a path, a pattern or a list of them.
        id_type: `uuid` spares their conversion where no landed id is anything else.
    """
    types = _TYPES | {"id": id_type}
    columns = ", ".join(
        f"'{name}': {{name: '{name}', type: '{kind}', default_value: null}}"
        for name, kind in types.items()
    )
    day = "regexp_extract(filename, '.*/usage_date=([^/]*)/', 1)"
    return (
        f"(select * exclude (filename), cast({day} as date) as usage_date"
        f" from read_parquet({files}, schema = map {{{columns}}}, filename = true))"
    )


def is_unreadable(words: str) -> bool:
    """Whether DuckDB says that it cannot read a file; then `EXTRACT_AGAIN` is the remedy."""
    return bool(_UNREADABLE.search(words))
