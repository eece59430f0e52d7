"""How often a source may fail to authenticate: guessing is slowed, and nobody's good key is locked out by it.

Failures are counted by the peer's address and by the id of the key that was tried. Over the limit, only credentials
that were good here within the last minutes are still looked at; everything else is told when to come again, without a
look-up. The counts are this process's own, and there are never more of them than a fixed number.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from holdfast.errors import Reason, ResourceExhausted
from services.shared.clock import Clock
from services.shared.peers import source_of
from services.shared.telemetry import get_logger

GOOD_SECONDS: Final = 600.0
"""How long a credential that was good is served although its source is over the limit."""

_NOTE_GOOD_EVERY_SECONDS: Final = 60.0
_MAX_SOURCES: Final = 10_000
_MAX_GOOD: Final = 10_000

log = get_logger(__name__)


class FailureLimiter:
    """Counts failures.

    Args:
        per_minute: How many a source may have in a minute, and at once; 0 means no limit.
        clock: Time.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        # For each source the moment at which its failures are forgotten: each failure moves it by one interval, so
        # that a source is over the limit when it lies more than a minute ahead (the generic cell rate algorithm).
        self._forgotten: OrderedDict[str, float] = OrderedDict()
        self._good: OrderedDict[bytes, float] = OrderedDict()

    @property
    def is_counting(self) -> bool:
        """Whether any failure is remembered: while there is none, `check` need not be called."""
        return bool(self._forgotten)

    def check(self, peer: str, key_id: str | None, digest: bytes) -> None:
        """Lets a credential be looked at.

        Args:
            peer: As grpc calls it.
            key_id: Of the key that is tried, when it is one.
            digest: Hash of the whole credential.

        Raises:
            ResourceExhausted: Its source, or its key's id, has failed too often.
        """
        delay = max(self._delay(source_of(peer)), self._delay(_of_key(key_id)) if key_id else 0.0)
        if delay <= 0 or self._good.get(digest, -GOOD_SECONDS) > self._clock.monotonic() - GOOD_SECONDS:
            return
        raise ResourceExhausted(
            "too many attempts to authenticate have failed; try again later",
            reason=Reason.TOO_MANY_AUTH_FAILURES,
            retry_delay_seconds=delay,
        )

    def failed(self, peer: str, key_id: str | None = None) -> None:
        """Notes that a credential was not valid."""
        if not self._interval:
            return
        self._count(source_of(peer))
        if key_id:
            self._count(_of_key(key_id))

    def succeeded(self, digest: bytes) -> None:
        """Notes that a credential was good."""
        now = self._clock.monotonic()
        known = self._good.get(digest)
        if known is not None and now - known < _NOTE_GOOD_EVERY_SECONDS:
            return
        self._good[digest] = now
        self._good.move_to_end(digest)
        if len(self._good) > _MAX_GOOD:
            self._good.popitem(last=False)

    def _delay(self, source: str) -> float:
        forgotten = self._forgotten.get(source)
        if forgotten is None:
            return 0.0
        ahead = forgotten - self._clock.monotonic()
        if ahead <= 0:
            del self._forgotten[source]
        return ahead - 60.0

    def _count(self, source: str) -> None:
        now = self._clock.monotonic()
        before = max(self._forgotten.get(source, now), now)
        # At most one interval beyond the limit: more failures do not make the wait longer.
        after = min(before + self._interval, now + 60.0 + self._interval)
        if before - now <= 60.0 < after - now:
            log.warning("authentication_limited", source=source)
        self._forgotten[source] = after
        self._forgotten.move_to_end(source)
        if len(self._forgotten) > _MAX_SOURCES:
            self._forgotten.popitem(last=False)


def _of_key(key_id: str) -> str:
    return f"key {key_id}"
