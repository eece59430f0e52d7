"""A run's events across broken connections: no gap, no double; and how a run's end reaches its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from holdfast import Budget, Client, RunBudgetExceeded, RunCancelled, RunEvent, RunExpired, RunFailed, TextDelta
from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.errors import Cancelled, Internal, NotFound, PermissionDenied, Unauthenticated, Unavailable
from tests.fakes.executor import API_KEY, FakeExecutor, delta, ended, event


@pytest.fixture
async def executor() -> AsyncIterator[FakeExecutor]:
    """An executor without runs."""
    async with FakeExecutor() as fake:
        yield fake


@pytest.fixture
async def client(executor: FakeExecutor) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(executor.address, API_KEY) as made:
        yield made


async def read(client: Client, run_id: str = "r", after_seq: int = 0) -> list[int | str]:
    """Returns the numbers of events and the texts of pieces, in the order in which they came."""
    run = await client.run(run_id)
    async with asyncio.timeout(20):
        return [item.seq if isinstance(item, RunEvent) else item.text async for item in run.events(after_seq)]


async def test_events_come_in_order_until_the_end(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [event("r", 1), event("r", 2), ended("r", 3)])
    assert await read(client) == [1, 2, 3]
    assert await read(client, after_seq=1) == [2, 3]


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    "break_",
    [Unavailable("the executor was killed"), Cancelled("the server is closing"), None],
    ids=["unavailable", "cancelled", "ended"],
)
async def test_broken_stream_is_continued_without_gap_or_double(
    executor: FakeExecutor, client: Client, break_: Unavailable | None
) -> None:
    events = [event("r", seq) for seq in range(1, 6)] + [ended("r", 6)]
    run = executor.add_run("r", events)
    cut = [break_] if break_ is not None else []
    run.streams.append([*events[:2], *cut])
    run.streams.append([*cut])
    # Sends again what was seen: a server may, and nobody notices.
    run.streams.append([*events[1:4], *cut])
    assert await read(client) == [1, 2, 3, 4, 5, 6]
    assert run.after_seqs == [0, 2, 2, 4]


async def test_stream_with_a_hole_is_asked_again(executor: FakeExecutor, client: Client) -> None:
    events = [event("r", seq) for seq in range(1, 4)] + [ended("r", 4)]
    run = executor.add_run("r", events)
    run.streams.append([events[0], events[2], events[3]])
    assert await read(client) == [1, 2, 3, 4]
    assert run.after_seqs == [0, 1]


async def test_pieces_seen_before_the_break_do_not_come_twice(executor: FakeExecutor, client: Client) -> None:
    finished = event("r", 2, step_finished=run_pb2.StepFinished(step=1))
    run = executor.add_run("r", [event("r", 1), finished, ended("r", 3)])
    pieces = [delta("r", 1, 1, index, text) for index, text in enumerate("abcd")]
    run.streams.append([event("r", 1), *pieces[:2], Unavailable("cut")])
    run.streams.append([*pieces, finished, ended("r", 3)])
    assert await read(client) == [1, "a", "b", "c", "d", 2, 3]


async def test_piece_after_missed_ones_says_so(executor: FakeExecutor, client: Client) -> None:
    run = executor.add_run("r", [event("r", 1), ended("r", 2)])
    run.streams.append([event("r", 1), delta("r", 1, 1, 0, "a"), delta("r", 1, 1, 4, "e"), ended("r", 2)])
    handle = await client.run("r")
    pieces = [item async for item in handle.events() if isinstance(item, TextDelta)]
    assert [(piece.text, piece.follows_gap) for piece in pieces] == [("a", False), ("e", True)]


async def test_pieces_of_another_attempt_begin_anew(executor: FakeExecutor, client: Client) -> None:
    run = executor.add_run("r", [event("r", 1), ended("r", 2)])
    run.streams.append([event("r", 1), delta("r", 1, 1, 0, "a"), delta("r", 1, 2, 0, "b"), ended("r", 2)])
    handle = await client.run("r")
    pieces = [item async for item in handle.events() if isinstance(item, TextDelta)]
    assert [(piece.attempt, piece.text) for piece in pieces] == [(1, "a"), (2, "b")]


@pytest.mark.promise("P12")
async def test_executor_that_restarts_at_its_address_is_found_again() -> None:
    events = [event("r", seq) for seq in range(1, 4)] + [ended("r", 4)]
    async with FakeExecutor() as first:
        run = first.add_run("r", events[:2])
        async with Client(first.address, API_KEY) as client:
            handle = await client.run("r")
            seen: list[int] = []
            stream = handle.events()
            seen.append((await anext(stream)).seq)
            seen.append((await anext(stream)).seq)
            rest = asyncio.create_task(_collect(stream))
            assert run.run.state == run_pb2.RUN_STATE_RUNNING
            await first.__aexit__(None, None, None)
            async with FakeExecutor(port=first.port) as second:
                second.add_run("r", events)
                async with asyncio.timeout(20):
                    seen += await rest
            assert seen == [1, 2, 3, 4]


async def _collect(stream: AsyncIterator[RunEvent | TextDelta]) -> list[int]:
    return [item.seq async for item in stream]


async def test_reading_behind_the_end_ends(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [event("r", 1), ended("r", 2)])
    assert await read(client, after_seq=2) == []


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no such run", reason="RUN_NOT_FOUND"),
        PermissionDenied("no", reason="SCOPE_MISSING"),
        Internal("a bug, id 17"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_answer_of_the_service_is_not_retried(
    executor: FakeExecutor, client: Client, error: NotFound | PermissionDenied | Internal
) -> None:
    run = executor.add_run("r", [event("r", 1)])
    run.streams.append([error])
    with pytest.raises(type(error)) as caught:
        await read(client)
    assert (caught.value.reason, caught.value.message) == (error.reason, error.message)
    assert len(run.after_seqs) == 1


async def test_re_attaching_gives_up_after_its_time() -> None:
    async with FakeExecutor() as executor:
        executor.add_run("r", [event("r", 1)])
        client = Client(executor.address, API_KEY)
        handle = await client.run("r")
    async with client, asyncio.timeout(30):
        with pytest.raises(Unavailable, match=r"the executor service at 127\.0\.0\.1:\d+ can't be reached"):
            async for _ in handle.events(reattach_seconds=0.2):
                pass


async def test_leaving_the_events_early_closes_the_stream(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [event("r", 1)])
    handle = await client.run("r")
    stream = handle.events()
    assert (await anext(stream)).seq == 1
    async with asyncio.timeout(20):
        await stream.aclose()


async def test_result_is_the_text_of_the_answer(executor: FakeExecutor, client: Client) -> None:
    run = executor.add_run("r", [event("r", 1), ended("r", 2)])
    run.run.output.CopyFrom(
        content_pb2.Message(parts=[content_pb2.Part(text="Hello, "), content_pb2.Part(text="world")])
    )
    handle = await client.run("r")
    assert await handle.result(timeout=10) == "Hello, world"


async def test_result_waits_for_a_run_that_is_still_going(executor: FakeExecutor, client: Client) -> None:
    run = executor.add_run("r", [event("r", 1)])
    handle = await client.run("r")
    run.streams.append([Unavailable("cut")])
    run.run.state = run_pb2.RUN_STATE_RUNNING
    waiting = asyncio.create_task(handle.result(timeout=10))
    async with asyncio.timeout(10):
        await run.watches.get()
        await run.watches.get()
    assert not waiting.done()
    run.run.state = run_pb2.RUN_STATE_SUCCEEDED
    run.hold.set()
    assert await waiting == ""


async def test_failed_and_cancelled_runs_raise_with_the_run(executor: FakeExecutor, client: Client) -> None:
    failure = content_pb2.Failure(reason="MAX_STEPS_EXCEEDED", message="over 5 steps")
    changed = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_FAILED, failure=failure)
    executor.add_run("failed", [event("failed", 1, run_state_changed=changed)])
    executor.add_run("cancelled", [ended("cancelled", 1, run_pb2.RUN_STATE_CANCELLED)])
    with pytest.raises(RunFailed, match=r"over 5 steps \(MAX_STEPS_EXCEEDED\)") as caught:
        await (await client.run("failed")).result()
    assert caught.value.failure.reason == "MAX_STEPS_EXCEEDED"
    with pytest.raises(RunCancelled):
        await (await client.run("cancelled")).result()


async def test_expired_run_raises_with_the_run(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("late", [ended("late", 1, run_pb2.RUN_STATE_EXPIRED)])
    with pytest.raises(RunExpired, match="run late expired") as caught:
        await (await client.run("late")).result()
    assert caught.value.run.state == run_pb2.RUN_STATE_EXPIRED


async def test_run_stopped_by_its_budget_raises_with_the_limit(executor: FakeExecutor, client: Client) -> None:
    stopped = executor.add_run("spent", [ended("spent", 1, run_pb2.RUN_STATE_BUDGET_EXCEEDED)])
    stopped.run.failure.CopyFrom(content_pb2.Failure(reason="BUDGET_EXCEEDED", message="no room for max_tool_calls"))
    with pytest.raises(RunBudgetExceeded, match="run spent stopped: no room for max_tool_calls") as caught:
        await (await client.run("spent")).result()
    assert caught.value.failure.reason == "BUDGET_EXCEEDED"


async def test_budget_is_given_with_the_run_and_read_back(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [event("r", 1)]).run.agent = "support"
    handle = await client.start("support", "hi", budget=Budget(max_cost_usd=0.1, max_tool_calls=3))
    [request] = executor.started
    assert request.budget == agent_pb2.Budget(max_cost_usd_nanos=100_000_000, max_tool_calls=3)
    executor.budgets["r"] = [run_pb2.BudgetLine(limit="max_tool_calls", max=3, used=1, left=2)]
    assert await handle.budget() == executor.budgets["r"]


async def test_run_is_paused_and_resumed_by_its_id_or_its_handle(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [event("r", 1)])
    assert (await client.pause("r", "lunch")).state == run_pb2.RUN_STATE_PAUSED
    handle = await client.run("r")
    assert (await handle.resume("back")).state == handle.run.state == run_pb2.RUN_STATE_QUEUED
    [paused], [resumed] = executor.paused, executor.resumed
    assert (paused.reason, resumed.reason) == ("lunch", "back")


async def test_result_that_takes_too_long_leaves_the_run_alone(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [event("r", 1)])
    handle = await client.run("r")
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.05)
    assert executor.cancelled == []


async def test_every_start_has_a_request_id_of_its_own(executor: FakeExecutor, client: Client) -> None:
    executor.add_run("r", [ended("r", 1)])
    await client.start("agent", "one", session_id="s", user_id="u", revision="prod")
    await client.start("agent", "two", request_id="mine")
    first, second = executor.started
    assert first.request_id and first.request_id != second.request_id
    assert second.request_id == "mine"
    assert (first.text, first.session_id, first.user_id, first.revision) == ("one", "s", "u", "prod")


async def test_lists_turn_their_pages(executor: FakeExecutor, client: Client) -> None:
    for name in ("a", "b", "c"):
        executor.add_run(name)
    assert [run.run_id async for run in client.runs.list()] == ["a", "b", "c"]


async def test_service_that_is_away_is_named_with_its_address() -> None:
    async with FakeExecutor() as gone:
        address = gone.address
    async with Client(address, API_KEY) as client:
        with pytest.raises(Unavailable) as caught:
            await client.run("r")
    assert caught.value.message == f"the executor service at {address} can't be reached"
    assert caught.value.reason == "EXECUTOR_UNAVAILABLE"


async def test_call_without_a_key_is_refused_before_it_is_made(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Client(executor.address) as client:
        with pytest.raises(Unauthenticated, match="there is no API key"):
            await client.run("r")
