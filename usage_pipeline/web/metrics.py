"""What the web application counts, for Prometheus. Nobody is named in it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "usage_web_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "usage_web_request_seconds",
            "Seconds until an answer is complete, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.events = Counter(
            "usage_web_events",
            "Events sent to the API, by what became of them: accepted, duplicate, rejected.",
            ["status"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "usage_web_connections_in_use",
            "Connections in use at this moment, by what they are to.",
            ["pool"],
            registry=self.registry,
        )
        self.published_age = Gauge(
            "usage_web_published_age_seconds",
            "Seconds since what is shown was published; NaN where nothing can be read.",
            registry=self.registry,
        )
