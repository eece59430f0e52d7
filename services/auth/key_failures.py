"""Refused attempts to use a key, for the audit: counted by the minute, so that guessing cannot fill it.

A refusal costs its source nothing, and must cost the trail next to nothing: attempts with one key, from one place and
for one reason are one record a minute, places beyond the first few are one place, and keys that do not exist are in
nobody's trail.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast.ids import new_uuid7
from services.auth.store import ApiKey, AuthStore, KeyFailures
from services.shared.clock import Clock
from services.shared.peers import source_of

MAX_SOURCES: Final = 5
"""Places that are told apart, for one key within a minute."""

OTHER_SOURCES: Final = "others"

_MAX_COUNTED: Final = 10_000
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class _Kind:
    workspace_id: str
    api_key_id: str
    minute: datetime
    source: str
    outcome: str
    why: str


class KeyFailureCounter:
    """Counts, and writes what a minute has brought when it is over.

    Args:
        store: Takes the records.
        clock: Tells which minute it is.
    """

    def __init__(self, store: AuthStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._counts: Counter[_Kind] = Counter()
        self._sources: dict[tuple[str, datetime], set[str]] = {}
        # Records that have to be written as they are: the answer to an earlier try may have been lost.
        self._closed: list[KeyFailures] = []

    def note(self, key: ApiKey, *, peer: str, outcome: str, why: str) -> None:
        """Takes one refusal of a key that exists.

        Args:
            key: Which.
            peer: Who showed it, as grpc calls it; empty when that is not known.
            outcome: The reason.
            why: In a word.
        """
        minute = self._minute()
        known = self._sources.setdefault((key.api_key_id, minute), set())
        source = source_of(peer) if peer else "unknown"
        if len(known) < MAX_SOURCES:
            known.add(source)
        if source not in known:
            source = OTHER_SOURCES
        kind = _Kind(key.workspace_id, key.api_key_id, minute, source, outcome, why)
        if kind in self._counts or len(self._counts) < _MAX_COUNTED:
            self._counts[kind] += 1

    async def write(self, *, is_last: bool = False) -> None:
        """Stores what the minutes that are over have brought; at the end, everything.

        Raises:
            Unavailable: The storage is away; it is kept.
        """
        minute = self._minute()
        if len(self._closed) < _MAX_COUNTED:
            for kind in [kind for kind in self._counts if is_last or kind.minute < minute]:
                self._closed.append(_record_of(kind, self._counts.pop(kind)))
            for key in [key for key in self._sources if is_last or key[1] < minute]:
                del self._sources[key]
        while self._closed:
            batch = self._closed[:_BATCH]
            await self._store.append_key_failures(batch)
            del self._closed[: len(batch)]

    def _minute(self) -> datetime:
        return self._clock.now().replace(second=0, microsecond=0)


def _record_of(kind: _Kind, count: int) -> KeyFailures:
    return KeyFailures(
        record_id=new_uuid7(),
        workspace_id=kind.workspace_id,
        time=kind.minute,
        api_key_id=kind.api_key_id,
        outcome=kind.outcome,
        details={"count": str(count), "source": kind.source, "why": kind.why},
    )
