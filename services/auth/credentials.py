"""A credential for one call: found, opened and recorded, for the executor and nobody else."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakValueDictionary

from holdfast.errors import InvalidArgument, NotFound, Reason, Unavailable
from holdfast.ids import is_uuid, new_uuid7
from services.auth.audit import AuditTrail
from services.auth.connection_store import SHARED, ConnectionStore
from services.auth.connections import connection_not_found
from services.auth.key_documents import read_key_document
from services.auth.requests import is_name
from services.auth.secrets import Secret, SecretStore
from services.auth.store import CredentialUse
from services.shared.clock import Clock

CACHE_SECONDS: Final = 5.0
"""How long another replica may hand out a credential that was replaced or revoked here. This process stops at once."""

_CACHE_ENTRIES: Final = 1024
_READ_ATTEMPTS: Final = 3
_RUN_ID: Final = re.compile(r"[0-9A-Za-z._:-]{1,128}")


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """A third party's key with all that is needed to use it once."""

    connection_id: str
    provider: str
    secret: Secret
    base_url: str
    version: int
    fingerprint: str


class Credentials:
    """Resolves connections to credentials; every use is recorded before the credential is handed out."""

    def __init__(self, store: ConnectionStore, secrets: SecretStore, audit: AuditTrail, clock: Clock) -> None:
        self._store = store
        self._secrets = secrets
        self._audit = audit
        self._clock = clock
        self._cache: OrderedDict[tuple[str, str], tuple[float, Credential]] = OrderedDict()
        self._changes = 0
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def resolve(self, workspace_id: str, name: str, *, run_id: str, step: int, actor: str) -> Credential:
        """Returns the credential of an active connection, for one step of a run.

        Raises:
            InvalidArgument: It is not said for which step of which run.
            NotFound: The workspace has no active connection of the name.
            Unavailable: The store cannot be read, or the use cannot be recorded.
        """
        if _RUN_ID.fullmatch(run_id) is None:
            raise InvalidArgument("run_id is required", field="run_id", description="expected the id of a run")
        if step < 0:
            raise InvalidArgument("step is negative", field="step", description="expected 0 or more")
        if not is_uuid(workspace_id) or not is_name(name):
            raise connection_not_found()
        await self._audit.admit()
        use = CredentialUse(
            record_id=new_uuid7(),
            workspace_id=workspace_id,
            time=self._clock.now(),
            actor=actor,
            outcome="OK",
            connection=name,
            connection_id=None,
            fingerprint=None,
            run_id=run_id,
            step=step,
        )
        try:
            credential = await self._get((workspace_id, name))
        except NotFound as error:
            self._audit.record(_with(use, outcome=error.reason))
            raise
        self._audit.record(
            _with(use, connection_id=credential.connection_id, fingerprint=credential.fingerprint or None)
        )
        return credential

    def forget(self, workspace_id: str, name: str) -> None:
        """Drops what is remembered of a connection; called when it has changed."""
        # Also stops a read that began before the change from being remembered after it.
        self._changes += 1
        self._cache.pop((workspace_id, name), None)

    async def _get(self, key: tuple[str, str]) -> Credential:
        remembered = self._remembered(key)
        if remembered is not None:
            return remembered
        # Many runs of one workspace need the same connection at the same moment: one of them reads it.
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = asyncio.Lock()
        async with turn:
            remembered = self._remembered(key)
            if remembered is not None:
                return remembered
            changes, started = self._changes, self._clock.monotonic()
            credential = await self._read(*key)
            if changes == self._changes:
                self._cache[key] = (started + CACHE_SECONDS, credential)
                if len(self._cache) > _CACHE_ENTRIES:
                    self._cache.popitem(last=False)
            return credential

    def _remembered(self, key: tuple[str, str]) -> Credential | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock.monotonic():
            del self._cache[key]
            return None
        return entry[1]

    async def _read(self, workspace_id: str, name: str) -> Credential:
        for _ in range(_READ_ATTEMPTS):
            connection = await self._store.find_connection(workspace_id, SHARED, name)
            if connection is None or not connection.is_usable:
                raise connection_not_found()
            document = await read_key_document(self._secrets, connection)
            if document is not None:
                return Credential(
                    connection_id=connection.connection_id,
                    provider=connection.provider,
                    secret=document.api_key,
                    base_url=connection.base_url,
                    version=connection.version,
                    fingerprint=connection.fingerprint,
                )
            # Replaced between the two reads: the row refers to another secret now.
        raise Unavailable(
            "the connection is changing; try again", reason=Reason.STORAGE_UNAVAILABLE, retry_delay_seconds=1.0
        )


def _with(use: CredentialUse, **changes: str | None) -> CredentialUse:
    return replace(use, **changes)  # type: ignore[arg-type]
