"""Columns of a sample: ids, instants, joined text, and their COPY. Nothing is invented here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import cursor as Cursor

Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Columns: TypeAlias = Mapping[str, pa.Array]

SECOND = 1_000_000  # instants are microseconds since 1970 in UTC, as in Postgres and Arrow
DAY = 86_400 * SECOND


def join(*parts: pa.Array | str) -> pa.Array:
    """The parts of each row, one after the other; a `str` is the same in all rows."""
    texts = [part if isinstance(part, str) else part.cast(pa.string()) for part in parts]
    return pc.binary_join_element_wise(*texts, "")


def uuids(rng: np.random.Generator, count: int) -> pa.Array:
    """Version 4 UUIDs as 32 hexadecimal digits, which Postgres reads without hyphens."""
    octets = rng.integers(0, 256, (count, 16), np.uint8)
    octets[:, 6] = octets[:, 6] & 0x0F | 0x40
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    digits = octets.tobytes().hex().encode()
    ends = np.arange(count + 1, dtype=np.int32) * 32
    # From its buffers: of as many as 1,000,000 numpy's strings Arrow makes an array of chunks.
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(digits))


def instants(microseconds: Numbers, valid: Numbers | None = None) -> pa.Array:
    """Timestamps in UTC; null where not `valid`."""
    # Without a zone: Arrow renders zoned timestamps twenty times slower.
    mask = None if valid is None else ~valid
    return pa.array(microseconds, mask=mask).cast(pa.timestamp("us"))


def copy_columns(cursor: Cursor, table: str, columns: Columns) -> None:
    """COPY columns into a table, in a session whose time zone is UTC.

    Arrow joins the lines, so the buffer of that column starts with the very text Postgres
    expects. No value of a sample holds a tab, line end or backslash: nothing needs escaping.
    """
    texts = [column.cast(pa.string()) for column in columns.values()]
    lines = pc.binary_join_element_wise(
        *texts, "\t", null_handling="replace", null_replacement="\\N"
    )
    lines = join(lines, "\n")
    size = pc.sum(pc.binary_length(lines), min_count=0).as_py()  # the buffer can be longer
    cursor.copy_expert(
        f"copy {table} ({', '.join(columns)}) from stdin",
        pa.BufferReader(lines.buffers()[2].slice(0, size)),
        1 << 20,
    )
