"""A rollup, step by step, without Dagster: land, build days, build months, audit, publish, alert.

The steps share the pending days (see `warehouse.pending`): every build covers the days of the
run and all days that an earlier run left unpublished, and only what was audited is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import date

from usage_pipeline.alerts import limits, rolled_up
from usage_pipeline.alerts.limits import AlertReport
from usage_pipeline.audit import notices, places, reconciliation
from usage_pipeline.audit.gate import blocked, blocking_failures, proof_results, worst_results
from usage_pipeline.audit.places import Unlike
from usage_pipeline.audit.reconciliation import Line
from usage_pipeline.days import DayRange, merge_ranges, ranges_of_days
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.landing import lost_events
from usage_pipeline.landing.accounts import complete_accounts, land_accounts
from usage_pipeline.landing.calendar import land_calendar
from usage_pipeline.landing.landed_days import Manifest, landed_manifests, partitions
from usage_pipeline.landing.replacement import land_events
from usage_pipeline.landing.stale_days import days_to_repair
from usage_pipeline.publishing.publisher import PublishReport, publish
from usage_pipeline.publishing.snapshot import ensure_snapshot, is_published
from usage_pipeline.serving import published
from usage_pipeline.settings import Settings
from usage_pipeline.warehouse import writer
from usage_pipeline.warehouse.pending import PendingDays
from usage_pipeline.warehouse.transform import NodeResult, Transformer

# Fewer are grouped faster, and leave fewer days in a row group; each pass costs dbt a second.
EVENTS_A_PASS = 2_500_000
ANY_NUMBER = float("inf")

Progress = Callable[[str, int, int], None]


class Rollup:
    """The steps of a rollup over one USAGE_HOME.

    Args:
        settings: paths, databases, time zone.

    Attributes:
        timings: seconds by stage of all steps so far.
        allow_fewer_events: whether days asked for may lose events, whatever they had, and days go
            that only the publish database has.
        fewer: days that lost events because they might: how many they had, and have.
        refused: the manifests of the days whose last extraction here would have lost events.
        progress: called with what is being done, how much of it is done, and how much there is;
            replaced by whoever has a place to show it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.progress: Progress = lambda what, done, total: None
        self.transformer = Transformer(settings)
        self.timings = self.transformer.timings
        self.pending: PendingDays = self.transformer.pending(
            lambda: landed_manifests(settings),
            lambda: lost_events.lost_days(settings),
        )
        self.allow_fewer_events = False
        self.fewer: dict[date, tuple[int, int]] = {}
        self.refused: list[Manifest] = []
        self._audited_revision: int | None = None

    def land_events(self, days: Iterable[date]) -> list[Manifest]:
        """Extract days, and again every landed day that is damaged or was cut differently, those
        that a killed or failed run meant to extract, and those that an event has left.
        Days that would lose events keep what they have, and are in `refused` then."""
        repairs = days_to_repair(self.settings, self.transformer.needs_event_data)
        self.settings.home.mkdir(parents=True, exist_ok=True)
        allowed = dict.fromkeys(days := set(days), ANY_NUMBER) if self.allow_fewer_events else {}
        wanted = self.pending.add({*days, *repairs})
        had = lost_events.events_had(self.settings) if allowed else {}
        landed = 0

        def progress(manifest: Manifest) -> None:
            nonlocal landed
            landed += 1
            self.progress(f"landing {manifest.usage_date}", landed, len(wanted))

        def claim(also: set[date]) -> set[date]:
            more = self.pending.add(also) - wanted
            wanted.update(more)
            return more

        with self.timings.stage("source"):
            manifests = land_events(
                self.settings,
                sorted(wanted),
                progress=progress,
                replacing=self._replacing,
                may_lose=allowed,
                claim=claim,
            )
        self.fewer = lost_events.fewer_events(had, manifests)
        self.refused = [manifest for manifest in manifests if manifest.refused]
        return manifests

    def land_accounts(self) -> dict[str, int]:
        """Replace the landed accounts and the calendar; gives rows by table."""
        with self.timings.stage("source"):
            land_calendar(self.settings)
            return land_accounts(self.settings, self._replacing(()))

    @contextmanager
    def _replacing(self, days: Collection[date]) -> Iterator[None]:
        """Landing changes under the writer's lock, so that no build sees it change."""
        with self._writing("replacing what is landed", "landing"):
            yield
            self.pending.landed(ranges_of_days(days))

    def build_staging(self) -> list[NodeResult]:
        """Create the staging views."""
        with self._writing("building staging", "models"):
            ensure_snapshot(self.settings)
            complete_accounts(self.settings)
            return self.transformer.run("tag:staging")

    def build_days(self, ranges: Iterable[DayRange]) -> list[NodeResult]:
        """Build the daily models over the given days and all pending ones."""
        with self._writing("building daily models", "models"):
            return self._build_days(ranges)

    def build_months(self, ranges: Iterable[DayRange]) -> list[NodeResult]:
        """Build the monthly models over the months of the built days.

        Args:
            ranges: built again and published when no built day waits for its month.
        """
        with self._writing("building monthly models", "models"):
            if self.pending.unbuilt():
                self._build_days([])
            if not self.pending.built():
                self.pending.finish(ranges)
            return self._build_months()

    def build_current(self) -> list[NodeResult]:
        """Build what has no partitions: the trailing summaries."""
        with self._writing("building summaries", "models"):
            return self.transformer.run("tag:current")

    def audit(self) -> list[NodeResult]:
        """Run every data test over the built days, or the newest day when none waits to be
        published, and reconcile these days; gives the worst result of each test."""
        with self._writing("auditing", "checks"):
            if self.pending.unbuilt():
                self._bring_up_to_date()
            return self._audit()

    def reconcile(
        self, days: DayRange, progress: Callable[[date], None] = lambda day: None
    ) -> list[Line]:
        """Compare days in source, landing and published snapshot; changes nothing.

        Args:
            progress: called with each day that was read from the source.

        Raises:
            UsagePipelineError: nothing is published, the source cannot be read, or a rollup was
                running, so that what differs says nothing.
        """
        self._require_published()
        before = self._state()
        models = self.transformer.usage_daily_models()
        lines = reconciliation.reconcile(
            self.settings, models, self.transformer.meters, days, progress
        )
        if any(line.matches is False for line in lines):
            self._require_no_rollup()
            if self._state() != before:
                raise UsagePipelineError(
                    "A rollup ran while days were compared", "Reconcile them again"
                )
        return lines

    def compare_places(self, days: DayRange) -> list[Unlike]:
        """Compare what is published, in all places, with the warehouse; with the snapshot while
        days are not published. Changes nothing."""
        with self._writing("comparing what is published", "checks"):
            built = self.settings.warehouse_path.exists() and not self.pending.ranges()
            return places.compare(self.settings, days, built=built)

    def repair_places(self, days: DayRange) -> list[Unlike]:
        """Make what is published, in all places, what the warehouse says; gives what was not.

        Raises:
            UsagePipelineError: the warehouse is not what was audited and published last.
        """
        self._require_published()
        with self._writing("repairing what is published", "publishing"):
            waiting = self.pending.ranges()
            if waiting or not self.settings.warehouse_path.exists():
                raise UsagePipelineError(
                    "The warehouse is not what is published: waiting are "
                    + (", ".join(map(str, waiting[:5])) or "all days"),
                    "Run `usage-pipeline rollup`, which publishes them, and repair again",
                )
            models = self.transformer.usage_daily_models()
            lines = reconciliation.compare_built(self.settings, models, [days])
            unlike_landing = sorted({line.usage_date for line in lines if not line.matches})
            if unlike_landing:
                raise UsagePipelineError(
                    f"The warehouse is not what is landed: {', '.join(map(str, unlike_landing))}",
                    "Roll these days up again with `usage-pipeline rollup --start … --end …`",
                )
            return places.repair(self.settings, days)

    def _require_published(self) -> None:
        self._require_no_rollup()
        if not is_published(self.settings):
            raise UsagePipelineError(
                "Nothing is published", "Publish it with `usage-pipeline rollup`"
            )

    def _require_no_rollup(self) -> None:
        holder = writer.holder(self.settings)
        if holder:
            raise UsagePipelineError(
                f"A run is writing: {holder}", "Reconcile again when it has ended"
            )

    def _state(self) -> tuple[int, int, int]:
        """Differs when a rollup landed, built or published something meanwhile."""
        snapshot = published.own_path(self.settings).stat()
        return self.pending.revision(), snapshot.st_ino, snapshot.st_mtime_ns

    def publish(self, run_id: str) -> PublishReport:
        """Publish the built days to the snapshot, to Parquet and to Postgres.

        When another run changed landing or the warehouse since this one's audit, builds and audit
        are repeated first, so that no unaudited row is ever published.

        Args:
            run_id: recorded with the snapshot and the restatements.

        Raises:
            UsagePipelineError: a blocking test fails, or an output cannot be written; what was
                published before stays as it was.
        """
        with self._writing("publishing", "publishing"):
            # What no run judged, lest a new month takes its place. Whatever fails there, numbers
            # are published, and the look after that says so.
            with suppress(Exception):
                limits.judge(self.settings, self.transformer.meters, only_new=True)
            if self._audited_revision != self.pending.revision():
                self._bring_up_to_date()
                self._require_audit()
            ranges = self.pending.built()
            report = publish(
                self.settings,
                ranges,
                run_id,
                self.transformer.version,
                meters=self.transformer.meters,
                may_shrink=self.allow_fewer_events,
            )
            self.pending.remove(ranges)
            return report

    def raise_alerts(self) -> AlertReport:
        """Compare what is published with the limits of plans, and note who is to be told.

        Raises:
            UsagePipelineError: a database fails; the next rollup makes up for it. What was
                published stays.
        """
        with self.timings.stage("alerts"):
            try:
                report = limits.judge(self.settings, self.transformer.meters)
            except UsagePipelineError as error:
                notices.record_alerts(self.settings, "", str(error))
                raise UsagePipelineError(
                    f"Published, but not compared with limits: {error.problem}", error.remedy
                ) from error
            notices.record_alerts(self.settings, report.snapshot_id)
            return report

    def announce_days(self) -> int:
        """Put a message into the outbox for each organisation with a webhook and each of its days
        whose published totals changed; gives how many.

        Raises:
            UsagePipelineError: a database fails; the next rollup makes up for it. What was
                published stays.
        """
        with self.timings.stage("alerts"):
            try:
                return rolled_up.announce(self.settings)
            except UsagePipelineError as error:
                raise UsagePipelineError(
                    f"Published, but no webhook was told: {error.problem}", error.remedy
                ) from error

    def _build_days(self, ranges: Iterable[DayRange]) -> list[NodeResult]:
        results: list[NodeResult] = []
        unbuilt = self.pending.begin(ranges)
        windows = list(passes(self.settings, unbuilt))
        for done, days in enumerate(windows):
            self.progress(f"building days {days}", done, len(windows))
            # with the table of manifests, which may have changed since staging was built
            results = _added(results, self.transformer.run("stg_landed_days tag:daily", days))
        self.pending.finish(unbuilt)
        return results

    def _build_months(self) -> list[NodeResult]:
        results: list[NodeResult] = []
        months = merge_ranges(r.whole_months() for r in self.pending.built())
        for done, days in enumerate(months):
            self.progress(f"building months {days}", done, len(months))
            results = _added(results, self.transformer.run("tag:monthly", days))
        return results

    def _bring_up_to_date(self) -> None:
        if self.pending.unbuilt():
            self._build_days([])
        self._build_months()
        self.transformer.run("tag:current")

    def _require_audit(self) -> None:
        failures = blocking_failures(self._audit())
        if failures:
            raise blocked(failures)

    def _audit(self) -> list[NodeResult]:
        self._audited_revision = None
        # First, since tests may fail for want of these days, and say less clearly why.
        lost_events.require_kept(self.settings, partitions(self.settings))
        revision = self.pending.revision()
        ranges = self.pending.built() or ranges_of_days([self._newest_day()])
        tested = [result for days in ranges for result in self.transformer.test(days)]
        results = [*worst_results(tested).values(), *self._prove(ranges)]
        notices.record_audit(self.settings, results)
        if blocking_failures(results):
            self.transformer.count_anew()  # whatever was wrong must not outlive its correction
        else:
            self._audited_revision = revision
        return results

    def _newest_day(self) -> date:
        landed = landed_manifests(self.settings)
        days = landed.keys() - lost_events.lost_days(self.settings)
        if not days:
            raise UsagePipelineError(
                "No day is landed that could be checked", "Land days with `usage-pipeline rollup`"
            )
        return max(days)

    def _prove(self, ranges: Sequence[DayRange]) -> list[NodeResult]:
        """The days about to be published against landing and, for counts and sums, the source."""
        started = time.perf_counter()
        lines = reconciliation.check_built(
            self.settings, self.transformer.usage_daily_models(), self.transformer.meters, ranges
        )
        return proof_results(lines, time.perf_counter() - started)

    @contextmanager
    def _writing(self, purpose: str, stage: str) -> Iterator[None]:
        self.progress(purpose, 0, 1)
        with ExitStack() as lock:
            with self.timings.stage("waiting for other runs"):
                lock.enter_context(
                    writer.exclusive(
                        self.settings,
                        purpose,
                        lambda holder: self.progress(f"waiting for {holder}", 0, 1),
                    )
                )
            with self.timings.stage(stage):
                yield


def passes(settings: Settings, ranges: Iterable[DayRange]) -> Iterator[DayRange]:
    """Ranges cut so that one dbt pass reads a bounded number of events."""
    manifests = landed_manifests(settings)
    for days in ranges:
        start, events = days.start, 0
        for day in days.days():
            rows = manifests[day].rows if day in manifests else 0
            if events and events + rows > EVENTS_A_PASS:
                yield DayRange(start, day)
                start, events = day, 0
            events += rows
        yield DayRange(start, days.end)


def _added(before: list[NodeResult], last: list[NodeResult]) -> list[NodeResult]:
    """The results of the last pass, with the seconds of all."""
    spent = {result.unique_id: result.seconds for result in before}
    return [replace(r, seconds=r.seconds + spent.get(r.unique_id, 0.0)) for r in last]
