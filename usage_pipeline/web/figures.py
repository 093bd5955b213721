"""What pages and API ask of the published tables. Quantities are exact decimals."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from usage_pipeline.web.reader import Published, Row

Window = Literal["week", "month", "year"]


def summary(
    published: Published,
    window: Window,
    *,
    user_id: UUID | None = None,
    org_id: UUID | None = None,
) -> list[Row]:
    """Rows of `usage_summary` of a user over all organisations, of an organisation, or of the
    platform where neither is given, by metric."""
    scope = "user" if user_id else "org" if org_id else "platform"
    return published.rows(
        """
        select metric_type, as_of_date, window_start, window_end, total_quantity,
            previous_quantity, change_ratio, event_count
        from usage_summary
        where scope = :scope and time_window = :window
            and user_id is not distinct from :user_id and org_id is not distinct from :org_id
        order by metric_type
        """,
        scope=scope,
        window=window,
        user_id=user_id,
        org_id=org_id,
    )


def busiest_users(published: Published, most: int) -> list[Row]:
    """Users with the most events in the trailing month."""
    return published.rows(
        """
        select user_id, sum(event_count) as event_count
        from usage_summary
        where scope = 'user' and time_window = 'month'
        group by user_id
        order by event_count desc, user_id
        limit :most
        """,
        most=most,
    )
