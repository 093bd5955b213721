"""What a failed step says of itself: in its run, to a webhook, at the prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from usage_pipeline.errors import UsagePipelineError


@contextmanager
def one_line_failures() -> Iterator[None]:
    """An expected failure shows as its own words in the run, and is not retried."""
    try:
        yield
    except UsagePipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def expected_words(event: dg.DagsterEvent) -> str | None:
    """The words of an expected failure; None of any other."""
    data = event.step_failure_data.user_failure_data
    return data.description if data else None


def unexpected_error(event: dg.DagsterEvent) -> Any:
    """What a step raised, with `cls_name` and `message`; None when Dagster recorded no error."""
    error = event.step_failure_data.error
    return error and (error.cause or error)  # Dagster wraps what a step raises
