"""Runs that wait for a sign-in go on when it is done, however the executor learns of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import ConnectionFeedServiceStub
from holdfast.api.common.v1 import run_pb2
from holdfast.ids import new_uuid7
from services.executor.sign_ins import LOOK_SECONDS, SIGNED_IN, SignIns
from services.executor.state_stubs import StateStubs
from services.shared.channels import open_channel
from services.shared.server import Server
from services.shared.telemetry import build_telemetry
from tests.executor.test_credentials import OTHER, SETTINGS, WORKSPACE
from tests.fakes.auth_services import FakeAuth
from tests.fakes.clock import FakeClock
from tests.fakes.state_services import FakeState

pytestmark = pytest.mark.promise("P6")


@dataclass
class Parts:
    sign_ins: SignIns
    auth: FakeAuth
    state: FakeState
    clock: FakeClock

    def waiting(self, workspace_id: str = WORKSPACE, connection: str = "github") -> run_pb2.Approval:
        """A question of a run that waits."""
        approval = run_pb2.Approval(
            approval_id=new_uuid7(),
            run_id=new_uuid7(),
            kind=run_pb2.APPROVAL_KIND_SIGN_IN,
            state=run_pb2.APPROVAL_STATE_PENDING,
            sign_in=run_pb2.SignInNeeded(connection=connection, user_id="u1"),
        )
        self.state.approvals[workspace_id, approval.approval_id] = approval
        return approval

    async def until_decided(self, approval: run_pb2.Approval) -> None:
        """Returns once somebody has decided."""
        async with asyncio.timeout(20):
            await self.state.until(lambda: approval.state == run_pb2.APPROVAL_STATE_DECIDED)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    auth, state, clock = FakeAuth(), FakeState(), FakeClock()
    async with AsyncExitStack() as stack:
        channels = []
        for name, fake in (("auth", auth), ("state", state)):
            server = Server(SETTINGS, service=name, access=fake.access(), telemetry=build_telemetry(name))
            fake.add_to(server)
            await stack.enter_async_context(server)
            channels.append(
                await stack.enter_async_context(open_channel(server.address, service="executor", settings=SETTINGS))
            )
        sign_ins = SignIns(ConnectionFeedServiceStub(channels[0]), StateStubs.on(channels[1]).runs, clock)
        yield Parts(sign_ins, auth, state, clock)


async def test_only_the_sign_ins_that_are_done_are_decided(parts: Parts) -> None:
    done, other_connection, other_workspace = (
        parts.waiting(),
        parts.waiting(connection="crm"),
        parts.waiting(OTHER),
    )
    parts.auth.connect(WORKSPACE, "u1", "github")
    assert await parts.sign_ins.look("") == 1
    assert (done.state, done.decision.decided_by) == (run_pb2.APPROVAL_STATE_DECIDED, SIGNED_IN)
    for approval in (other_connection, other_workspace):
        assert approval.state == run_pb2.APPROVAL_STATE_PENDING
    assert await parts.sign_ins.look("") == 0


async def test_more_than_a_page_is_looked_at(parts: Parts) -> None:
    for _ in range(450):
        parts.waiting()
    parts.auth.connect(WORKSPACE, "u1", "github")
    assert await parts.sign_ins.look(WORKSPACE) == 450


async def test_news_and_the_regular_look_both_wake(parts: Parts) -> None:
    async with asyncio.timeout(20):
        task = asyncio.create_task(parts.sign_ins.run())
        try:
            await parts.auth.watched.wait()
            told = parts.waiting()
            parts.auth.connect(WORKSPACE, "u1", "github")
            await parts.until_decided(told)
            # Nobody tells of this one: it was connected before the run asked.
            missed = parts.waiting()
            await parts.clock.wait_for_sleepers()
            await parts.clock.advance(LOOK_SECONDS * 1.2)
            await parts.until_decided(missed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
