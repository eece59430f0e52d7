"""The data keys that payloads are sealed with: wrapped beside them in state's database, brought in the clear by auth.

Auth also knows which workspaces have chosen to be sealed. Of one that has a row here something may be.

Invariant: nothing is sealed with a key whose wrapped form is not committed. A process that dies between the two leaves
a key at most that nothing was sealed with. Of two replicas that need a workspace's first key at once, each may make
one: both are kept, and each payload says which is its own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import grpc.aio
import sqlalchemy as sa

from holdfast.api.auth.v1 import data_key_service_pb2 as pb
from holdfast.api.auth.v1.data_key_service_pb2_grpc import DataKeyServiceStub
from holdfast.api.auth.v1.workspace_service_pb2 import PAYLOAD_SEALING_OFF, PAYLOAD_SEALING_ON
from holdfast.errors import HoldfastError, InvalidArgument, NotFound, Reason, Unavailable
from services.shared.channels import calling
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.database import Database
from services.shared.seals import PayloadDamagedError, Seals
from services.shared.telemetry import get_logger
from services.state import tables as t

KEY_LIFE: Final = timedelta(days=90)
"""How long a key is sealed with; what it sealed is opened as long as the workspace has its own key."""

CHOICES_SECONDS: Final = 10.0
"""How often workspaces in use are asked about again: so long a change of their choice takes while auth answers."""

REFRESH_SECONDS: Final = 300.0
"""How often keys in memory are looked at again: so long at most one outlives the workspace's own key."""

_DEADLINE_SECONDS: Final = 5.0

# What a workspace that is met waits for auth at most, where it needs no key.
_CHOICES_DEADLINE_SECONDS: Final = 2.0

_CHOICES: Final = {PAYLOAD_SEALING_ON: True, PAYLOAD_SEALING_OFF: False}

log = get_logger(__name__)


class DataKeys:
    """Makes, keeps and finds data keys.

    Args:
        channel: To auth.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = DataKeyServiceStub(channel)
        self._turn = asyncio.Lock()
        # Set by whoever opens the database, whose seals come from here.
        self.db: Database

    async def current(self, workspace_id: str) -> tuple[bytes, bytes]:
        """See `KeySource.current`."""
        # One at a time: those who came for the same workspace find what the first has made.
        async with self._turn:
            stored = await self.db.read(_newest, self.db, workspace_id)
            if stored is not None:
                key_id, wrapped = stored
                value = await self._unwrapped(workspace_id, wrapped)
                if value is not None:
                    return key_id, value
            try:
                with calling("auth"):
                    made = await self._stub.CreateDataKey(
                        pb.CreateDataKeyRequest(workspace_id=workspace_id), timeout=_DEADLINE_SECONDS
                    )
            except NotFound:
                # A closed workspace gets no new key; until it is erased, its last one does.
                last = await self.db.read(_newest, self.db, workspace_id, of_any_age=True)
                value = None if last is None else await self._unwrapped(workspace_id, last[1])
                if last is None or value is None:
                    raise
                return last[0], value
            crash_point("state.data_key.before_row")
            key_id = uuid.uuid4().bytes
            await self.db.write(_insert, self.db, workspace_id, key_id, made.wrapped)
            crash_point("state.data_key.after_row")
            log.info("data_key_created", workspace_id=workspace_id)
            return key_id, made.key

    async def find(self, workspace_id: str, key_id: bytes) -> bytes | None:
        """See `KeySource.find`."""
        wrapped = await self.db.read(_find, workspace_id, key_id)
        if wrapped is None:
            raise PayloadDamagedError("no row has the data key of a stored payload")
        return await self._unwrapped(workspace_id, wrapped)

    async def choices(self, workspace_ids: Sequence[str]) -> list[bool | None]:
        """See `ChoiceSource.choices`."""
        with calling("auth"):
            answer = await self._stub.CheckPayloadSealing(
                pb.CheckPayloadSealingRequest(workspace_ids=workspace_ids), timeout=_CHOICES_DEADLINE_SECONDS
            )
        if len(answer.payload_sealing) != len(workspace_ids):
            raise Unavailable("auth did not answer for all workspaces", reason=Reason.AUTH_UNAVAILABLE)
        return [_CHOICES.get(choice) for choice in answer.payload_sealing]

    async def has_key(self, workspace_id: str) -> bool:
        """See `ChoiceSource.has_key`."""
        return await self.db.read(_newest, self.db, workspace_id, of_any_age=True) is not None

    async def _unwrapped(self, workspace_id: str, wrapped: str) -> bytes | None:
        try:
            with calling("auth"):
                answer = await self._stub.UnwrapDataKey(
                    pb.UnwrapDataKeyRequest(workspace_id=workspace_id, wrapped=wrapped), timeout=_DEADLINE_SECONDS
                )
        except NotFound as error:
            if error.reason == Reason.CONTENT_REMOVED:
                return None
            raise
        except InvalidArgument as error:
            raise PayloadDamagedError("the data key of a stored payload does not open") from error
        return bytes(answer.key)


async def keep_fresh(seals: Seals, clock: Clock) -> None:
    """Follows workspaces' choices, and forgets keys that were destroyed or are not used, until it is cancelled."""
    refreshed_at = clock.monotonic()
    while True:
        await clock.sleep(CHOICES_SECONDS)
        await seals.refresh_choices()
        if clock.monotonic() - refreshed_at < REFRESH_SECONDS:
            continue
        refreshed_at = clock.monotonic()
        try:
            await seals.refresh()
        except HoldfastError as error:
            log.debug("data_keys_not_refreshed", reason=error.reason)
        except PayloadDamagedError as error:
            log.error("data_key_damaged", exc_info=error)


def _newest(
    connection: sa.Connection, db: Database, workspace_id: str, *, of_any_age: bool = False
) -> tuple[bytes, str] | None:
    k = t.data_keys.c
    is_young = sa.true() if of_any_age else k.created_at > db.now(connection) - KEY_LIFE
    query = (
        sa.select(k.key_id, k.wrapped)
        .where(k.workspace_id == workspace_id, is_young)
        .order_by(k.created_at.desc(), k.key_id)
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (uuid.UUID(row.key_id).bytes, row.wrapped)


def _insert(connection: sa.Connection, db: Database, workspace_id: str, key_id: bytes, wrapped: str) -> None:
    now: datetime = db.now(connection)
    connection.execute(
        sa.insert(t.data_keys).values(
            workspace_id=workspace_id, key_id=str(uuid.UUID(bytes=key_id)), wrapped=wrapped, created_at=now
        )
    )


def _find(connection: sa.Connection, workspace_id: str, key_id: bytes) -> str | None:
    k = t.data_keys.c
    query = sa.select(k.wrapped).where(k.workspace_id == workspace_id, k.key_id == str(uuid.UUID(bytes=key_id)))
    found: str | None = connection.execute(query).scalar_one_or_none()
    return found
