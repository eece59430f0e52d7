"""Replicas of the refresh over stores in memory, on a virtual clock: each can be killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from prometheus_client import CollectorRegistry

from holdfast.errors import HoldfastError, Reason, Unavailable
from holdfast.ids import new_uuid7
from services.auth.connection_store import Connection, ConnectionState, ConnectionStore, CredentialKind
from services.auth.envelopes import DataKey, KeyBytes
from services.auth.oauth.tokens import OAuthApp, TokenSet
from services.auth.providers.schema import OAuthSpec
from services.auth.refresh.composition import Refreshing, compose_refresh
from services.auth.refresh.documents import StoredTokens, TokenDocument
from services.auth.refresh.escrow import Escrow, EscrowKey, EscrowRow
from services.auth.refresh.goal import Goal
from services.auth.secret_paths import new_connection_path
from services.auth.secrets import Secret, StoredSecret
from tests.fakes.clock import FakeClock
from tests.fakes.connection_rows import MemoryConnectionRows
from tests.fakes.secret_store import MemorySecretStore
from tests.fakes.token_endpoint import MemoryTokenEndpoint

WORKSPACE = "0198c0de-0000-7000-8000-00000000000a"


def fingerprint(secret: Secret) -> str:
    """A hash that needs no key."""
    return hashlib.sha256(secret.reveal().encode()).hexdigest()[:12]


def away() -> Unavailable:
    """What a store raises while it is sealed."""
    return Unavailable("the storage is unavailable", reason=Reason.STORAGE_UNAVAILABLE)


class Power:
    """Whether a replica runs. What it does while it is off never comes back; while it is stopped it waits."""

    def __init__(self) -> None:
        self._running = asyncio.Event()
        self._running.set()
        self._is_dead = False

    def kill(self) -> None:
        """Like SIGKILL: nothing that it has begun goes on."""
        self._is_dead = True

    def stop(self) -> None:
        """Like SIGSTOP."""
        self._running.clear()

    def go_on(self) -> None:
        """Like SIGCONT."""
        self._running.set()

    async def needed(self) -> None:
        """Returns when the replica runs."""
        await self._running.wait()
        if self._is_dead:
            await asyncio.Event().wait()


class Faults:
    """What goes wrong with writes of a store: by path prefix, before or after they take effect."""

    def __init__(self) -> None:
        self.is_away = False
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}

    def fails(self, plan: dict[str, int], path: str) -> bool:
        """Tells whether this write fails."""
        for prefix, count in plan.items():
            if path.startswith(prefix) and count > 0:
                plan[prefix] = count - 1
                return True
        return False


class ReplicaSecrets:
    """The shared secret store as one replica reaches it."""

    def __init__(self, shared: MemorySecretStore, power: Power, faults: Faults) -> None:
        self._shared = shared
        self._power = power
        self._faults = faults
        self.puts = 0

    async def put(self, path: str, secret: Secret, *, expected_version: int) -> int:
        """See `SecretStore.put`."""
        await self._enter(path)
        if self._faults.fails(self._faults.before, path):
            raise away()
        version = await self._shared.put(path, secret, expected_version=expected_version)
        self.puts += 1
        await self._power.needed()
        if self._faults.fails(self._faults.after, path):
            raise away()
        return version

    async def get(self, path: str) -> StoredSecret | None:
        """See `SecretStore.get`."""
        await self._enter(path)
        found = await self._shared.get(path)
        await self._power.needed()
        return found

    async def delete(self, path: str) -> None:
        """See `SecretStore.delete`."""
        await self._enter(path)
        await self._shared.delete(path)

    async def version(self, path: str) -> int:
        """See `SecretStore.version`."""
        await self._enter(path)
        return await self._shared.version(path)

    async def _enter(self, path: str) -> None:
        await asyncio.sleep(0)
        await self._power.needed()
        if self._faults.is_away:
            raise away()


class MemoryEscrows:
    """Escrows in a dictionary that replicas share."""

    def __init__(self, rows: dict[tuple[str, str], tuple[EscrowRow, Escrow]], power: Power, faults: Faults) -> None:
        self.rows = rows
        self._power = power
        self._faults = faults

    async def key(self, workspace_id: str) -> EscrowKey:
        """See `Escrows.key`."""
        return EscrowKey(DataKey(KeyBytes(bytes(32)), "wrapped"), 0.0)

    async def keep(self, escrow: Escrow, key: EscrowKey) -> None:
        """See `Escrows.keep`."""
        await self._enter()
        row = EscrowRow(
            escrow.connection_id, escrow.workspace_id, escrow.write_id, escrow.token_version, "wrapped", b"", b""
        )
        self.rows.setdefault((escrow.connection_id, escrow.write_id), (row, escrow))
        await self._power.needed()

    async def remove(self, connection_id: str, write_id: str) -> None:
        """See `Escrows.remove`."""
        await self._enter()
        self.rows.pop((connection_id, write_id), None)

    async def of_connection(self, connection_id: str) -> list[EscrowRow]:
        """See `Escrows.of_connection`."""
        await self._enter()
        return [row for row, _ in reversed(self.rows.values()) if row.connection_id == connection_id]

    async def oldest(self, *, limit: int) -> list[EscrowRow]:
        """See `Escrows.oldest`."""
        await self._enter()
        return [row for row, _ in self.rows.values()][:limit]

    async def open(self, row: EscrowRow) -> Escrow:
        """See `Escrows.open`."""
        return self.rows[row.connection_id, row.write_id][1]

    async def _enter(self) -> None:
        await asyncio.sleep(0)
        await self._power.needed()
        if self._faults.is_away:
            raise away()


class Apps:
    """One app for everybody."""

    def __init__(self, app: OAuthApp) -> None:
        self.app = app
        self.failures: list[str] = []
        self.successes = 0

    async def oauth_app(self, workspace_id: str, integration_id: str) -> OAuthApp:
        """See `renewal.Apps`."""
        return self.app

    async def record_client_failure(self, workspace_id: str, integration_id: str, reason: str) -> None:
        """See `renewal.Apps`."""
        self.failures.append(reason)

    async def record_client_success(self, workspace_id: str, integration_id: str) -> None:
        """See `renewal.Apps`."""
        self.successes += 1


class PoweredEndpoint:
    """The provider as one replica reaches it."""

    def __init__(self, endpoint: MemoryTokenEndpoint, power: Power) -> None:
        self._endpoint = endpoint
        self._power = power

    async def refresh(self, app: OAuthApp, tokens: TokenSet, **options: Any) -> TokenSet:
        """See `OAuthClient.refresh`."""
        await self._power.needed()
        answer = await self._endpoint.refresh(app, tokens, **options)
        await self._power.needed()
        return answer

    async def client_credentials(self, app: OAuthApp, **options: Any) -> TokenSet:
        """See `OAuthClient.client_credentials`."""
        return await self._endpoint.client_credentials(app, **options)


class Replica:
    """One process."""

    def __init__(self, world: World, clock: Any) -> None:
        self.world = world
        self.power = Power()
        self.faults = Faults()
        self.escrow_faults = Faults()
        self.registry = CollectorRegistry()
        self.secrets = ReplicaSecrets(world.secrets, self.power, self.faults)
        escrows = MemoryEscrows(world.escrows, self.power, self.escrow_faults) if world.has_escrows else None
        self.parts: Refreshing = compose_refresh(
            store=cast(ConnectionStore, world.rows),
            secrets=self.secrets,
            escrows=escrows,
            apps=world.apps,
            endpoint=PoweredEndpoint(world.endpoint, self.power),
            spec_of=lambda connection: world.apps.app.provider.oauth or OAuthSpec(),
            fingerprint=fingerprint,
            clock=clock,
            registry=self.registry,
            on_change=lambda row: self.parts.access_tokens.notice(row),
            rng=random.Random(world.rng.random()),
        )

    async def refresh(self, connection_id: str, **goal: Any) -> StoredTokens:
        """Refreshes as a caller does."""
        return await self.parts.coordinator.refresh(self.world.rows.rows[connection_id], Goal(**goal))

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        return self.registry.get_sample_value(name, labels) or 0.0


class World:
    """Stores, a provider, and the replicas that share them."""

    def __init__(self, clock: FakeClock, endpoint: MemoryTokenEndpoint, *, has_escrows: bool = True, seed: int = 0):
        self.clock = clock
        self.endpoint = endpoint
        self.has_escrows = has_escrows
        self.rng = random.Random(seed)
        self.secrets = MemorySecretStore()
        self.rows = MemoryConnectionRows(clock)
        self.escrows: dict[tuple[str, str], tuple[EscrowRow, Escrow]] = {}
        self.apps = Apps(endpoint.app())

    def replica(self, clock: Any = None) -> Replica:
        """Starts one more process."""
        return Replica(self, self.clock if clock is None else clock)

    async def connect(self, name: str, *, integration_id: str = "i1", **changes: Any) -> str:
        """Stores a grant as the connect flow does; returns the connection's id."""
        tokens = self.endpoint.grant(name)
        now = self.clock.now()
        path = new_connection_path(WORKSPACE, name)
        connection = Connection(
            workspace_id=WORKSPACE,
            connection_id=new_uuid7(),
            name="crm",
            user_id=name,
            integration_id=integration_id,
            provider="fake",
            kind=CredentialKind.OAUTH2,
            state=ConnectionState.ACTIVE,
            fingerprint=fingerprint(tokens.access_token),
            secret_path=path,
            token_version=1,
            scopes=tokens.scopes,
            expire_time=tokens.expire_time,
            refresh_time=None if tokens.expire_time is None else tokens.expire_time - timedelta(seconds=300),
            create_time=now,
            update_time=now,
        )
        connection = replace(connection, **changes)
        await self.secrets.put(path, TokenDocument(tokens=tokens).to_secret(connection), expected_version=0)
        self.rows.rows[connection.connection_id] = connection
        return connection.connection_id

    def row(self, connection_id: str) -> Connection:
        """The row as it stands."""
        return self.rows.rows[connection_id]

    def document(self, connection_id: str) -> TokenDocument:
        """The tokens as they are stored."""
        row = self.row(connection_id)
        assert row.secret_path is not None
        return TokenDocument.from_secret(self.secrets.secrets[row.secret_path].secret, row)

    def is_alive(self, connection_id: str) -> bool:
        """Tells whether the stored refresh token works at the provider."""
        token = self.document(connection_id).tokens.refresh_token
        assert token is not None
        return self.endpoint.is_alive(self.row(connection_id).user_id, token.reveal())

    async def until(self, condition: Callable[[], bool], *, step: float = 0.5, limit: float = 600.0) -> None:
        """Lets time pass until something holds."""
        passed = 0.0
        while not condition():
            assert passed < limit, "it never came to hold"
            await self.settle()
            if condition():
                return
            await self.clock.advance(step)
            passed += step

    async def settle(self) -> None:
        """Lets everything run that waits for nothing but its turn."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def outcome(self, task: asyncio.Task[Any], *, step: float = 0.5, limit: float = 600.0) -> Any:
        """What a call ends with, while time passes: its result, or its error."""
        await self.until(task.done, step=step, limit=limit)
        error = task.exception()
        if error is None:
            return task.result()
        assert isinstance(error, HoldfastError), repr(error)
        return error
