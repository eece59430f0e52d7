"""Real auth processes on one PostgreSQL database, with grants at a provider that the test runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import grpc
import sqlalchemy as sa

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2 import Connection
from holdfast.api.auth.v1.integration_service_pb2 import CREDENTIAL_KIND_OAUTH2, CreateIntegrationRequest
from holdfast.errors import DeadlineExceeded, HoldfastError, from_rpc_error
from holdfast.ids import new_uuid7
from services.auth.app import Core, open_core
from services.auth.connection_store import ConnectionState, CredentialKind, NewConnection
from services.auth.fingerprints import fingerprint_of
from services.auth.oauth.tokens import TokenSet
from services.auth.refresh.documents import TokenDocument
from services.auth.sealing import MasterKey
from services.auth.secret_backend import open_secret_backend
from services.auth.secret_paths import new_connection_path
from services.auth.secrets import SecretStore
from services.auth.settings import AuthSettings
from services.auth.tables import escrows
from services.shared.clock import SystemClock
from services.shared.settings import load
from tests.auth.support import TOKEN, Auth, Client, make_key
from tests.fakes.oauth_provider import CLIENT_ID, CLIENT_SECRET, FakeOAuthProvider, Grant
from tests.processes import Process, start
from tests.repository.tree import ROOT


@dataclass(slots=True)
class Child:
    """One auth process."""

    auth: Auth
    process: Process
    client: Client

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    async def refresh(self, name: str) -> pb.Connection:
        """Renews a connection's token."""
        return (await self.client.connections.RefreshConnection(pb.RefreshConnectionRequest(name=name))).connection

    async def get(self, name: str) -> pb.Connection:
        """Reads a connection, which refreshes nothing."""
        return (await self.client.connections.GetConnection(pb.GetConnectionRequest(name=name))).connection

    async def ended(self) -> int:
        """Returns the exit status when it has ended."""
        async with asyncio.timeout(60):
            return await self.process.wait()


class Cluster:
    """A database, its processes, and what is put into it beside them."""

    def __init__(self, database_url: str, providers: Path, **environment: str) -> None:
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOLDFAST_DATABASE_URL": database_url,
            "HOLDFAST_SERVICE_TOKEN": TOKEN,
            "HOLDFAST_LISTEN": "127.0.0.1:0",
            "HOLDFAST_AUTH_HTTP_LISTEN": "127.0.0.1:0",
            "HOLDFAST_LOG_FORMAT": "json",
            "HOLDFAST_MIGRATE_ON_START": "true",
            "HOLDFAST_MASTER_KEY": MasterKey.generate().export(),
            "HOLDFAST_PROVIDERS_FOLDER": str(providers),
            "HOLDFAST_AUTH_EGRESS_ALLOW": "127.0.0.0/8",
            **environment,
        }
        self.settings = load(AuthSettings, self._environment)
        self.workspace_id = ""
        self.key = ""

    async def prepare(self) -> None:
        """Makes the schema, a workspace and a key."""
        self.workspace_id, self.key = await make_key(self.settings, "acme")

    @asynccontextmanager
    async def process(self, **environment: str) -> AsyncIterator[Child]:
        """Runs one process, with settings of its own."""
        child = await start("auth", {**self._environment, **environment})
        reading: asyncio.Task[bytes] | None = None
        try:
            address = await _address(child.stderr)
            # What it says must not fill the pipe.
            reading = asyncio.create_task(child.stderr.read())
            async with AsyncExitStack() as stack:
                auth = Auth(self.settings, address, stack)
                yield Child(auth, child, auth.as_bearer(self.key))
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
            if reading is not None:
                await reading

    async def integrate(self, child: Child, provider: str, client_id: str, secret: str, url: str) -> str:
        """Makes an integration; returns its id."""
        made = await child.client.integrations.CreateIntegration(
            CreateIntegrationRequest(
                provider=provider,
                kind=CREDENTIAL_KIND_OAUTH2,
                client_id=client_id,
                client_secret=secret,
                variables={"base": url},
            )
        )
        return made.integration.integration_id

    async def connect(
        self,
        name: str,
        integration_id: str,
        provider: str,
        tokens: TokenSet,
        *,
        refresh_time: datetime | None = None,
    ) -> str:
        """Stores a grant as a sign-in does; returns the id. Without a time nothing refreshes it by itself."""
        async with self._opened() as (core, secrets):
            fingerprint = partial(fingerprint_of, core.keyring.audit_key)
            path = new_connection_path(self.workspace_id, "")
            new = NewConnection(
                workspace_id=self.workspace_id,
                connection_id=new_uuid7(),
                name=name,
                integration_id=integration_id,
                provider=provider,
                kind=CredentialKind.OAUTH2,
                fingerprint=fingerprint(tokens.access_token),
                secret_path=path,
                token_version=1,
                expire_time=tokens.expire_time,
                refresh_time=refresh_time,
            )
            await core.connection_store.announce_secret(path)
            await secrets.put(path, TokenDocument(tokens=tokens).to_secret(new), expected_version=0)
            saved = await core.connection_store.save_connection(new, replace=False, actor="test", request=None)
            return saved.connection.connection_id

    async def stored(self, connection_id: str) -> tuple[ConnectionState, int, TokenDocument]:
        """Returns what is stored of a connection: its state, the version of its tokens, and the tokens."""
        async with self._opened() as (core, secrets):
            row = await core.connection_store.get_connection(self.workspace_id, connection_id)
            assert row is not None
            assert row.secret_path is not None
            found = await secrets.get(row.secret_path)
            assert found is not None
            return row.state, found.version, TokenDocument.from_secret(found.secret, row)

    async def escrowed(self) -> int:
        """Counts the tokens that lie between a provider's answer and the write of their document."""
        async with self._opened() as (core, _):
            return await core.db.read_once(
                lambda connection: connection.scalar(sa.select(sa.func.count()).select_from(escrows)) or 0
            )

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Core, SecretStore]]:
        clock = SystemClock()
        async with (
            open_core(self.settings, asyncio.Event(), clock=clock) as core,
            open_secret_backend(self.settings, core.db, core.keyring, clock) as backend,
        ):
            yield core, backend.secrets


async def _address(stderr: asyncio.StreamReader) -> str:
    async with asyncio.timeout(60):
        while True:
            line = await stderr.readline()
            assert line, "the process ended before it listened"
            entry: Mapping[str, str] = json.loads(line)
            if entry["event"] == "listening":
                return entry["address"]


async def connected(
    cluster: Cluster, child: Child, provider: FakeOAuthProvider, name: str = "crm"
) -> tuple[str, Grant]:
    """A connection at the provider of the tests."""
    found = await cluster.integrate(child, "fake", CLIENT_ID, CLIENT_SECRET, provider.url)
    grant = provider.grant(name)
    return await cluster.connect(name, found, "fake", grant.tokens()), grant


async def outcome(child: Child) -> Connection | HoldfastError:
    """Renews a connection's token, asking again when the answer takes longer than a call may."""
    async with asyncio.timeout(150):
        while True:
            try:
                return await child.refresh("crm")
            except grpc.RpcError as error:
                told = from_rpc_error(error)
                if not isinstance(told, DeadlineExceeded):
                    return told


def is_alive(grant: Grant, refresh_token: str) -> bool:
    """Tells whether a stored refresh token is the one that the provider takes next."""
    return grant.is_alive and refresh_token == grant.refresh_token
