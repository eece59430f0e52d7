"""Refused credentials of callers, for the audit: counted by the minute, so that guessing cannot fill it.

A refusal costs its source nothing, and must cost the trail next to nothing: attempts with one key, from one place and
for one reason are one record a minute, and places beyond the first few are one place. Keys that no workspace has, and
persons' tokens, are counted in the same way, each kind as if it were one key, in the trail of the installation itself.

What a minute has brought is in memory until it is over: a crash loses that much. Writing may be repeated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast.ids import new_uuid7
from services.auth.store import INSTALLATION_ID, Action, ApiKey, AuthStore, Refusals
from services.shared.clock import Clock
from services.shared.peers import source_of

MAX_SOURCES: Final = 5
"""Places that are told apart, for one key within a minute."""

MAX_STRANGERS_SOURCES: Final = 20
"""The same for what belongs to no workspace: strangers are many, and one of them must not hide the others."""

OTHER_SOURCES: Final = "others"

_MAX_COUNTED: Final = 10_000
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class _Subject:
    """What was shown: one key, or whatever of a kind belongs to no workspace."""

    workspace_id: str
    action: Action
    api_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Kind:
    subject: _Subject
    minute: datetime
    source: str
    outcome: str
    why: str


_NOBODYS_KEYS: Final = _Subject(INSTALLATION_ID, Action.API_KEY_REFUSED)
_TOKENS: Final = _Subject(INSTALLATION_ID, Action.TOKEN_REFUSED)


class RefusalCounter:
    """Counts, and writes what a minute has brought when it is over.

    Args:
        store: Takes the records.
        clock: Tells which minute it is.
    """

    def __init__(self, store: AuthStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._counts: Counter[_Kind] = Counter()
        self._sources: dict[tuple[_Subject, datetime], set[str]] = {}
        # Records that have to be written as they are: the answer to an earlier try may have been lost.
        self._closed: list[Refusals] = []

    def note_key(self, key: ApiKey, *, peer: str, outcome: str, why: str) -> None:
        """Takes one refusal of a key that exists.

        Args:
            key: Which.
            peer: Who showed it, as grpc calls it; empty when that is not known.
            outcome: The reason.
            why: In a word.
        """
        subject = _Subject(key.workspace_id, Action.API_KEY_REFUSED, key.api_key_id)
        self._note(subject, MAX_SOURCES, peer, outcome, why)

    def note_nobodys_key(self, *, peer: str, outcome: str, why: str) -> None:
        """Takes one refusal of a key that no workspace has; see `note_key`."""
        self._note(_NOBODYS_KEYS, MAX_STRANGERS_SOURCES, peer, outcome, why)

    def note_token(self, *, peer: str, outcome: str, why: str) -> None:
        """Takes one refusal of a person's token; see `note_key`."""
        self._note(_TOKENS, MAX_STRANGERS_SOURCES, peer, outcome, why)

    def _note(self, subject: _Subject, max_sources: int, peer: str, outcome: str, why: str) -> None:
        minute = self._minute()
        known = self._sources.setdefault((subject, minute), set())
        source = source_of(peer) if peer else "unknown"
        if len(known) < max_sources:
            known.add(source)
        if source not in known:
            source = OTHER_SOURCES
        kind = _Kind(subject, minute, source, outcome, why)
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
            await self._store.append_refusals(batch)
            del self._closed[: len(batch)]

    def _minute(self) -> datetime:
        return self._clock.now().replace(second=0, microsecond=0)


def _record_of(kind: _Kind, count: int) -> Refusals:
    return Refusals(
        record_id=new_uuid7(),
        workspace_id=kind.subject.workspace_id,
        time=kind.minute,
        action=kind.subject.action,
        api_key_id=kind.subject.api_key_id,
        outcome=kind.outcome,
        details={"count": str(count), "source": kind.source, "why": kind.why},
    )
