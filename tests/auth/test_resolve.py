"""Who is handed which credential: grant, user, agent, permissions, address and state agree, or nothing leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import connection_feed_service_pb2 as feed_pb2
from holdfast.api.auth.v1 import credential_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2 import ListConnectionsRequest
from holdfast.api.auth.v1.integration_service_pb2 import (
    CREDENTIAL_KIND_API_KEY,
    INTEGRATION_STATE_DISABLED,
    CreateIntegrationRequest,
    Integration,
    UpdateIntegrationRequest,
)
from holdfast.errors import FailedPrecondition, HoldfastError, InvalidArgument, NotFound, PermissionDenied
from holdfast.ids import new_uuid7
from services.auth.app import Core, open_core
from services.auth.connection_store import Connection, CredentialKind, NewConnection
from services.auth.key_documents import key_document
from services.auth.secret_paths import new_connection_path
from services.auth.secrets import Secret
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.settings import AuthSettings
from services.auth.tables import connections
from services.shared.clock import SystemClock
from tests.auth.support import RUN, Auth, audit_of, failure, key_of, make_key, new_connection, running, use_of

pytestmark = pytest.mark.promise("P11")

API = "https://api.example.com/v1"


@dataclass
class Workspace:
    """A workspace of a running replica, with connections that tests store."""

    auth: Auth
    core: Core
    workspace_id: str

    async def store(self, name: str, *, user_id: str = "", key: str = "", **fields: Any) -> Connection:
        """Stores a connection with its key."""
        path = new_connection_path(self.workspace_id, user_id)
        new = NewConnection(
            workspace_id=self.workspace_id,
            connection_id=new_uuid7(),
            name=name,
            user_id=user_id,
            secret_path=path,
            **{"provider": "crm", "base_url": API, "fingerprint": "f" * 12, **fields},
        )
        secret = Secret(key or f"key-of-{user_id or 'all'}")
        values = {"api_key": secret}
        if new.kind is CredentialKind.BASIC:
            values = {"username": Secret("ada"), "password": secret}
        store = self.core.connection_store
        await store.announce_secret(path)
        secrets = EmbeddedSecretStore(self.core.db, self.core.keyring)
        await secrets.put(path, key_document(new, values, secret), expected_version=0)
        saved = await store.save_connection(new, replace=False, actor="test", request=None)
        return saved.connection

    async def resolve(self, name: str = "crm", **fields: Any) -> pb.ResolveCredentialResponse:
        """The credential for a run of the workspace."""
        return await self.auth.resolve(self.workspace_id, name, **fields)

    async def refused(self, name: str = "crm", **fields: Any) -> HoldfastError:
        """Why there is none."""
        return await failure(self.resolve(name, **fields))


@pytest.fixture
async def workspace(settings: AuthSettings) -> AsyncIterator[Workspace]:
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core, running(settings) as auth:
        workspace_id, _ = await make_key(settings, "acme")
        yield Workspace(auth, core, workspace_id)


async def test_a_run_gets_its_own_users_connection_and_nobody_elses(workspace: Workspace) -> None:
    for user_id in ("u1", "u2"):
        await workspace.store("crm", user_id=user_id)
    assert (await workspace.resolve(user_id="u1")).secret == "key-of-u1"
    assert (await workspace.resolve(user_id="u2")).secret == "key-of-u2"
    for user_id in ("u3", ""):
        absent, foreign = await workspace.refused("nothing", user_id=user_id), await workspace.refused(user_id=user_id)
        assert type(foreign) is NotFound
        assert (foreign.reason, foreign.message, foreign.metadata) == (absent.reason, absent.message, absent.metadata)


async def test_the_users_own_goes_before_a_shared_one(workspace: Workspace) -> None:
    await workspace.store("crm")
    assert (await workspace.resolve(user_id="u1")).secret == "key-of-all"
    client = workspace.auth.as_bearer(key_of(workspace.workspace_id))
    own = new_connection(name="crm", provider="crm", base_url=API, key="key-of-u1", user_id="u1")
    await client.connections.CreateConnection(own)
    assert (await workspace.resolve(user_id="u1")).secret == "key-of-u1"
    assert (await workspace.resolve(user_id="u2")).secret == "key-of-all"


async def test_grant_of_another_run_or_workspace_or_none_opens_nothing(workspace: Workspace) -> None:
    await workspace.store("crm")
    other_id, _ = await make_key(workspace.auth.settings, "other")
    grants = {
        "": "no grant",
        await workspace.auth.grant(workspace.workspace_id, "crm", run_id=new_uuid7()): "of another run",
        await workspace.auth.grant(other_id, "crm"): "of another workspace",
    }
    executor = workspace.auth.as_service("executor")
    for grant, what in grants.items():
        error = await failure(
            executor.credentials.ResolveCredential(use_of(workspace.workspace_id, "crm", run_grant=grant))
        )
        assert (type(error), error.reason) == (PermissionDenied, "RUN_GRANT_INVALID"), what


async def test_what_the_agent_did_not_declare_is_not_handed_out(workspace: Workspace) -> None:
    await workspace.store("crm", scopes=("read", "write"))
    await workspace.store("mail")
    executor = workspace.auth.as_service("executor")
    grant = await workspace.auth.grant(workspace.workspace_id, "crm", scopes=("read",))
    for name, scopes in (("mail", []), ("crm", ["write"])):
        request = use_of(workspace.workspace_id, name, run_grant=grant, scopes=scopes)
        error = await failure(executor.credentials.ResolveCredential(request))
        assert (type(error), error.reason) == (PermissionDenied, "CONNECTION_NOT_GRANTED")


async def test_connection_of_certain_agents_is_absent_for_others(workspace: Workspace) -> None:
    await workspace.store("crm", agents=("billing",))
    assert (await workspace.resolve(agent="billing")).secret
    assert type(await workspace.refused(agent="support")) is NotFound


async def test_missing_permission_names_the_union_to_ask_for(workspace: Workspace) -> None:
    await workspace.store("crm", scopes=("read",))
    assert (await workspace.resolve(scopes=["read"])).secret
    error = await workspace.refused(scopes=["read", "write"])
    assert (type(error), error.reason) == (FailedPrecondition, "SCOPE_INSUFFICIENT")
    assert error.metadata["scopes"] == "read write"


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example.com",
        "http://api.example.com",
        "https://api.example.com:8443",
        "https://api.example.com.evil.com",
        "https://api.example.com@evil.com",
        "https://2130706433",
    ],
)
async def test_credential_is_not_handed_out_for_another_address(workspace: Workspace, target: str) -> None:
    await workspace.store("crm")
    assert (await workspace.resolve(tool="look", target="https://api.example.com", method="GET")).secret
    error = await workspace.refused(tool="look", target=target, method="GET")
    assert (type(error), error.reason) == (PermissionDenied, "HOST_NOT_ALLOWED")


async def test_answer_says_how_the_credential_is_sent_and_where(workspace: Workspace) -> None:
    await workspace.store("crm", key="k1")
    await workspace.store("wiki", key="pass", kind=CredentialKind.BASIC)
    bearer, basic = await workspace.resolve("crm"), await workspace.resolve("wiki")
    assert [(item.name, item.value) for item in bearer.headers] == [("Authorization", "Bearer k1")]
    assert [(item.name, item.value) for item in basic.headers] == [("Authorization", "Basic YWRhOnBhc3M=")]
    [target] = bearer.allowed_targets
    assert (target.scheme, target.host, target.port, target.path_prefix) == ("https", "api.example.com", 0, "/v1")


async def test_secret_itself_is_for_workers_only_where_the_connection_allows_it(workspace: Workspace) -> None:
    await workspace.store("crm")
    await workspace.store("open", allow_raw_token=True)
    error = await workspace.refused(mode=pb.CREDENTIAL_MODE_RAW)
    assert (type(error), error.reason) == (PermissionDenied, "RAW_TOKEN_NOT_ALLOWED")
    assert (await workspace.resolve("open", mode=pb.CREDENTIAL_MODE_RAW)).secret == "key-of-all"


async def test_row_that_was_changed_behind_auths_back_opens_nothing(workspace: Workspace) -> None:
    stored = await workspace.store("crm")

    def redirect(connection: sa.Connection) -> None:
        connection.execute(
            connections.update()
            .where(connections.c.connection_id == stored.connection_id)
            .values(base_url="https://evil.example.com")
        )

    await workspace.core.db.write(redirect)
    assert (await workspace.refused()).reason == "INTERNAL"


async def test_connection_says_when_it_was_last_used(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection())
        await auth.resolve(workspace_id)
    async with running(settings) as auth:
        listed = await auth.as_bearer(key_of(workspace_id)).connections.ListConnections(ListConnectionsRequest())
    assert listed.connections[0].HasField("last_use_time")


async def test_disabled_integration_and_other_agents_end_the_right_at_once(settings: AuthSettings) -> None:
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.integrations.CreateIntegration(
            CreateIntegrationRequest(name="ai", provider="openai", kind=CREDENTIAL_KIND_API_KEY)
        )
        await client.connections.CreateConnection(
            new_connection(name="ai", provider="", integration="ai", key=f"sk-{'x' * 48}")
        )
        assert (await auth.resolve(workspace_id, "ai")).secret
        changed = Integration(name="ai", agents=["billing"])
        request = UpdateIntegrationRequest(name="ai", integration=changed, update_mask=FieldMask(paths=["agents"]))
        await client.integrations.UpdateIntegration(request)
        assert type(await failure(auth.resolve(workspace_id, "ai"))) is NotFound
        assert (await auth.resolve(workspace_id, "ai", agent="billing")).secret
        changed.state = INTEGRATION_STATE_DISABLED
        request = UpdateIntegrationRequest(name="ai", integration=changed, update_mask=FieldMask(paths=["state"]))
        await client.integrations.UpdateIntegration(request)
        error = await failure(auth.resolve(workspace_id, "ai", agent="billing"))
        assert (type(error), error.reason) == (FailedPrecondition, "INTEGRATION_DISABLED")


async def test_audit_says_who_used_what_where_and_what_was_refused(settings: AuthSettings) -> None:
    async with open_core(settings, asyncio.Event(), clock=SystemClock()) as core, running(settings) as auth:
        workspace_id, _ = await make_key(settings, "acme")
        workspace = Workspace(auth, core, workspace_id)
        stored = await workspace.store("crm", user_id="u1")
        await workspace.resolve(user_id="u1", tool="look", target="https://api.example.com", step=4)
        await workspace.refused(user_id="u1", tool="look", target="https://evil.example.com", step=5)
        await auth.as_service("executor").credentials.RecordCredentialUses(
            pb.RecordCredentialUsesRequest(uses=[_use(workspace_id, stored, step=6)] * 2)
        )
    uses = [record for record in await audit_of(settings, workspace_id) if record.action == "credential.resolve"]
    assert [(use.step, use.outcome, use.tool, use.host, use.user_id) for use in uses] == [
        (4, "OK", "look", "https://api.example.com", "u1"),
        (5, "HOST_NOT_ALLOWED", "look", "https://evil.example.com", "u1"),
        (6, "OK", "look", "https://api.example.com", "u1"),
    ]
    assert {use.connection_id for use in uses} == {stored.connection_id}


def _use(workspace: str, connection: Connection, **fields: Any) -> pb.CredentialUse:
    values = {
        "record_id": "0198c0de-0000-7000-8000-0000000000aa",
        "workspace_id": workspace,
        "connection": connection.name,
        "connection_id": connection.connection_id,
        "fingerprint": connection.fingerprint,
        "run_id": RUN,
        "tool": "look",
        "target": "https://api.example.com",
        "user_id": "u1",
        **fields,
    }
    use = pb.CredentialUse(**values)
    use.use_time.GetCurrentTime()
    return use


@pytest.mark.parametrize("fields", [{"record_id": "x"}, {"workspace_id": "x"}, {"run_id": ""}])
async def test_record_that_names_nothing_is_refused_with_its_field(workspace: Workspace, fields: dict) -> None:
    stored = await workspace.store("crm")
    request = pb.RecordCredentialUsesRequest(uses=[_use(workspace.workspace_id, stored, **fields)])
    error = await failure(workspace.auth.as_service("executor").credentials.RecordCredentialUses(request))
    assert type(error) is InvalidArgument
    assert error.field_violations[0].field == f"uses[0].{next(iter(fields))}"


async def test_sign_ins_that_exist_are_told_from_those_that_do_not(workspace: Workspace) -> None:
    await workspace.store("crm", user_id="u1", scopes=("read",))
    await workspace.store("mail")
    wanted = [
        ("u1", "crm", [], ""),
        ("u2", "crm", [], ""),
        ("u1", "crm", ["write"], ""),
        ("u2", "mail", [], ""),
        ("", "nothing", [], ""),
        # The one that the other side does not accept is not what the run waits for; another one is.
        ("u1", "crm", [], "f" * 12),
        ("u1", "crm", [], "a" * 12),
    ]
    request = feed_pb2.CheckSignInsRequest(
        sign_ins=[
            feed_pb2.SignIn(
                workspace_id=workspace.workspace_id,
                user_id=user_id,
                connection=name,
                scopes=scopes,
                rejected_fingerprint=rejected,
            )
            for user_id, name, scopes, rejected in wanted
        ]
    )
    answer = await workspace.auth.as_service("executor").feed.CheckSignIns(request)
    assert list(answer.is_usable) == [True, False, False, True, False, False, True]


async def test_followers_hear_of_changes_wherever_they_are_made(settings: AuthSettings) -> None:
    async with running(settings) as here, running(settings) as there, asyncio.timeout(30):
        client, _ = await here.workspace("acme")
        streams = [
            replica.as_service("executor").feed.WatchConnections(feed_pb2.WatchConnectionsRequest())
            for replica in (here, there)
        ]
        heard: list[str] = []
        async with asyncio.TaskGroup() as tasks:

            async def first(stream: Any) -> None:
                async for news in stream:
                    if news.workspace_id:
                        heard.append(news.connection.name)
                        return

            waiting = [tasks.create_task(first(stream)) for stream in streams]
            number = 0
            while not all(task.done() for task in waiting):
                # A follower hears of what comes after it began to listen, and nobody knows when that was.
                number += 1
                await client.connections.CreateConnection(new_connection(name=f"crm-{number}"))
                await asyncio.wait(waiting, timeout=0.2)
        assert len(heard) == 2
