"""Credentials for calls: who gets which, for how long, and what a run is told when there is none."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from holdfast.api.auth.v1.grant_service_pb2_grpc import GrantServiceStub
from holdfast.api.common.v1 import agent_pb2, content_pb2
from holdfast.errors import (
    FailedPrecondition,
    HoldfastError,
    Internal,
    NotFound,
    PermissionDenied,
    Reason,
    Unavailable,
)
from holdfast.ids import new_uuid7
from services.executor.credential_uses import CredentialUses
from services.executor.credentials import TTL_SECONDS, CredentialMissing, Credentials, Need
from services.executor.revisions import RevisionCache
from services.executor.run_grants import RunGrants, declared_connections
from services.executor.state_stubs import StateStubs
from services.shared.channels import open_channel
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import build_telemetry
from tests.fakes.auth_services import FakeAuth
from tests.fakes.clock import FakeClock
from tests.fakes.state_services import FakeState

SETTINGS = CommonSettings(listen="127.0.0.1:0", service_token="a-service-token-of-enough-characters", drain_seconds=0)
WORKSPACE = "0198c0de-0000-7000-8000-00000000000a"
OTHER = "0198c0de-0000-7000-8000-00000000000b"


@dataclass
class Parts:
    """Credentials with auth and state in memory behind real servers."""

    credentials: Credentials
    uses: CredentialUses
    grants: RunGrants
    auth: FakeAuth
    state: FakeState
    server: Server
    clock: FakeClock

    def need(self, workspace_id: str = WORKSPACE, **fields: object) -> Need:
        """A need of a run that is stored."""
        run = self.state.add_run(workspace_id)
        values: dict = {"user_id": "u1", "step": 1, "connection": "openai", **fields}
        return Need(workspace_id=workspace_id, run_id=run.run.run_id, **values)

    async def missing(self, need: Need) -> CredentialMissing:
        """What the run is told."""
        with pytest.raises(CredentialMissing) as caught:
            await self.credentials.resolve(need)
        assert "sk-" not in "".join(traceback.format_exception(caught.value))
        return caught.value


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    auth, state, clock = FakeAuth(), FakeState(), FakeClock()
    async with AsyncExitStack() as stack:
        servers = []
        for name, fake in (("auth", auth), ("state", state)):
            server = Server(SETTINGS, service=name, access=fake.access(), telemetry=build_telemetry(name))
            fake.add_to(server)
            servers.append(await stack.enter_async_context(server))
        channels = [
            await stack.enter_async_context(
                open_channel(server.address, service="executor", settings=SETTINGS, unary_deadline_seconds=5)
            )
            for server in servers
        ]
        stub = CredentialServiceStub(channels[0])
        stubs = StateStubs.on(channels[1])
        grants = RunGrants(GrantServiceStub(channels[0]), stubs.runs, RevisionCache(stubs.agents))
        uses = CredentialUses(stub, clock)
        credentials = Credentials(stub, ConnectServiceStub(channels[0]), grants, uses, clock=clock)
        yield Parts(credentials, uses, grants, auth, state, servers[0], clock)


async def test_credential_is_asked_for_the_step_and_remembered_for_seconds(parts: Parts) -> None:
    need = parts.need()
    first = await parts.credentials.resolve(need)
    assert (first.secret, first.base_url, first.version) == (f"sk-{WORKSPACE}-1", "http://localhost:9", 3)
    assert [(request.run_id, request.step, request.connection) for request in parts.auth.requests] == [
        (need.run_id, 1, "openai")
    ]
    assert await parts.credentials.resolve(replace(need, step=2)) is first
    await parts.clock.advance(TTL_SECONDS)
    assert (await parts.credentials.resolve(replace(need, step=3))).secret == f"sk-{WORKSPACE}-2"


async def test_each_remembered_use_is_reported_with_its_own_step(parts: Parts) -> None:
    need = parts.need(tool="look", target="https://api.example.com")
    for step in (1, 2, 3):
        await parts.credentials.resolve(replace(need, step=step))
    await parts.uses.flush()
    # Auth has recorded the first one itself.
    assert [(use.step, use.tool, use.target, use.fingerprint, use.user_id) for use in parts.auth.uses] == [
        (2, "look", "https://api.example.com", "f1", "u1"),
        (3, "look", "https://api.example.com", "f1", "u1"),
    ]
    assert len({use.record_id for use in parts.auth.uses}) == 2


@pytest.mark.promise("P11")
async def test_nobody_is_given_what_another_run_or_target_resolved(parts: Parts) -> None:
    need = parts.need(tool="look", target="https://one.example.com")
    others = [
        parts.need(OTHER, tool="look", target="https://one.example.com"),
        parts.need(tool="look", target="https://one.example.com"),
        replace(need, target="https://two.example.com"),
        replace(need, scopes=("write",)),
    ]
    await parts.credentials.resolve(need)
    for other in others:
        await parts.credentials.resolve(other)
    assert len(parts.auth.requests) == 5


async def test_rejected_credential_is_asked_for_anew(parts: Parts) -> None:
    need = parts.need()
    first = await parts.credentials.resolve(need)
    second = await parts.credentials.resolve(need, rejected_fingerprint=first.fingerprint)
    assert second.secret != first.secret
    assert parts.auth.requests[1].rejected_fingerprint == "f1"
    assert await parts.credentials.resolve(need) is second


async def test_secret_is_in_no_representation(parts: Parts) -> None:
    credential = await parts.credentials.resolve(parts.need())
    assert credential.secret not in repr(credential)


async def test_run_without_its_connection_is_told_where_to_sign_in(parts: Parts) -> None:
    need = parts.need(connection="github", scopes=("repo",))
    parts.auth.failure = lambda: NotFound("no", reason=Reason.CONNECTION_NOT_FOUND)
    missing = await parts.missing(need)
    assert (missing.failure.reason, missing.failure.failure_class) == (
        "CONNECTION_NOT_FOUND",
        content_pb2.FAILURE_CLASS_AUTH,
    )
    assert missing.sign_in is not None
    assert (missing.sign_in.connection, missing.sign_in.user_id, missing.sign_in.reason) == (
        "github",
        "u1",
        "connection_missing",
    )
    assert missing.sign_in.connect_url == "https://example.com/connect/1"
    # Not remembered: once it is there, it is used.
    parts.auth.failure = None
    assert (await parts.credentials.resolve(need)).secret


async def test_insufficient_permissions_are_asked_for_as_a_union(parts: Parts) -> None:
    parts.auth.failure = lambda: FailedPrecondition(
        "lacks", reason=Reason.SCOPE_INSUFFICIENT, metadata={"scopes": "read write"}
    )
    missing = await parts.missing(parts.need(scopes=("write",)))
    assert missing.sign_in is not None
    assert (missing.sign_in.reason, list(missing.sign_in.scopes)) == ("scope_insufficient", ["write", "read"])


async def test_key_that_somebody_has_to_store_has_no_page(parts: Parts) -> None:
    parts.auth.has_page = False
    parts.auth.failure = lambda: NotFound("no", reason=Reason.CONNECTION_NOT_FOUND)
    missing = await parts.missing(parts.need())
    assert "`holdfast connections create openai`" in missing.failure.message
    assert missing.sign_in is not None
    assert missing.sign_in.connect_url == ""


@pytest.mark.parametrize(
    ("error", "reason", "failure_class"),
    [
        (Unavailable("sealed"), "AUTH_UNAVAILABLE", content_pb2.FAILURE_CLASS_RETRYABLE),
        (Internal("a bug"), "INTERNAL", content_pb2.FAILURE_CLASS_AUTH),
        (
            PermissionDenied("no", reason=Reason.HOST_NOT_ALLOWED),
            "HOST_NOT_ALLOWED",
            content_pb2.FAILURE_CLASS_AUTH,
        ),
        (
            FailedPrecondition("off", reason=Reason.INTEGRATION_DISABLED),
            "INTEGRATION_DISABLED",
            content_pb2.FAILURE_CLASS_AUTH,
        ),
    ],
)
async def test_what_no_sign_in_mends_asks_for_none(
    parts: Parts, error: HoldfastError, reason: str, failure_class: content_pb2.FailureClass
) -> None:
    parts.auth.failure = lambda: error
    missing = await parts.missing(parts.need())
    assert (missing.failure.reason, missing.failure.failure_class) == (reason, failure_class)
    assert missing.sign_in is None


async def test_auth_that_is_away_may_be_asked_again(parts: Parts) -> None:
    need = parts.need()
    await parts.server.drain()
    missing = await parts.missing(need)
    assert (missing.failure.reason, missing.failure.failure_class) == (
        "AUTH_UNAVAILABLE",
        content_pb2.FAILURE_CLASS_RETRYABLE,
    )


async def test_grant_is_asked_for_what_the_agent_declares_and_for_nothing_else(parts: Parts) -> None:
    spec = agent_pb2.AgentSpec(name="support")
    spec.model.provider = "openai"
    for name, connection, scopes in (
        ("a", "github", ["repo"]),
        ("b", "github", ["gist", "repo"]),
        ("c", "crm", []),
        ("d", "", []),
    ):
        tool = spec.tools.add(name=name)
        if connection:
            tool.auth.connection = connection
            tool.auth.scopes.extend(scopes)
    assert [(item.name, list(item.scopes)) for item in declared_connections(spec)] == [
        ("openai", []),
        ("github", ["repo", "gist"]),
        ("crm", []),
    ]
    run_id = new_uuid7()
    grant = await parts.grants.issue(WORKSPACE, spec, run_id=run_id, user_id="u1", caller_credential="hfst_caller")
    assert grant == f"grant-of-{run_id}"
    assert [(item.caller_credential, item.user_id) for item in parts.auth.grants] == [("hfst_caller", "u1")]
    spec.model.provider = "scripted"
    del spec.tools[:]
    assert await parts.grants.issue(WORKSPACE, spec, run_id=run_id, user_id="u1", caller_credential="hfst_caller") == ""
    assert len(parts.auth.grants) == 1
