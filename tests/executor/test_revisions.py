"""What labels stand for is asked anew by each caller, and by many at once together."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.state.v1 import agent_store_service_pb2 as pb
from holdfast.api.state.v1.agent_store_service_pb2_grpc import AgentStoreServiceStub
from holdfast.errors import HoldfastError, Unavailable
from services.executor.revisions import RevisionCache


class Agents:
    """A state whose one label can be moved; a call reads it when it begins, and answers when it is let go."""

    def __init__(self) -> None:
        self.latest = "a" * 64
        self.fails = False
        self.calls = 0
        self._has_begun = asyncio.Event()
        self._may_answer = asyncio.Event()

    async def GetAgentRevision(self, request: pb.GetAgentRevisionRequest, **_: Any) -> pb.GetAgentRevisionResponse:
        self.calls += 1
        found, fails = self.latest, self.fails
        self._has_begun.set()
        await self._may_answer.wait()
        if fails:
            raise Unavailable("away")
        return pb.GetAgentRevisionResponse(
            revision=agent_pb2.AgentRevision(agent=request.agent, revision=request.revision or found)
        )

    async def begun(self) -> None:
        await self._has_begun.wait()

    def answer(self) -> None:
        self._may_answer.set()


def asking(cache: RevisionCache) -> asyncio.Task[agent_pb2.AgentRevision]:
    return asyncio.create_task(cache.resolve("w", "helper", ""))


async def test_who_comes_during_a_call_is_answered_by_the_next_one_for_all() -> None:
    agents = Agents()
    cache = RevisionCache(cast("AgentStoreServiceStub", agents))
    async with asyncio.timeout(10):
        first = asking(cache)
        await agents.begun()
        agents.latest = "b" * 64
        others = [asking(cache) for _ in range(20)]
        agents.answer()
        assert (await first).revision == "a" * 64
        assert {(await other).revision for other in others} == {"b" * 64}
    assert agents.calls == 2


async def test_a_call_that_fails_is_made_again_for_those_who_waited_for_it() -> None:
    agents = Agents()
    cache = RevisionCache(cast("AgentStoreServiceStub", agents))
    agents.fails = True
    async with asyncio.timeout(10):
        first = asking(cache)
        await agents.begun()
        agents.fails = False
        others = [asking(cache) for _ in range(3)]
        agents.answer()
        with pytest.raises(HoldfastError):
            await first
        assert [(await other).revision for other in others] == ["a" * 64] * 3


async def test_who_goes_away_during_a_call_leaves_it_to_the_others() -> None:
    agents = Agents()
    cache = RevisionCache(cast("AgentStoreServiceStub", agents))
    async with asyncio.timeout(10):
        first = asking(cache)
        await agents.begun()
        others = [asking(cache) for _ in range(3)]
        first.cancel()
        agents.answer()
        assert [(await other).revision for other in others] == ["a" * 64] * 3
    assert agents.calls == 2


async def test_a_full_id_that_is_known_is_not_asked_for_again() -> None:
    agents = Agents()
    agents.answer()
    cache = RevisionCache(cast("AgentStoreServiceStub", agents))
    async with asyncio.timeout(10):
        found = await cache.resolve("w", "helper", "")
        assert await cache.resolve("w", "helper", found.revision) is found
    assert agents.calls == 1
