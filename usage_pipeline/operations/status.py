"""What `status` and the summaries say: reads every layer, changes none."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date
from decimal import Decimal

from usage_pipeline.alerts import outbox, rolled_up
from usage_pipeline.audit.freshness import freshness, last_publish
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing.landed_days import landed_manifests
from usage_pipeline.landing.lost_events import refusal
from usage_pipeline.landing.stale_days import days_to_repair
from usage_pipeline.rollup import Rollup
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings

MonthTotal = tuple[date, str, Decimal | None, int, int]


@dataclass(frozen=True)
class Summary:
    """The head of `status`; healthy when nothing is missing, damaged or waiting."""

    lines: list[str]
    healthy: bool


def monthly_totals(settings: Settings, days: DayRange) -> list[MonthTotal]:
    """Published totals by month and metric."""
    with published.reading(settings) as db:
        return db.execute(
            "select month, metric_type, total_quantity, event_count, active_users "
            "from platform_usage_monthly where month >= ? and month < ? "
            "order by month, metric_type",
            [days.start, days.end],
        ).fetchall()


def spelled(quantity: Decimal) -> str:
    """A quantity for people: `4,439` and `0.5`, exact, without zeros that say nothing."""
    return f"{quantity:,.9f}".rstrip("0").rstrip(".")


def summary(settings: Settings) -> Summary:
    """What is landed, missing, damaged, pending and published."""
    rollup = Rollup(settings)
    landed = landed_manifests(settings)
    lines, healthy = [], True
    if not landed:
        return Summary(["Nothing is landed yet; start with `usage-pipeline rollup`."], False)
    lines.append(f"Landed: {len(landed):,} days, {min(landed)} to {max(landed)}.")
    damaged = days_to_repair(settings, rollup.transformer.needs_event_data)
    seen = freshness(settings)
    due = DayRange(settings.start_date, max(settings.start_date, seen.due, *landed))
    for what, days in (
        ("Missing", ranges_of_days(set(due.days()) - landed.keys())),
        ("Damaged or outdated", ranges_of_days(damaged)),
        ("Failed or running, not published", rollup.pending.ranges()),
    ):
        if days:
            healthy = False
            count = sum(len(r.days()) for r in days)
            lines.append(f"{what}: {count:,} {'day' if count == 1 else 'days'}. Roll up:")
            lines += [f"  usage-pipeline rollup --start {r.start} --end {r.end}" for r in days[:5]]
            if days[5:]:
                lines.append(f"  and {len(days[5:]):,} more ranges, to {days[-1].end}")
    refused = [manifest for manifest in landed.values() if manifest.refused]
    if refused:
        healthy = False
        lines.append(str(refusal(refused)))
    if log := published.readers_log(settings):
        healthy = False
        lines.append(f"Readers see what somebody wrote into their copy ({log.name}). Roll up:")
        lines.append("  usage-pipeline rollup")
    last = last_publish(settings)
    if last is None:
        lines.append("Nothing is published yet.")
    else:
        at, run_id = last
        lines.append(f"Published: {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, run {run_id[:8]}.")
    lines.append(str(seen))
    if last:
        messages, none_is_dead = _messages(settings)
        lines += messages
        healthy = healthy and none_is_dead
    return Summary(lines, healthy and seen.fresh and last is not None)


def _messages(settings: Settings) -> tuple[list[str], bool]:
    """What waits in the outbox, and whether all is in it and nothing was given up lately."""
    try:
        found, behind = outbox.waiting(settings), rolled_up.is_behind(settings)
    except UsagePipelineError as error:
        return [f"Messages cannot be read: {error}"], False
    lines = []
    if behind:
        lines.append("Changed days are published that nobody was told of. Roll up:")
        lines.append("  usage-pipeline rollup")
    if found.due or found.later:
        lines.append(f"Messages: {found.due:,} wait to be sent, {found.later:,} to be sent again.")
    if found.dead:
        lines.append(f"Messages given up: {found.dead:,}. List them, and send them again:")
        lines.append("  usage-pipeline webhooks list --state dead")
        lines.append("  usage-pipeline webhooks replay --dead")
    return lines, not (found.dead or behind)
