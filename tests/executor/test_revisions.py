"""Runs that need what an agent's label points to ask for it together, and are never given an older answer."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.state.v1 import agent_store_service_pb2 as pb
from holdfast.api.state.v1.agent_store_service_pb2_grpc import AgentStoreServiceStub
from holdfast.errors import NotFound, Unavailable
from services.executor.revisions import RevisionCache

FIRST, SECOND = "a" * 64, "b" * 64


class Agents:
    """A state with one agent; a call reads it as it begins, and answers when it is let go."""

    def __init__(self) -> None:
        self.latest = FIRST
        self.error: Exception | None = None
        self.calls = 0
        self.has_begun = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def GetAgentRevision(self, request: pb.GetAgentRevisionRequest, **_: Any) -> pb.GetAgentRevisionResponse:
        self.calls += 1
        revision, error = self.latest, self.error
        self.has_begun.set()
        await self.may_answer.wait()
        if error is not None:
            raise error
        return pb.GetAgentRevisionResponse(revision=agent_pb2.AgentRevision(agent=request.agent, revision=revision))


@pytest.fixture
def agents() -> Agents:
    return Agents()


@pytest.fixture
def cache(agents: Agents) -> RevisionCache:
    return RevisionCache(cast(AgentStoreServiceStub, agents))


Found = asyncio.Task[tuple[agent_pb2.AgentRevision, bool]]


async def looking_up(cache: RevisionCache, agents: Agents, count: int, revision: str = "") -> list[Found]:
    """So many that look up at once, and wait for state's answer."""
    tasks = [asyncio.create_task(cache.look_up("w", "helper", revision)) for _ in range(count)]
    await agents.has_begun.wait()
    # Each has run up to the call, or to the wait for it.
    await asyncio.sleep(0)
    return tasks


@pytest.fixture(autouse=True)
async def bounded() -> Any:
    async with asyncio.timeout(20):
        yield


async def test_many_at_once_are_answered_by_one_call(cache: RevisionCache, agents: Agents) -> None:
    tasks = await looking_up(cache, agents, 20)
    agents.may_answer.set()
    found = [await task for task in tasks]
    assert {revision.revision for revision, _ in found} == {FIRST}
    assert [was_cached for _, was_cached in found] == [False] * 20
    assert agents.calls == 1
    assert await cache.look_up("w", "helper", "") == (found[0][0], True)
    assert agents.calls == 1


async def test_part_of_an_id_is_no_label(cache: RevisionCache, agents: Agents) -> None:
    tasks = await looking_up(cache, agents, 3, revision=FIRST[:12])
    agents.may_answer.set()
    assert [(await task)[1] for task in tasks] == [False] * 3
    assert (await cache.look_up("w", "helper", FIRST[:12]))[1] is False
    assert agents.calls == 2


async def test_who_asks_later_is_not_given_an_answer_from_before(cache: RevisionCache, agents: Agents) -> None:
    early = await looking_up(cache, agents, 3)
    agents.latest = SECOND
    late = [asyncio.create_task(cache.resolve("w", "helper", "")) for _ in range(3)]
    await asyncio.sleep(0)
    agents.may_answer.set()
    assert {(await task)[0].revision for task in early} == {FIRST}
    assert {(await task).revision for task in late} == {SECOND}
    assert agents.calls == 2


async def test_who_goes_away_leaves_the_call_to_the_others(cache: RevisionCache, agents: Agents) -> None:
    first, *others = await looking_up(cache, agents, 4)
    first.cancel()
    agents.may_answer.set()
    assert [(await other)[0].revision for other in others] == [FIRST] * 3
    assert agents.calls == 1


async def test_while_state_is_away_all_hear_of_it_at_once(cache: RevisionCache, agents: Agents) -> None:
    agents.error = Unavailable("away")
    tasks = [*await looking_up(cache, agents, 20), *await looking_up(cache, agents, 20)]
    agents.may_answer.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert agents.calls == 1
    agents.error = None
    assert (await cache.look_up("w", "helper", ""))[0].revision == FIRST


async def test_agent_that_was_made_meanwhile_is_found(cache: RevisionCache, agents: Agents) -> None:
    agents.error = NotFound("no such agent")
    [early] = await looking_up(cache, agents, 1)
    agents.error = None
    [late] = await looking_up(cache, agents, 1)
    agents.may_answer.set()
    with pytest.raises(NotFound):
        await early
    assert (await late)[0].revision == FIRST
    assert agents.calls == 2


async def test_label_that_has_moved_is_looked_up_anew(cache: RevisionCache, agents: Agents) -> None:
    agents.may_answer.set()
    await cache.look_up("w", "helper", "")
    agents.latest = SECOND
    cache.forget_label("w", "helper", "")
    found, was_cached = await cache.look_up("w", "helper", "")
    assert (found.revision, was_cached) == (SECOND, False)
