"""Who may refresh a connection now: a document beside the tokens, replaced by check-and-set.

Invariant: of all processes at most one believes that it holds the lease of a connection and may still send. A holder
stops believing so after `LEASE_SECONDS` of its own monotonic clock, counted from the beginning of its last write;
another one takes over only after it has watched the unchanged record for as long on its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from holdfast.errors import Conflict, LeaseLost, Unavailable
from services.auth.refresh.documents import new_write_id
from services.auth.secrets import Secret, SecretStore
from services.shared.clock import Clock

LEASE_SECONDS: Final = 45.0
WATCH_GAP_SECONDS: Final = 15.0
"""Who has not looked for so long cannot say that nothing has changed in between."""

_MAX_WATCHED: Final = 4096


def lease_path(connection_id: str) -> str:
    """Returns where the lease of a connection lies."""
    return f"lease/c/{connection_id}"


class Phase(StrEnum):
    """How far the holder is."""

    FREE = "free"
    ACQUIRED = "acquired"
    """Nothing was sent."""
    SENT = "sent"
    """The request is about to leave, or has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What a lease document says. It holds no token."""

    phase: Phase = Phase.FREE
    owner: str = ""
    write_id: str = ""
    """Random for each write, so that "unchanged" and "mine" can be told."""
    hold_id: str = ""
    """The same from taking the lease to giving it back."""
    secret_path: str = ""
    token_version: int = 0
    """Which version of the document is being replaced."""
    sent_time: datetime | None = None
    """When the request left, for providers' grace windows; no decision about the lease looks at it."""
    unknown_path: str = ""
    unknown_version: int = 0
    """A version of the document whose refresh was sent without anybody knowing what came of it."""
    unknown_time: datetime | None = None

    def is_unknown(self, secret_path: str, version: int) -> bool:
        """Tells whether the outcome of a refresh of this version is unknown."""
        return self.unknown_version == version > 0 and self.unknown_path == secret_path

    def to_secret(self) -> Secret:
        """Returns the record as the secret store keeps it."""
        return Secret(
            json.dumps(
                {
                    "phase": self.phase.value,
                    "owner": self.owner,
                    "write_id": self.write_id,
                    "hold_id": self.hold_id,
                    "secret_path": self.secret_path,
                    "token_version": self.token_version,
                    "sent_time": _text(self.sent_time),
                    "unknown_path": self.unknown_path,
                    "unknown_version": self.unknown_version,
                    "unknown_time": _text(self.unknown_time),
                }
            )
        )

    @classmethod
    def from_secret(cls, secret: Secret) -> LeaseRecord:
        """Returns what `to_secret` returned."""
        document = json.loads(secret.reveal())
        times = {name: document[name] for name in ("sent_time", "unknown_time")}
        return cls(
            **{
                **document,
                "phase": Phase(document["phase"]),
                **{name: None if text is None else datetime.fromisoformat(text) for name, text in times.items()},
            }
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as it was found."""

    record: LeaseRecord
    version: int
    unchanged_seconds: float
    """How long this process has watched it without a change."""


@dataclass(slots=True)
class _Watch:
    write_id: str
    since: float
    looked_at: float


class Leases:
    """Takes leases for one process.

    Args:
        secrets: Where they lie: the store of the tokens, because taking one has to prove that it takes writes.
        clock: Measures.
        owner: Identity of this process, new with each start.
    """

    def __init__(self, secrets: SecretStore, clock: Clock, *, owner: str) -> None:
        self._secrets = secrets
        self._clock = clock
        self._owner = owner
        self._watched: dict[str, _Watch] = {}
        self._unsent: set[str] = set()

    async def look(self, connection_id: str) -> Seen:
        """Reads a lease, and notes that it was looked at.

        Raises:
            Unavailable: The store is away. The holder could not have written either: watching begins anew.
        """
        try:
            stored = await self._secrets.get(lease_path(connection_id))
        except Unavailable:
            self._watched.pop(connection_id, None)
            raise
        record = LeaseRecord() if stored is None else LeaseRecord.from_secret(stored.secret)
        version = 0 if stored is None else stored.version
        if record.phase is Phase.FREE:
            self._watched.pop(connection_id, None)
            return Seen(record, version, 0.0)
        now = self._clock.monotonic()
        watch = self._watched.get(connection_id)
        if watch is None or watch.write_id != record.write_id or now - watch.looked_at > WATCH_GAP_SECONDS:
            self._trim(now)
            watch = self._watched[connection_id] = _Watch(record.write_id, now, now)
        watch.looked_at = now
        return Seen(record, version, now - watch.since)

    async def take(self, connection_id: str, seen: Seen, *, secret_path: str, token_version: int) -> Lease | None:
        """Takes a lease that is free, over, or abandoned; None while another holder has it.

        Raises:
            Unavailable: The store is away, or it cannot be told whether the lease was taken: nothing may be sent.
        """
        record = seen.record
        # Past its R8, or about a grant that was replaced: whoever holds it cannot send for this one any more.
        is_void = record.secret_path != secret_path or record.token_version < token_version
        is_own = record.hold_id in self._unsent
        is_stolen = seen.unchanged_seconds >= LEASE_SECONDS
        if record.phase is not Phase.FREE and not (is_void or is_own or is_stolen):
            return None
        taken = LeaseRecord(
            phase=Phase.ACQUIRED,
            owner=self._owner,
            hold_id=new_write_id(),
            secret_path=secret_path,
            token_version=token_version,
            unknown_path=record.unknown_path,
            unknown_version=record.unknown_version,
            unknown_time=record.unknown_time,
        )
        if record.phase is Phase.SENT and not is_void and not is_own:
            taken = replace(
                taken, unknown_path=secret_path, unknown_version=record.token_version, unknown_time=record.sent_time
            )
        lease = Lease(self, connection_id, taken, seen.version, was_stolen=is_stolen and not (is_void or is_own))
        # Until it says SENT, this process knows that it has sent nothing under it.
        self._unsent.add(taken.hold_id)
        try:
            await lease.write(taken)
        except LeaseLost:
            self._unsent.discard(taken.hold_id)
            return None
        self._unsent.discard(record.hold_id)
        self._watched.pop(connection_id, None)
        return lease

    def forget_unsent(self, hold_id: str) -> None:
        """Takes note that something is about to be sent under a hold, or that it is given back."""
        self._unsent.discard(hold_id)

    def note_unsent(self, hold_id: str) -> None:
        """Takes note that nothing was sent under a hold after all."""
        self._unsent.add(hold_id)

    def _trim(self, now: float) -> None:
        if len(self._watched) >= _MAX_WATCHED:
            for connection_id, watch in list(self._watched.items()):
                if now - watch.looked_at > WATCH_GAP_SECONDS:
                    del self._watched[connection_id]

    @property
    def secrets(self) -> SecretStore:
        """Where leases lie."""
        return self._secrets

    @property
    def clock(self) -> Clock:
        """Measures."""
        return self._clock


class Lease:
    """A lease that this process holds."""

    def __init__(
        self, leases: Leases, connection_id: str, record: LeaseRecord, version: int, *, was_stolen: bool
    ) -> None:
        self._leases = leases
        self._clock = leases.clock
        self._path = lease_path(connection_id)
        self.record = record
        self.version = version
        self.was_stolen = was_stolen
        """Whether its holder before had to be taken for dead."""
        self._written_at = self._clock.monotonic()

    @property
    def seconds_left(self) -> float:
        """How long nobody else can take it."""
        return self._written_at + LEASE_SECONDS - self._clock.monotonic()

    async def mark_sent(self) -> None:
        """Writes that the request is about to leave: the intent, and the proof that the store takes writes now.

        Raises:
            LeaseLost: Somebody has taken it over. Nothing may be sent.
            Unavailable: The store is away. Nothing may be sent.
        """
        await self.write(replace(self.record, phase=Phase.SENT, sent_time=self._clock.now()))
        self._leases.forget_unsent(self.record.hold_id)

    async def extend(self) -> None:
        """Makes it last for the whole time again.

        Raises:
            LeaseLost: Somebody has taken it over.
            Unavailable: The store is away.
        """
        await self.write(self.record)

    async def free(self, *, is_unknown: bool = False, was_sent: bool = True) -> None:
        """Gives it back.

        Args:
            is_unknown: Nobody knows what came of what was sent.
            was_sent: Something was sent under it; if not, this process may take it again even if this write fails.

        Raises:
            LeaseLost: Somebody has taken it over.
            Unavailable: The store is away.
        """
        record = self.record
        if not was_sent:
            self._leases.note_unsent(record.hold_id)
        keeps = is_unknown or record.is_unknown(record.secret_path, record.token_version)
        freed = LeaseRecord(
            phase=Phase.FREE,
            owner=record.owner,
            hold_id=record.hold_id,
            secret_path=record.secret_path,
            token_version=record.token_version,
            unknown_path=record.secret_path if keeps else "",
            unknown_version=record.token_version if keeps else 0,
            unknown_time=(record.sent_time or record.unknown_time) if keeps else None,
        )
        try:
            await self.write(freed)
        except LeaseLost:
            self._leases.forget_unsent(record.hold_id)
            raise
        self._leases.forget_unsent(record.hold_id)

    async def settle(self) -> None:
        """Gives it back after the next version was stored: what was unknown before is past.

        Raises:
            LeaseLost: Somebody has taken it over.
            Unavailable: The store is away.
        """
        self.record = replace(self.record, unknown_path="", unknown_version=0, unknown_time=None)
        await self.free()

    async def write(self, record: LeaseRecord) -> None:
        """Replaces the record by check-and-set, and decides an ambiguous answer by reading back.

        Raises:
            LeaseLost: Another one was written since.
            Unavailable: The store is away, and nobody knows whether the write took place.
        """
        written = replace(record, write_id=new_write_id())
        began = self._clock.monotonic()
        try:
            version = await self._leases.secrets.put(self._path, written.to_secret(), expected_version=self.version)
        except (Conflict, Unavailable) as error:
            stored = await self._leases.secrets.get(self._path)
            if stored is None or LeaseRecord.from_secret(stored.secret).write_id != written.write_id:
                current = 0 if stored is None else stored.version
                if isinstance(error, Unavailable) and current == self.version:
                    # It may still be applied later; the caller acts as if it were not.
                    raise
                raise LeaseLost("another replica refreshes this connection") from error
            version = stored.version
        self.version = version
        self.record = written
        self._written_at = began


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
