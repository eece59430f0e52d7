"""Replicas of the service on free ports in this process, and an executor that talks to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import change_feed_service_pb2 as feed_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as runs_pb2
from holdfast.api.state.v1.change_feed_service_pb2_grpc import ChangeFeedServiceStub
from holdfast.api.state.v1.journal_service_pb2_grpc import JournalServiceStub
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub
from services.shared.channels import ServiceChannel
from services.shared.server import Server
from services.shared.settings import load
from services.shared.telemetry import build_telemetry
from services.state.app import state_server
from services.state.settings import StateSettings
from tests.state.support import new_run

TOKEN = "a-service-token-of-enough-characters"


def settings_for(database_url: str, **changes: Any) -> StateSettings:
    """Settings of a replica on a free port."""
    loaded = load(
        StateSettings,
        {
            "HOLDFAST_DATABASE_URL": database_url,
            "HOLDFAST_SERVICE_TOKEN": TOKEN,
            "HOLDFAST_LISTEN": "127.0.0.1:0",
            # Nobody is there; not whoever runs a suite on this machine.
            "HOLDFAST_AUTH_ADDRESS": "127.0.0.1:1",
            "HOLDFAST_MIGRATE_ON_START": "true",
            "HOLDFAST_DRAIN_SECONDS": "3",
        },
    )
    return replace(loaded, **changes)


class Replica:
    """One process of state, as its callers see it."""

    def __init__(self, server: Server, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self.executor = self.client("executor")
        self.trace = self.client("trace")

    def client(self, service: str) -> Client:
        """A connection of its own."""
        client = Client(self.server.address, service)
        self._stack.push_async_callback(client.channel.close)
        return client


class Client:
    """Calls state as one of the services."""

    def __init__(self, address: str, service: str) -> None:
        inner = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self.channel = ServiceChannel(
            inner, address=address, identity=f"Service {service}:{TOKEN}", unary_deadline_seconds=20
        )
        self.journal = JournalServiceStub(self.channel)
        self.leases = LeaseServiceStub(self.channel)
        self.runs = RunStoreServiceStub(self.channel)
        self.feed = ChangeFeedServiceStub(self.channel)

    async def create(self, workspace: str, **fields: Any) -> run_pb2.Run:
        request = pb.CreateRunRequest(new_run=new_run(workspace, **fields))
        return (await self.journal.CreateRun(request)).run

    async def append(
        self, workspace: str, run_id: str, epoch: int, seq: int, *changes: run_pb2.Change, **more: Any
    ) -> int:
        transition = pb.Transition(workspace_id=workspace, run_id=run_id, epoch=epoch, seq=seq, changes=changes, **more)
        return (await self.journal.Append(pb.AppendRequest(transition=transition))).committed.seq

    async def cancel(self, workspace: str, run_id: str) -> None:
        await self.runs.RequestCancel(runs_pb2.RequestCancelRequest(workspace_id=workspace, run_id=run_id))

    async def run(self, workspace: str, run_id: str) -> run_pb2.Run:
        return (await self.runs.GetRun(runs_pb2.GetRunRequest(workspace_id=workspace, run_id=run_id))).run

    async def events(self, workspace: str, run_id: str) -> list[run_pb2.Event]:
        request = pb.ReadJournalRequest(workspace_id=workspace, run_id=run_id)
        return [event async for frame in self.journal.ReadJournal(request) for event in frame.events]

    def watch(self, workspace: str, run_id: str, after_seq: int = 0) -> Any:
        request = pb.WatchJournalRequest(workspace_id=workspace, run_id=run_id, after_seq=after_seq)
        return self.journal.WatchJournal(request)

    def follow(self, cursor: bytes = b"") -> Any:
        return self.feed.Follow(feed_pb2.FollowRequest(cursor=cursor))

    async def work(self, executor_id: str, free_slots: int, held: Iterable[lease_pb2.HeldRun] = ()) -> Working:
        working = Working(self.leases.Work())
        await working.say(executor_id=executor_id, free_slots=free_slots, held=held)
        return working


class Working:
    """An executor's stream, and what it was told."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.held: dict[str, lease_pb2.HeldRun] = {}
        self.lost: set[str] = set()
        self.nudged: set[str] = set()

    async def say(self, **fields: Any) -> None:
        """Sends a message."""
        await self.stream.write(lease_pb2.WorkRequest(**fields))

    async def hear(self) -> lease_pb2.WorkResponse | None:
        """The next response; None at the stream's end."""
        response = await self.stream.read()
        if response is grpc.aio.EOF:
            return None
        assert isinstance(response, lease_pb2.WorkResponse)
        for claim in response.claims:
            self.held[claim.run.run_id] = lease_pb2.HeldRun(run_id=claim.run.run_id, epoch=claim.epoch)
        self.lost |= {run.run_id for run in response.lost}
        self.nudged |= set(response.nudged_run_ids)
        return response

    async def until_held(self, count: int) -> None:
        """Returns when so many runs were given to it."""
        async with asyncio.timeout(15):
            while len(self.held) < count:
                assert await self.hear() is not None, "the stream has ended"

    async def until_nudged(self, run_id: str, free_slots: int = 0) -> None:
        """Beats until it is told of an event from outside."""
        async with asyncio.timeout(15):
            while run_id not in self.nudged:
                await self.say(free_slots=free_slots)
                await self.hear()


@asynccontextmanager
async def replica(database_url: str, **changes: Any) -> AsyncIterator[Replica]:
    """One process's worth of state."""
    settings = settings_for(database_url, **changes)
    async with state_server(settings, build_telemetry("state"), asyncio.Event()) as server, AsyncExitStack() as stack:
        yield Replica(server, stack)
