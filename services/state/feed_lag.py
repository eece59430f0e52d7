"""Tells when the change feed is held back: by a transaction of anybody in the cluster that has written and stays open.

The feed ends before the oldest transaction that may still commit. PostgreSQL does not say of a transaction what it will
write, so that one in another database of the same cluster holds the feed back as well; one that only reads does not.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Gauge

from holdfast.errors import HoldfastError
from services.shared.clock import Clock
from services.shared.database import Database
from services.shared.telemetry import get_logger
from services.state.feed_origin import HORIZON_SQL, NEWEST_SQL

LOOK_SECONDS: Final = 5.0
WARN_SECONDS: Final = 60.0

_LOOK: Final = sa.text(f"SELECT {HORIZON_SQL} AS horizon, COALESCE(({NEWEST_SQL}), 0) AS newest")

# A prepared transaction has no process. What others do is told to members of pg_read_all_stats only.
_HOLDER: Final = sa.text(
    """
SELECT 'process ' || pid AS holder, datname, application_name, now() - xact_start AS age
FROM pg_stat_activity WHERE CAST(CAST(backend_xid AS text) AS bigint) = :id
UNION ALL
SELECT 'prepared transaction ' || gid, database, '', now() - prepared
FROM pg_prepared_xacts WHERE CAST(CAST(transaction AS text) AS bigint) = :id
"""
)

log = get_logger(__name__)


class FeedLag:
    """Watches the end of the feed. PostgreSQL only: on SQLite, nothing can hold it back.

    Args:
        db: Where the journal is.
        clock: Measures.
        registry: The process's metrics.
    """

    def __init__(self, db: Database, clock: Clock, registry: CollectorRegistry) -> None:
        self._db = db
        self._clock = clock
        self._gauge = Gauge(
            "holdfast_state_feed_held_back_seconds",
            "How long committed events have waited for one open transaction before followers may see them.",
            registry=registry,
        )
        self._horizon = 0
        self._since: float | None = None
        self._warned_at: float | None = None

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while self._db.dialect == "postgresql":
            try:
                await self.look()
            except HoldfastError as error:
                # Others say that the storage is away.
                log.debug("feed_lag_unknown", reason=error.reason)
            await self._clock.sleep(LOOK_SECONDS)

    async def look(self) -> float:
        """Returns for how many seconds one transaction has held the feed back, and says so if that is long."""
        horizon, newest = await self._db.read_once(_look)
        now = self._clock.monotonic()
        if newest < horizon:
            self._since = None
        elif self._since is None or horizon != self._horizon:
            # Under load something is open at each look; only one that stays holds back.
            self._since = now
        self._horizon = horizon
        seconds = 0.0 if self._since is None else now - self._since
        self._gauge.set(seconds)
        if seconds < WARN_SECONDS:
            self._warned_at = None
        elif self._warned_at is None or now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            holder, database, application, age = await self._db.read_once(_holder, horizon)
            log.warning(
                "feed_held_back",
                seconds=round(seconds),
                holder=holder,
                holder_database=database,
                holder_application=application,
                holder_age_seconds=age,
            )
        return seconds


def _look(connection: sa.Connection) -> tuple[int, int]:
    horizon, newest = connection.execute(_LOOK).one()
    return horizon, newest


def _holder(connection: sa.Connection, horizon: int) -> tuple[str, str, str, int]:
    """Who the open transaction at the horizon belongs to."""
    base = connection.execute(sa.text("SELECT COALESCE((SELECT base FROM feed), 0)")).scalar_one()
    # Where activities are shown, ids have 32 bits.
    row = connection.execute(_HOLDER, {"id": (horizon - base) % 2**32}).first()
    if row is None:
        return "not visible to this user", "", "", 0
    return row.holder, row.datname or "", row.application_name or "", round(row.age.total_seconds())
