"""What an operator sees of refreshes: how they end, what is unsafe at the moment, and what should never move."""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Outcome(StrEnum):
    """How an attempt to refresh ended."""

    REFRESHED = "refreshed"
    JOINED = "joined"
    """Another replica did it."""
    ADOPTED = "adopted"
    """Refused, or too late, because another one was first: its tokens are used."""
    RECOVERED = "recovered"
    """Finished from an escrow that somebody left."""
    PERMANENT = "permanent"
    INTEGRATION = "integration"
    TRANSIENT = "transient"
    UNKNOWN = "unknown"
    MALFORMED = "malformed"
    STORE_UNAVAILABLE = "store_unavailable"
    """Nothing was sent, because its answer could not have been stored."""


class RefreshMetrics:
    """The metrics of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._outcomes = Counter(
            "holdfast_refresh_total", "Attempts to renew a token, by how they ended.", ["outcome"], registry=registry
        )
        for outcome in Outcome:
            self._outcomes.labels(outcome.value)
        self.unknown = Counter(
            "holdfast_refresh_outcome_unknown_total",
            "Refreshes that may have spent a refresh token without an answer arriving.",
            registry=registry,
        )
        self.escrows = Gauge(
            "holdfast_refresh_escrow_pending", "Tokens that lie in escrow at the last look.", registry=registry
        )
        self.unsaved = Gauge(
            "holdfast_refresh_unsaved",
            "New tokens that are in the memory of this process only, because nothing takes them.",
            registry=registry,
        )
        self.steals = Counter(
            "holdfast_refresh_lease_steals_total", "Leases taken over from holders that fell silent.", registry=registry
        )
        self.reuse = Counter(
            "holdfast_refresh_rotation_reuse_detected_total",
            "Answers that held a refresh token which had been spent before.",
            registry=registry,
        )
        self.seconds_to_expiry = Histogram(
            "holdfast_refresh_seconds_to_expiry",
            "How long the old access token would have worked when the new one was stored.",
            buckets=(-3600, -300, -60, 0, 30, 60, 120, 300, 600, 3600),
            registry=registry,
        )

    def ended(self, outcome: Outcome) -> None:
        """Counts an attempt."""
        self._outcomes.labels(outcome.value).inc()
