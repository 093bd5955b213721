"""What a scheduler of the application's calls, so that usage is rolled up without Dagster's own."""

from __future__ import annotations

import hmac
from datetime import date, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from usage_pipeline.days import DayRange, next_month
from usage_pipeline.settings import Settings
from usage_pipeline.web.api.callers import Day, bearer, refused
from usage_pipeline.web.api.problems import Problem, documented
from usage_pipeline.web.state import FromWeb

router = APIRouter(prefix="/api/cron", tags=["operation"])


class Period(BaseModel):
    """Which days; all of it may be absent."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"period_type": "daily", "period_start": "2026-05-03"}},
    )

    period_type: Literal["daily", "monthly"] = "daily"
    period_start: Day | None = None
    period_end: Day | None = None


class Started(BaseModel):
    """The run in Dagster, and the days `[start, end)` that it rolls up."""

    run_id: str
    start: date
    end: date


def _scheduler(request: Request, web: FromWeb) -> None:
    secret = web.settings.cron_secret
    sent = bearer(request).encode()
    if secret is None or not hmac.compare_digest(secret.get_secret_value().encode(), sent):
        raise refused(request, web, "Send `Authorization: Bearer $CRON_SECRET`.")


@router.post(
    "/aggregate-usage",
    status_code=202,
    response_model=Started,
    dependencies=[Depends(_scheduler)],
    openapi_extra={"security": [{"HTTPBearer": []}]},
    responses={
        202: {
            "content": {
                "application/json": {
                    "example": {
                        "run_id": "5b6a2c0e-7d0b-4d0f-9f6b-0e2f3a4b5c6d",
                        "start": "2026-05-03",
                        "end": "2026-05-04",
                    }
                }
            }
        },
        **documented(400, 401, 413, 422),
    },
)
def aggregate_usage(web: FromWeb, period: Annotated[Period | None, Body()] = None) -> Response:
    """Start the rollup of days, by default of yesterday; `monthly` of all days of the months. What
    was rolled up before is rolled up again, and counts once."""
    try:
        days = _days(web.settings, period or Period())
    except OverflowError:
        raise Problem(422, "There are no such days.") from None
    run_id = web.actions.start_rollup(days.start, days.end)
    started = {"run_id": run_id, "start": str(days.start), "end": str(days.end)}
    return JSONResponse(started, status_code=202)


def _days(settings: Settings, period: Period) -> DayRange:
    today = settings.today()
    start = _local(settings, period.period_start) or today - timedelta(days=1)
    end = _local(settings, period.period_end)
    if period.period_type == "monthly":
        start = start.replace(day=1)
        last = end - timedelta(days=1) if end else start
        end = min(next_month(last), today)
        start = max(start, settings.start_date)
    elif end is None:
        end = start + timedelta(days=1)
    if not start < end:
        raise Problem(422, "period_end has to be after period_start, and the period not to come.")
    if start < settings.start_date:
        raise Problem(422, f"There is nothing before {settings.start_date}, the first day.")
    if end > today:
        raise Problem(422, f"{today} is not over yet, and no later day is.")
    return DayRange(start, end)


def _local(settings: Settings, given: date | None) -> date | None:
    """The local day; of an instant, the one that it lies in."""
    return given.astimezone(settings.zone).date() if isinstance(given, datetime) else given
