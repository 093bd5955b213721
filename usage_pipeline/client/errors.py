"""What reading usage can raise. Logging it raises nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UsageError(Exception):
    """No usage was given, and why.

    Attributes:
        status: of the API's answer; None where there was none that could be understood, and for
            what a database says.
        problem: the answer's problem details (RFC 9457), with `title` and `detail` at least.
    """

    def __init__(
        self,
        title: str,
        detail: str = "",
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.problem: dict[str, Any] = {"title": title, "detail": detail, **(problem or {})}
        said = f"{self.problem['title']}: {self.problem['detail']}".rstrip(": ")
        super().__init__(f"{status} {said}" if status else said)
