"""The worker's side of the protocol, against an executor that does what each test says."""

from __future__ import annotations

import asyncio
import enum
import json
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest

from holdfast import ToolContext, ToolError, Worker, tool
from holdfast.errors import InvalidArgument, LeaseLost, Unauthenticated, Unavailable
from tests.fakes.executor import API_KEY, FakeExecutor, WorkerStream


class Colour(enum.Enum):
    """An enumeration in a result."""

    RED = "red"


@dataclass
class Receipt:
    """A result of a tool."""

    number: int
    day: date
    colour: Colour


@pytest.fixture
async def executor() -> AsyncIterator[FakeExecutor]:
    """An executor without workers."""
    async with FakeExecutor() as fake:
        yield fake


@asynccontextmanager
async def running(executor: FakeExecutor, *tools: object, slots: int = 8) -> AsyncIterator[Worker]:
    """A worker that runs, and is stopped at the end."""
    worker = Worker(tools, slots=slots, address=executor.address, api_key=API_KEY)  # type: ignore[arg-type]
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Recorder:
    """A tool that notes its calls and ends when it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.contexts: list[ToolContext] = []

    def tool(self, effect: str = "at_most_once") -> object:
        """Returns the tool."""

        @tool(effect=cast(Any, effect), name="record")
        async def record(context: ToolContext, text: str = "") -> str:
            self.calls.append(text)
            self.contexts.append(context)
            self.began.set()
            await self.may_end.wait()
            return text

        return record


@tool(effect="read_only")
def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: The number.
    """
    return number * 2


async def test_worker_announces_its_tools_with_schema_and_effect(executor: FakeExecutor) -> None:
    async with running(executor, double, slots=3) as worker:
        hello = await (await executor.next_stream()).welcome()
        assert hello.worker_id == worker.worker_id
        assert hello.slots == 3
        [served] = hello.tools
        assert (served.name, served.description) == ("double", "Doubles a number.")
        assert served.input_schema["required"][0] == "number"  # type: ignore[index]
        assert not hello.running_leases


async def test_call_is_executed_after_go_and_its_result_reported_as_json(executor: FakeExecutor) -> None:
    async with running(executor, double) as worker:
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "double", '{"number": 21}')
        report = await executor.next_completion()
        assert (report.worker_id, report.lease, report.result_json) == (worker.worker_id, "lease", "42")


async def test_nothing_is_executed_before_go(executor: FakeExecutor) -> None:
    recorder = Recorder()
    recorder.may_end.set()
    async with running(executor, recorder.tool(), double):
        stream = await executor.next_stream()
        await stream.welcome(heartbeat_seconds=0.2)
        stream.offer("held", "record")
        await stream.receive("start")
        # Another call goes all the way meanwhile: the worker had every opportunity.
        await stream.hand("other", "double", '{"number": 1}')
        await executor.next_completion()
        await stream.receive("heartbeat")
        assert recorder.calls == []
        stream.go("held")
        assert (await executor.next_completion()).lease == "held"
        assert recorder.calls == [""]


async def test_repeated_go_and_repeated_offer_execute_once(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with running(executor, recorder.tool(), double):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "record", '{"text": "one"}')
        await recorder.began.wait()
        stream.go("lease")
        stream.offer("lease", "record", '{"text": "two"}')
        recorder.may_end.set()
        assert json.loads((await executor.next_completion()).result_json) == "one"
        stream.go("lease")
        stream.offer("lease", "record", '{"text": "three"}')
        await stream.hand("after", "double", '{"number": 1}')
        assert (await executor.next_completion()).lease == "after"
        assert recorder.calls == ["one"]


async def test_unknown_tool_is_not_accepted(executor: FakeExecutor) -> None:
    async with running(executor, double):
        stream = await executor.next_stream()
        await stream.welcome()
        stream.offer("foreign", "triple")
        stream.offer("own", "double", '{"number": 1}')
        assert (await stream.receive("start")).lease == "own"


async def test_more_calls_than_slots_are_not_accepted(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with running(executor, recorder.tool(), slots=1):
        stream = await executor.next_stream()
        await stream.welcome(heartbeat_seconds=0.2)
        await stream.hand("first", "record")
        await recorder.began.wait()
        stream.offer("second", "record")
        beat = await stream.receive("heartbeat")
        while "first" not in beat.running:
            beat = await stream.receive("heartbeat")
        recorder.may_end.set()
        await executor.next_completion()
        await stream.hand("third", "record")
        assert (await executor.next_completion()).lease == "third"
        assert len(recorder.calls) == 2


async def test_offer_that_comes_before_the_answer_to_a_report_is_accepted(executor: FakeExecutor) -> None:
    # The executor frees the slot when it has the report; its answer may be behind the next offer.
    async with running(executor, double, slots=1):
        stream = await executor.next_stream()
        await stream.welcome()
        executor.completion_errors.extend([Unavailable("later")] * 2)
        await stream.hand("first", "double", '{"number": 1}')
        await executor.next_completion()
        await stream.hand("second", "double", '{"number": 2}')


async def test_report_is_repeated_until_it_is_answered(executor: FakeExecutor) -> None:
    executor.completion_errors.extend([Unavailable("away"), Unavailable("still away")])
    async with running(executor, double):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "double", '{"number": 2}')
        reports = [await executor.next_completion() for _ in range(3)]
        assert [report.result_json for report in reports] == ["4", "4", "4"]
        # The worker is idle again: nothing more is reported, the next call is taken.
        await stream.hand("next", "double", '{"number": 5}')
        assert (await executor.next_completion()).lease == "next"


async def test_report_of_a_lost_lease_is_not_repeated(executor: FakeExecutor) -> None:
    executor.completion_errors.append(LeaseLost("given to somebody else", reason="CALL_LEASE_LOST"))
    async with running(executor, double):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lost", "double", '{"number": 2}')
        assert (await executor.next_completion()).lease == "lost"
        await stream.hand("next", "double", '{"number": 2}')
        assert (await executor.next_completion()).lease == "next"


async def test_refused_result_is_reported_as_an_error(executor: FakeExecutor) -> None:
    executor.completion_errors.append(InvalidArgument("too large"))
    async with running(executor, double):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "double", '{"number": 2}')
        assert (await executor.next_completion()).WhichOneof("outcome") == "result_json"
        assert "refused: too large" in (await executor.next_completion()).error.message


async def test_broken_stream_is_reopened_and_running_calls_go_on(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with running(executor, recorder.tool()) as worker:
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "record", '{"text": "survives"}')
        await recorder.began.wait()
        stream.end(Unavailable("the executor was killed"))
        second = await executor.next_stream()
        hello = await second.welcome()
        assert hello.worker_id == worker.worker_id
        assert list(hello.running_leases) == ["lease"]
        # The new executor says go for what it takes for started: the call is not executed again.
        second.go("lease")
        recorder.may_end.set()
        assert json.loads((await executor.next_completion()).result_json) == "survives"
        assert recorder.calls == ["survives"]


async def test_start_whose_go_was_lost_is_asked_for_again(executor: FakeExecutor) -> None:
    async with running(executor, double):
        stream = await executor.next_stream()
        await stream.welcome()
        stream.offer("lease", "double", '{"number": 2}')
        await stream.receive("start")
        stream.end(Unavailable("killed before go"))
        second = await executor.next_stream()
        hello = await second.welcome()
        assert not hello.running_leases
        assert (await second.receive("start")).lease == "lease"
        second.go("lease")
        assert (await executor.next_completion()).result_json == "4"


async def test_worker_finds_an_executor_that_comes_back() -> None:
    async with FakeExecutor() as first:
        port = first.port
        worker = Worker([double], address=first.address, api_key=API_KEY)
        task = asyncio.create_task(worker.run())
        await (await first.next_stream()).welcome()
    try:
        async with FakeExecutor(port=port) as second:
            hello = await (await second.next_stream()).welcome()
            assert hello.worker_id == worker.worker_id
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_refused_key_ends_the_worker(executor: FakeExecutor) -> None:
    worker = Worker([double], address=executor.address, api_key="wrong")
    async with asyncio.timeout(10):
        with pytest.raises(Unauthenticated) as caught:
            await worker.run()
    assert caught.value.reason == "API_KEY_INVALID"


async def test_heartbeats_name_running_calls_and_their_details(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with running(executor, recorder.tool()):
        stream = await executor.next_stream()
        await stream.welcome(heartbeat_seconds=30)
        await stream.hand("lease", "record", last_heartbeat_details="row 5")
        await recorder.began.wait()
        [context] = recorder.contexts
        assert context.last_heartbeat_details == "row 5"
        context.heartbeat("row 7")
        # Long before the interval is over: details are sent as they come.
        beat = await stream.receive("heartbeat")
        assert dict(beat.running) == {"lease": "row 7"}
        recorder.may_end.set()


async def test_cancel_stops_an_idempotent_call_and_reports_it(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with running(executor, recorder.tool("idempotent")):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "record")
        await recorder.began.wait()
        stream.cancel("lease")
        stream.cancel("lease")
        report = await executor.next_completion()
        assert report.error.message == "the tool was stopped because its call was cancelled"
        assert recorder.contexts[0].is_cancelled


async def test_cancel_only_tells_a_call_that_may_not_be_repeated(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with running(executor, recorder.tool("at_most_once"), double):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "record", '{"text": "whole"}')
        await recorder.began.wait()
        stream.cancel("lease")
        await stream.hand("other", "double", '{"number": 1}')
        assert (await executor.next_completion()).lease == "other"
        assert recorder.contexts[0].is_cancelled
        recorder.may_end.set()
        assert json.loads((await executor.next_completion()).result_json) == "whole"


async def test_cancel_before_go_means_that_nothing_is_executed(executor: FakeExecutor) -> None:
    recorder = Recorder()
    recorder.may_end.set()
    async with running(executor, recorder.tool(), double):
        stream = await executor.next_stream()
        await stream.welcome()
        stream.offer("lease", "record")
        await stream.receive("start")
        stream.cancel("lease", "CALL_LEASE_LOST")
        stream.go("lease")
        await stream.hand("other", "double", '{"number": 1}')
        assert (await executor.next_completion()).lease == "other"
        assert recorder.calls == []


async def test_stopping_the_worker_while_a_cancelled_call_runs_does_not_hang(executor: FakeExecutor) -> None:
    recorder = Recorder()
    async with asyncio.timeout(10):
        async with running(executor, recorder.tool("at_most_once")):
            stream = await executor.next_stream()
            await stream.welcome()
            await stream.hand("lease", "record")
            await recorder.began.wait()
            stream.cancel("lease")


async def test_drain_finishes_running_calls_and_takes_no_new_ones(executor: FakeExecutor) -> None:
    recorder = Recorder()
    worker = Worker([recorder.tool(), double], address=executor.address, api_key=API_KEY)  # type: ignore[list-item]
    task = asyncio.create_task(worker.run())
    stream = await executor.next_stream()
    await stream.welcome()
    await stream.hand("lease", "record", '{"text": "last"}')
    await recorder.began.wait()
    worker.drain()
    await stream.receive("drain")
    stream.offer("new", "double", '{"number": 1}')
    recorder.may_end.set()
    report = await executor.next_completion()
    assert (report.lease, json.loads(report.result_json)) == ("lease", "last")
    await stream.ended()
    async with asyncio.timeout(10):
        await task
    assert executor.completions.empty()


async def test_call_whose_start_was_sent_before_the_drain_is_executed(executor: FakeExecutor) -> None:
    worker = Worker([double], address=executor.address, api_key=API_KEY)
    task = asyncio.create_task(worker.run())
    stream = await executor.next_stream()
    await stream.welcome()
    stream.offer("lease", "double", '{"number": 4}')
    await stream.receive("start")
    worker.drain()
    await stream.receive("drain")
    # Stored as started: if the worker forgot it now, nobody could say what became of it.
    stream.go("lease")
    assert (await executor.next_completion()).result_json == "8"
    async with asyncio.timeout(10):
        await task


async def test_drain_without_calls_ends_at_once(executor: FakeExecutor) -> None:
    worker = Worker([double], address=executor.address, api_key=API_KEY)
    task = asyncio.create_task(worker.run())
    await (await executor.next_stream()).welcome()
    worker.drain()
    async with asyncio.timeout(10):
        await task


async def test_sync_tools_run_in_threads_side_by_side(executor: FakeExecutor) -> None:
    together = threading.Barrier(2, timeout=10)

    @tool(effect="read_only")
    def meet() -> str:
        together.wait()
        return threading.current_thread().name

    async with running(executor, meet):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("a", "meet")
        await stream.hand("b", "meet")
        reports = [await executor.next_completion() for _ in range(2)]
        assert {report.lease for report in reports} == {"a", "b"}
        assert all(json.loads(report.result_json) == "holdfast-tool" for report in reports)


async def test_context_says_what_call_it_is(executor: FakeExecutor) -> None:
    @tool(effect="idempotent")
    def tell(context: ToolContext) -> dict[str, object]:
        return {
            "key": context.idempotency_key,
            "run": context.run_id,
            "step": context.step,
            "attempt": context.attempt,
            "agent": context.agent,
            "user": context.user_id,
        }

    async with running(executor, tell):
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "tell", idempotency_key="key", agent="support", user_id="u-1")
        assert json.loads((await executor.next_completion()).result_json) == {
            "key": "key",
            "run": "run",
            "step": 2,
            "attempt": 1,
            "agent": "support",
            "user": "u-1",
        }


async def _outcome(executor: FakeExecutor, tool_: object, arguments: str = "{}") -> tuple[str, bool, bool]:
    async with running(executor, tool_):
        stream: WorkerStream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", tool_.name, arguments)  # type: ignore[attr-defined]
        report = await executor.next_completion()
        if report.WhichOneof("outcome") == "result_json":
            return report.result_json, False, False
        return report.error.message, report.error.is_retryable, report.error.is_outcome_unknown


async def test_tool_error_says_what_may_be_done(executor: FakeExecutor) -> None:
    @tool(effect="at_most_once")
    def pay() -> None:
        raise ToolError("the bank did not answer", retryable=True, outcome_unknown=True)

    assert await _outcome(executor, pay) == ("the bank did not answer", True, True)


async def test_other_exception_is_class_and_message_with_a_known_outcome(executor: FakeExecutor) -> None:
    @tool(effect="at_most_once")
    async def pay() -> None:
        raise KeyError("account")

    assert await _outcome(executor, pay) == ("KeyError: 'account'", False, False)


async def test_tool_that_exits_fails_and_the_worker_stays(executor: FakeExecutor) -> None:
    @tool(effect="read_only")
    async def leave() -> None:
        sys.exit(3)

    assert (await _outcome(executor, leave))[0] == "SystemExit: 3"


async def test_result_of_dataclasses_enums_and_dates_is_encoded(executor: FakeExecutor) -> None:
    @tool(effect="read_only")
    def buy() -> list[Receipt]:
        return [Receipt(7, date(2024, 2, 29), Colour.RED)]

    text, *_ = await _outcome(executor, buy)
    assert json.loads(text) == [{"number": 7, "day": "2024-02-29", "colour": "red"}]


async def test_result_without_a_json_form_is_an_error_of_the_call(executor: FakeExecutor) -> None:
    @tool(effect="at_most_once")
    def open_file() -> object:
        return object()

    message, retryable, unknown = await _outcome(executor, open_file)
    assert message == "the tool ran, but its result can't be written as JSON: a value of type object has no JSON form"
    assert not retryable and not unknown


async def test_oversize_result_names_the_limit(executor: FakeExecutor) -> None:
    @tool(effect="read_only")
    def big() -> str:
        return "x" * (8 * 1024 * 1024)

    assert "at most 8388608 are allowed" in (await _outcome(executor, big))[0]


async def test_arguments_that_do_not_fit_are_an_error_of_the_call(executor: FakeExecutor) -> None:
    assert await _outcome(executor, double, '{"number": "many"}') == (
        'double: number: expected an integer, found "many"',
        False,
        False,
    )


def test_worker_without_tools_or_with_two_of_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one tool"):
        Worker([])
    with pytest.raises(ValueError, match="two tools are named 'double'"):
        Worker([double, double])
    with pytest.raises(ValueError, match="slots=0"):
        Worker([double], slots=0)


async def test_run_forever_drains_on_sigterm(executor: FakeExecutor, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(
        "import time\n"
        "from holdfast import Worker, tool\n"
        "@tool(effect='at_most_once')\n"
        "def slow(seconds: float) -> str:\n"
        "    time.sleep(seconds)\n"
        "    return 'done'\n"
        f"Worker([slow], address={executor.address!r}, api_key={API_KEY!r}).run_forever()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "serve.py", cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        stream = await executor.next_stream()
        await stream.welcome()
        await stream.hand("lease", "slow", '{"seconds": 0.3}')
        process.terminate()
        await stream.receive("drain")
        assert (await executor.next_completion()).result_json == '"done"'
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
