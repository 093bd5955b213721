"""CSV files of what a page shows: RFC 4180, exact numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "text/csv; charset=utf-8"


def headers_of(name: str) -> dict[str, str]:
    """Headers of a file that a browser keeps under that name."""
    return {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "private, no-store",
    }


def csv_file(name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """A file to download. None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return Response(text.getvalue(), media_type=MEDIA_TYPE, headers=headers_of(name))
