"""What a credential costs: resolves a second and auth's CPU for each, and what a refresh writes.

`python -m benchmarks.credentials --help`. The first figure is of a real auth process over gRPC: one API key, asked for
again and again, each use recorded in the audit. The second is of the tokens of OAuth connections alone, in this
process. The third counts writes to the secret store and statements on the database of one refresh.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.processes import CpuMeter
from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2 import CreateConnectionRequest
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.grant_service_pb2 import GrantedConnection, IssueRunGrantRequest
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.ids import new_uuid7
from services.auth.app import open_core
from services.auth.callers import ADMIN, Caller
from services.auth.connection_store import Connection, ConnectionStore, CredentialKind, NewConnection
from services.auth.envelopes_embedded import EmbeddedEnvelopes
from services.auth.fingerprints import fingerprint_of
from services.auth.integration_store import NewIntegration
from services.auth.integration_store_sql import SqlIntegrationStore
from services.auth.oauth.tokens import OAuthApp, TokenSet
from services.auth.providers.schema import AuthKind, OAuthSpec, Provider, Rotation
from services.auth.refresh.composition import Refreshing, compose_refresh
from services.auth.refresh.documents import TokenDocument
from services.auth.refresh.escrow import SqlEscrows
from services.auth.refresh.goal import Goal
from services.auth.sealing import MasterKey
from services.auth.secret_paths import new_connection_path
from services.auth.secrets import Secret, StoredSecret
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.settings import AuthSettings
from services.shared.clock import SystemClock
from services.shared.settings import load

TOKEN = "benchmark-benchmark-benchmark-benchmark"
CHECKOUT = Path(__file__).resolve().parents[1]


def environment(folder: Path) -> dict[str, str]:
    """The settings of auth on SQLite."""
    return {
        "HOLDFAST_DATABASE_URL": f"sqlite:///{folder / 'auth.db'}",
        "HOLDFAST_SERVICE_TOKEN": TOKEN,
        "HOLDFAST_LISTEN": "127.0.0.1:0",
        "HOLDFAST_AUTH_HTTP_LISTEN": "127.0.0.1:0",
        "HOLDFAST_MASTER_KEY": MasterKey.generate().export(),
        "HOLDFAST_MIGRATE_ON_START": "true",
        "HOLDFAST_LOG_FORMAT": "json",
        "HOLDFAST_LOG_LEVEL": "info",
    }


@asynccontextmanager
async def auth_process(settings: dict[str, str]) -> AsyncIterator[tuple[str, int]]:
    """An auth process: its address and process id."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "services.auth",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), **settings},
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    reading: asyncio.Task[bytes] | None = None
    try:
        address = ""
        while not address:
            line = await child.stderr.readline()
            if not line:
                raise SystemExit("auth did not start")
            entry = json.loads(line)
            address = entry["address"] if entry["event"] == "listening" else ""
        reading = asyncio.create_task(child.stderr.read())
        yield address, child.pid
    finally:
        child.terminate()
        await child.wait()
        if reading is not None:
            await reading


async def measure_resolves(seconds: float, concurrency: int) -> dict[str, Any]:
    """Resolves of one connection's key over gRPC."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        variables = environment(folder)
        async with open_core(load(AuthSettings, variables), asyncio.Event(), clock=SystemClock()) as core:
            workspace = await core.workspaces.ensure("bench", actor="benchmark")
            caller = Caller(workspace.workspace_id, "benchmark", frozenset({ADMIN}))
            created = await core.api_keys.create(caller, display_name="bench", scopes=(ADMIN,))
            assert created.secret is not None
            key = created.secret.reveal()
        address, pid = await stack.enter_async_context(auth_process(variables))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        as_executor = (("authorization", f"Service executor:{TOKEN}"),)
        await ConnectionServiceStub(channel).CreateConnection(
            CreateConnectionRequest(name="openai", provider="openai", api_key="sk-benchmark"),
            metadata=(("authorization", f"Bearer {key}"),),
        )
        run_id = new_uuid7()
        grant = await GrantServiceStub(channel).IssueRunGrant(
            IssueRunGrantRequest(
                caller_credential=key, run_id=run_id, agent="bench", connections=[GrantedConnection(name="openai")]
            ),
            metadata=as_executor,
        )
        request = pb.ResolveCredentialRequest(
            workspace_id=workspace.workspace_id,
            connection="openai",
            run_id=run_id,
            step=1,
            run_grant=grant.run_grant,
        )
        resolve = CredentialServiceStub(channel).ResolveCredential
        latencies: list[float] = []

        async def loop(until: float) -> None:
            while (began := time.perf_counter()) < until:
                await resolve(request, metadata=as_executor)
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(loop(time.perf_counter() + 1.0) for _ in range(concurrency)))
        latencies.clear()
        meter = CpuMeter({"auth": pid})
        meter.start()
        began = time.perf_counter()
        await asyncio.gather(*(loop(began + seconds) for _ in range(concurrency)))
        passed = time.perf_counter() - began
        cpu = meter.stop()["auth"]
        latencies.sort()
        return {
            "resolves_per_s": round(len(latencies) / passed),
            "auth_cpu_ms_per_resolve": round(1000 * cpu / len(latencies), 3),
            "p50_ms": round(1000 * latencies[len(latencies) // 2], 2),
            "p99_ms": round(1000 * latencies[int(len(latencies) * 0.99)], 2),
            "concurrency": concurrency,
        }


class CountingSecrets(EmbeddedSecretStore):
    """The embedded store, with its writes and reads counted."""

    puts = 0
    gets = 0

    async def put(self, path: str, secret: Secret, *, expected_version: int) -> int:
        """See `SecretStore.put`."""
        self.puts += 1
        return await super().put(path, secret, expected_version=expected_version)

    async def get(self, path: str) -> StoredSecret | None:
        """See `SecretStore.get`."""
        self.gets += 1
        return await super().get(path)


class Provider200:
    """A provider that always has new tokens; it stands for the network, which is not measured."""

    def __init__(self, rotation: Rotation) -> None:
        provider = Provider(
            slug="bench",
            display_name="Bench",
            kind=AuthKind.OAUTH2,
            documentation_url="",
            inject=(),
            hosts=(),
            oauth=OAuthSpec(rotation=rotation),
        )
        self.app = OAuthApp(provider, "bench")
        self.calls = 0

    async def oauth_app(self, workspace_id: str, integration_id: str) -> OAuthApp:
        """See `Apps`."""
        return self.app

    async def record_client_failure(self, workspace_id: str, integration_id: str, reason: str) -> None:
        """See `Apps`."""

    async def record_client_success(self, workspace_id: str, integration_id: str) -> None:
        """See `Apps`."""

    def tokens(self) -> TokenSet:
        """New tokens."""
        self.calls += 1
        now = SystemClock().now()
        return TokenSet(
            access_token=Secret(f"at-{self.calls}"),
            refresh_token=Secret(f"rt-{self.calls}"),
            obtain_time=now,
            expire_time=now + timedelta(hours=1),
        )

    async def refresh(self, app: OAuthApp, tokens: TokenSet, **_: Any) -> TokenSet:
        """See `TokenEndpoint`."""
        return self.tokens()

    async def client_credentials(self, app: OAuthApp, **_: Any) -> TokenSet:
        """See `TokenEndpoint`."""
        return self.tokens()


async def measure_refreshes(rotation: Rotation, *, with_escrow: bool, rounds: int) -> dict[str, Any]:
    """Refreshes of one connection, and then its token from memory."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        clock = SystemClock()
        settings = load(AuthSettings, environment(folder))
        core = await stack.enter_async_context(open_core(settings, asyncio.Event(), clock=clock))
        workspace = await core.workspaces.ensure("bench", actor="benchmark")
        provider = Provider200(rotation)
        secrets = CountingSecrets(core.db, core.keyring)
        escrows = SqlEscrows(core.db, EmbeddedEnvelopes(core.db, core.keyring), clock) if with_escrow else None
        refreshing: Refreshing = compose_refresh(
            store=core.connection_store,
            secrets=secrets,
            escrows=escrows,
            apps=provider,
            endpoint=provider,
            spec_of=lambda _: provider.app.provider.oauth or OAuthSpec(),
            fingerprint=partial(fingerprint_of, core.keyring.audit_key),
            clock=clock,
            registry=CollectorRegistry(),
            on_change=lambda row: None,
            rng=random.Random(1),
        )
        integration_id = new_uuid7()
        new = NewIntegration(
            workspace_id=workspace.workspace_id,
            integration_id=integration_id,
            name="bench",
            provider="bench",
            kind=CredentialKind.OAUTH2,
            client_id="bench",
            variables={},
            scopes=(),
            agents=(),
            server_url="",
            discovered={},
            secret_path=None,
            client_secret_count=0,
        )
        await SqlIntegrationStore(core.db).create_integration(new, actor="benchmark", request=None)
        row = await _connected(core.connection_store, secrets, workspace.workspace_id, integration_id, provider)
        secrets.puts = secrets.gets = 0
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            stored = await refreshing.coordinator.refresh(row, Goal(newer_than=row.token_version))
            found = await core.connection_store.get_connection(row.workspace_id, row.connection_id)
            assert found is not None and found.token_version == stored.version
            row = found
        passed, cpu = time.perf_counter() - began, time.process_time() - cpu
        answer = {
            "rotation": rotation.value,
            "escrow": with_escrow,
            "provider_calls_per_refresh": (provider.calls - 1) / rounds,
            "store_writes_per_refresh": secrets.puts / rounds,
            "store_reads_per_refresh": secrets.gets / rounds,
            "ms_per_refresh": round(1000 * passed / rounds, 2),
            "cpu_ms_per_refresh": round(1000 * cpu / rounds, 2),
        }
        count = 50_000
        await refreshing.access_tokens.get(row)
        cpu = time.process_time()
        for _ in range(count):
            await refreshing.access_tokens.get(row)
        answer["cached_token_cpu_us"] = round(1e6 * (time.process_time() - cpu) / count, 2)
        return answer


async def _connected(
    store: ConnectionStore, secrets: CountingSecrets, workspace_id: str, integration_id: str, provider: Provider200
) -> Connection:
    path = new_connection_path(workspace_id, "ada")
    tokens = provider.tokens()
    new = NewConnection(
        workspace_id=workspace_id,
        connection_id=new_uuid7(),
        name="bench",
        user_id="ada",
        integration_id=integration_id,
        provider="bench",
        kind=CredentialKind.OAUTH2,
        secret_path=path,
        token_version=1,
        expire_time=tokens.expire_time,
    )
    await store.announce_secret(path)
    await secrets.put(path, TokenDocument(tokens=tokens).to_secret(new), expected_version=0)
    saved = await store.save_connection(new, replace=False, actor="benchmark", request=None)
    return saved.connection


async def main() -> None:
    """Measures and prints one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of resolves")
    parser.add_argument("--concurrency", type=int, default=32, help="resolves at the same time")
    parser.add_argument("--rounds", type=int, default=100, help="refreshes")
    arguments = parser.parse_args()
    print(json.dumps(await measure_resolves(arguments.seconds, arguments.concurrency)), flush=True)
    for rotation, with_escrow in ((Rotation.STRICT, True), (Rotation.STRICT, False), (Rotation.NONE, True)):
        found = await measure_refreshes(rotation, with_escrow=with_escrow, rounds=arguments.rounds)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
