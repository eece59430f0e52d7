"""Executors' load on state, through its real API, that goes on whatever breaks; and the promises afterwards.

It behaves as an executor must: what was not answered is sent again as it was, and a lost lease ends the driving of its
run. The follower goes on from the cursor that it stored last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.errors import HoldfastError, ResourceExhausted, Unavailable, from_rpc_error
from holdfast.ids import new_uuid7
from tests.state.served import Client
from tests.state.support import finished, new_run, started

WORKSPACE = new_uuid7()
# A call that is refused at once is tried again so often; what waits in state has its own patience.
PAUSE_SECONDS = 0.05


@dataclass
class Load:
    """What was sent and answered.

    Attributes:
        clients: Connections to state; a driver uses one after the other.
        acknowledged: The text of each acknowledged event, by run and sequence number.
        refusals: How often a call was refused because the storage was away.
        refused: The last of those refusals.
        followed: What the follower was told, in its order.
        runs: What was created.
        full: The last refusal because of a full disk.
    """

    clients: Sequence[Client]
    acknowledged: dict[tuple[str, int], str] = field(default_factory=dict)
    refusals: int = 0
    refused: Unavailable | None = None
    followed: list[tuple[str, int]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    full: ResourceExhausted | None = None
    _stopped: bool = False

    def stop(self) -> None:
        """Ends the drivers after the event that each is at."""
        self._stopped = True

    async def progress(self, count: int) -> None:
        """Returns when so many more events were acknowledged."""
        goal = len(self.acknowledged) + count
        async with asyncio.timeout(40):
            while len(self.acknowledged) < goal:
                await asyncio.sleep(0.01)

    async def until_full(self) -> ResourceExhausted:
        """Returns what a caller was told because the disk is full."""
        async with asyncio.timeout(60):
            while self.full is None:
                await asyncio.sleep(0.01)
        return self.full

    def _note(self, error: BaseException) -> HoldfastError:
        public = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
        assert isinstance(public, HoldfastError), error
        if isinstance(public, Unavailable):
            self.refusals += 1
            self.refused = public
        if isinstance(public, ResourceExhausted):
            self.full = public
        return public

    async def execute(self, number: int, slots: int) -> None:
        """An executor: claims, and drives what it claims."""
        executor_id = new_uuid7()
        held: dict[str, int] = {}
        driving: dict[str, asyncio.Task[None]] = {}
        turn = number
        try:
            while not self._stopped:
                client = self.clients[turn % len(self.clients)]
                try:
                    working = await client.work(executor_id, free_slots=slots - len(held))
                    while not self._stopped:
                        async with asyncio.timeout(20):
                            response = await working.stream.read()
                        if response is grpc.aio.EOF:
                            break
                        for lost in response.lost:
                            held.pop(lost.run_id, None)
                            if lost.run_id in driving:
                                driving.pop(lost.run_id).cancel()
                        for claim in response.claims:
                            run_id = claim.run.run_id
                            held[run_id] = claim.epoch
                            if run_id in driving:
                                driving.pop(run_id).cancel()
                            driving[run_id] = asyncio.create_task(
                                self._drive(client, run_id, claim.epoch, claim.run.last_seq)
                            )
                        await asyncio.sleep(0.1)
                        await working.say(free_slots=slots - len(held))
                    working.stream.cancel()
                except (grpc.RpcError, TimeoutError, asyncio.InvalidStateError) as error:
                    if isinstance(error, grpc.RpcError):
                        self._note(error)
                    # What it drove is driven by whoever claims it: this one begins anew.
                    for task in driving.values():
                        task.cancel()
                    held.clear()
                    driving.clear()
                    executor_id = new_uuid7()
                    turn += 1
                    await asyncio.sleep(PAUSE_SECONDS)
        finally:
            for task in driving.values():
                task.cancel()
            await asyncio.gather(*driving.values(), return_exceptions=True)

    async def _drive(self, client: Client, run_id: str, epoch: int, seq: int) -> None:
        while not self._stopped:
            seq += 1
            text = f"{run_id} {seq} by {epoch}"
            change = [finished(seq, text), started(seq + 1)]
            transition = pb.Transition(workspace_id=WORKSPACE, run_id=run_id, epoch=epoch, seq=seq, changes=change)
            while True:
                try:
                    answer = await client.journal.Append(pb.AppendRequest(transition=transition))
                except grpc.RpcError as error:
                    if not isinstance(self._note(error), Unavailable | ResourceExhausted):
                        # Somebody else drives it.
                        return
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                assert answer.committed.seq == seq
                self.acknowledged[run_id, seq] = text
                break

    async def create(self, count: int) -> None:
        """Makes runs, each with a request id, and sends what was not answered again."""
        for _ in range(count):
            request = pb.CreateRunRequest(new_run=new_run(WORKSPACE, request_id=new_uuid7(), request_fingerprint=b"f"))
            while True:
                try:
                    self.runs.append((await self.clients[0].journal.CreateRun(request)).run.run_id)
                    break
                except grpc.RpcError as error:
                    assert isinstance(self._note(error), Unavailable)
                    await asyncio.sleep(PAUSE_SECONDS)

    async def follow(self, client: Client) -> None:
        """A follower of the feed, which stores its place with what it was told."""
        cursor = b""
        while True:
            try:
                async for frame in client.follow(cursor):
                    self.followed += [(entry.event.run_id, entry.event.seq) for entry in frame.entries]
                    cursor = frame.cursor
            except grpc.RpcError as error:
                assert isinstance(self._note(error), Unavailable)
            await asyncio.sleep(PAUSE_SECONDS)

    async def check(self) -> None:
        """Everything that was acknowledged is stored, once, in dense journals; and the feed told all of it once."""
        stored: list[tuple[str, int]] = []
        for run_id in self.runs:
            events = await self.clients[0].events(WORKSPACE, run_id)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            stored += [(run_id, event.seq) for event in events]
            for event in events:
                text = self.acknowledged.get((run_id, event.seq))
                assert text is None or text == _text_of(event), "what was acknowledged is what is stored"
        assert set(self.acknowledged) <= set(stored), "nothing acknowledged is lost"
        async with asyncio.timeout(20):
            while len(self.followed) < len(stored):
                await asyncio.sleep(0.02)
        assert len(self.followed) == len(set(self.followed)), "the feed repeated itself"
        assert sorted(self.followed) == sorted(stored), "the feed passed over something"
        seen: dict[str, int] = {}
        for run_id, seq in self.followed:
            assert seq == seen.get(run_id, 0) + 1, "the feed has the events of a run in their order"
            seen[run_id] = seq


def _text_of(event: run_pb2.Event) -> str | None:
    for change in event.changes:
        if change.WhichOneof("kind") == "step_finished":
            return str(change.step_finished.message.message.parts[0].text)
    return None


@asynccontextmanager
async def under_load(clients: Sequence[Client], *, runs: int = 12, follower: Client) -> AsyncIterator[Load]:
    """Load while the block runs; then its promises are checked."""
    load = Load(clients)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(load.follow(follower))
        await load.create(runs)
        executing = [group.create_task(load.execute(number, runs)) for number in range(2)]
        try:
            await load.progress(runs)
            yield load
        finally:
            load.stop()
        async with asyncio.timeout(40):
            await asyncio.gather(*executing)
        await load.check()
        following.cancel()
