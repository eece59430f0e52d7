"""The data keys that payloads are sealed with: wrapped beside them in state's database, brought in the clear by auth.

Invariant: nothing is sealed with a key whose wrapped form is not committed. A process that dies between the two leaves
a key at most that nothing was sealed with. Of two replicas that need a workspace's first key at once, each may make
one: both are kept, and each payload says which is its own.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import Final

import grpc.aio
import sqlalchemy as sa

from holdfast.api.auth.v1 import data_key_service_pb2 as pb
from holdfast.api.auth.v1.data_key_service_pb2_grpc import DataKeyServiceStub
from holdfast.errors import HoldfastError, InvalidArgument, NotFound, Reason
from services.shared.channels import calling
from services.shared.clock import Clock
from services.shared.crash_points import crash_point
from services.shared.database import Database
from services.shared.seals import PayloadDamagedError, Seals
from services.shared.telemetry import get_logger
from services.state import tables as t

KEY_LIFE: Final = timedelta(days=90)
"""How long a key is sealed with; what it sealed is opened as long as the workspace has its own key."""

REFRESH_SECONDS: Final = 300.0
"""How often keys in memory are looked at again: so long at most one outlives the workspace's own key."""

_DEADLINE_SECONDS: Final = 5.0

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
            with calling("auth"):
                made = await self._stub.CreateDataKey(
                    pb.CreateDataKeyRequest(workspace_id=workspace_id), timeout=_DEADLINE_SECONDS
                )
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
    """Forgets keys that were destroyed or are not used, until it is cancelled."""
    while True:
        await clock.sleep(REFRESH_SECONDS)
        try:
            await seals.refresh()
        except HoldfastError as error:
            log.debug("data_keys_not_refreshed", reason=error.reason)


def _newest(connection: sa.Connection, db: Database, workspace_id: str) -> tuple[bytes, str] | None:
    k = t.data_keys.c
    query = (
        sa.select(k.key_id, k.wrapped)
        .where(k.workspace_id == workspace_id, k.created_at > db.now(connection) - KEY_LIFE)
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
