"""The platform's figures of a month, for admins."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from usage_pipeline.days import next_month
from usage_pipeline.web.api.answers import of_snapshot, rows_as_json
from usage_pipeline.web.api.callers import MONTH, Admin
from usage_pipeline.web.api.problems import documented
from usage_pipeline.web.reader import Published
from usage_pipeline.web.state import FromWeb

router = APIRouter(prefix="/api/admin", tags=["operation"])

_QUESTIONS = {
    "months": "select * from platform_metrics_monthly where month = :first order by month",
    "days": """
        select * from platform_metrics_daily
        where metric_date >= :first and metric_date < :after order by metric_date
    """,
    "usage": "select * from platform_usage_monthly where month = :first order by metric_type",
    "plans": """
        select * from subscriptions_by_plan_daily
        where metric_date = (
            select max(metric_date) from subscriptions_by_plan_daily
            where metric_date >= :first and metric_date < :after
        )
        order by plan
    """,
}


class AskedMonth(BaseModel):
    """Which month."""

    model_config = ConfigDict(extra="forbid")

    month: str | None = Field(
        None, pattern=MONTH, examples=["2026-05"], description="Absent, the running one."
    )


class Analytics(BaseModel):
    """Rows of published tables; docs/outputs.md says what their columns are."""

    month: date
    metrics: dict[str, Any] | None
    days: list[dict[str, Any]]
    usage: list[dict[str, Any]]
    plans: list[dict[str, Any]]
    snapshot_id: str


@router.get(
    "/analytics",
    response_model=Analytics,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "month": "2026-05-01",
                        "metrics": {"month": "2026-05-01", "total_users": 2000},
                        "days": [{"metric_date": "2026-05-01", "active_users": 120}],
                        "usage": [{"metric_type": "api_call", "total_quantity": "12.5"}],
                        "plans": [{"plan": "pro", "active_subscriptions": 80}],
                        "snapshot_id": "20260601T010203-1f",
                    }
                }
            }
        },
        304: {"description": "Not Modified"},
        **documented(401, 403, 422),
    },
)
def analytics(
    request: Request,
    web: FromWeb,
    caller: Admin,
    asked: Annotated[AskedMonth, Query()],
) -> Response:
    """Users, organisations, subscriptions, activity and usage of a month, and its days; the plans
    as of its newest day."""
    running = web.settings.today().replace(day=1)
    first = date.fromisoformat(f"{asked.month}-01") if asked.month else running
    after = next_month(first)

    def answer(published: Published) -> dict[str, Any]:
        found = {
            name: rows_as_json(published.rows(question, first=first, after=after))
            for name, question in _QUESTIONS.items()
        }
        metrics = found.pop("months")
        return {"month": str(first), "metrics": metrics[0] if metrics else None, **found}

    return of_snapshot(request, web, caller, answer)
