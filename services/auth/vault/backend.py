"""Vault as one thing that the service opens: login, secret store, envelope keys, and a look at its health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

from services.auth.vault.client import Address, VaultClient, Wire
from services.auth.vault.failures import VaultFailure
from services.auth.vault.login import LoginMethod
from services.auth.vault.nodes import NodeState
from services.auth.vault.secret_store import Mounts, VaultSecretStore
from services.auth.vault.session import Session
from services.auth.vault.transit import VaultEnvelopes
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

WATCH_SECONDS: Final = 5.0

_WORDS: Final = {
    NodeState.ACTIVE: "active",
    NodeState.UNKNOWN: "not asked yet",
    NodeState.STANDBY: "only standbys answer",
    NodeState.UNINITIALISED: "not initialised",
    NodeState.SEALED: "sealed",
    NodeState.OUT: "not of this cluster",
    NodeState.UNREACHABLE: "cannot be reached",
}

log = get_logger(__name__)

Listener = Callable[[bool], Awaitable[None]]
"""Is told whether Vault can be written to, at first and at each change."""


@dataclass(frozen=True, slots=True)
class Vault:
    """An opened Vault."""

    secrets: VaultSecretStore
    envelopes: VaultEnvelopes
    session: Session
    wire: Wire

    async def watch(self, on_change: Listener) -> NoReturn:
        """Tells whether Vault can be used, logs each change once, and logs in when that is all that is missing."""
        told: str | None = None
        while True:
            state = await self.wire.probe()
            word = _WORDS[state]
            if state is NodeState.UNREACHABLE:
                word = self.wire.nodes.best().trouble or word
            # A single address may be a load balancer in front of nodes that pass calls on to the active one.
            is_usable = state is NodeState.ACTIVE or (state is NodeState.STANDBY and len(self.wire.nodes.all) == 1)
            if is_usable:
                try:
                    await self.session.token()
                except VaultFailure as failure:
                    word, is_usable = f"no login: {failure}", False
            if word != told:
                told = word
                (log.info if is_usable else log.error)("vault_state", state=word)
                await on_change(is_usable)
            await self.wire.clock.sleep(WATCH_SECONDS)


@asynccontextmanager
async def open_vault(address: Address, method: LoginMethod, mounts: Mounts, clock: Clock) -> AsyncIterator[Vault]:
    """Opens Vault. It may be away: everything works as soon as it is there.

    Args:
        address: Where it is.
        method: How to log in.
        mounts: Where things lie.
        clock: Where time comes from.
    """
    wire = Wire(address, clock)
    try:
        session = Session(wire, method)
        client = VaultClient(wire, session)
        await wire.probe()
        async with asyncio.TaskGroup() as group:
            # The token's life goes on beside whatever the caller does.
            life = group.create_task(session.run())
            try:
                yield Vault(VaultSecretStore(client, mounts), VaultEnvelopes(client, mounts.transit), session, wire)
            finally:
                life.cancel()
    finally:
        wire.close()
