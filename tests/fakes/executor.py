"""An executor's public face over real gRPC that does what a test says: runs as scripts of events, workers by hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import agent_service_pb2, run_service_pb2, tool_worker_service_pb2
from holdfast.errors import HoldfastError, NotFound, Unauthenticated, to_status

API_KEY = "hfst_test_key"

Step = Message | HoldfastError
"""An item of a watch: an Event, a Delta, or the error with which the stream breaks there."""


@dataclass
class FakeRun:
    """A run as a script. Each item of `streams` is one connection: what it sends and how it breaks."""

    run: run_pb2.Run
    events: list[run_pb2.Event] = field(default_factory=list)
    streams: deque[list[Step]] = field(default_factory=deque)
    after_seqs: list[int] = field(default_factory=list)
    watches: asyncio.Queue[int] = field(default_factory=lambda: asyncio.Queue(1_000))
    """Receives the `after_seq` of each watch as it begins."""
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    """A stream that has sent everything of a run without an end waits here."""


class WorkerStream:
    """One `Work` stream, seen from the executor."""

    def __init__(self, requests: AsyncIterator[tool_worker_service_pb2.WorkRequest]) -> None:
        self.requests = requests
        self.received: asyncio.Queue[tool_worker_service_pb2.WorkRequest | None] = asyncio.Queue(1_000)
        self.outgoing: asyncio.Queue[tool_worker_service_pb2.WorkResponse | HoldfastError | None] = asyncio.Queue(1_000)

    async def receive(self, kind: str) -> Any:
        """Returns the worker's next message of a kind; what comes before it is skipped."""
        async with asyncio.timeout(10):
            while (request := await self.received.get()) is not None:
                if request.WhichOneof("kind") == kind:
                    return getattr(request, kind)
        raise AssertionError(f"the stream ended without {kind}")

    async def ended(self) -> None:
        """Returns when the worker has nothing more to say."""
        async with asyncio.timeout(10):
            while await self.received.get() is not None:
                pass

    def send(self, **kind: Any) -> None:
        """Sends a message to the worker."""
        self.outgoing.put_nowait(tool_worker_service_pb2.WorkResponse(**kind))

    async def welcome(self, *, heartbeat_seconds: float = 5.0) -> tool_worker_service_pb2.WorkerHello:
        """Waits for `hello`, answers it, and returns it."""
        hello: tool_worker_service_pb2.WorkerHello = await self.receive("hello")
        interval = Duration()
        interval.FromNanoseconds(round(heartbeat_seconds * 1e9))
        self.send(welcome=tool_worker_service_pb2.WorkerWelcome(heartbeat_interval=interval, workspace_id="workspace"))
        return hello

    def offer(self, lease: str, tool: str, arguments_json: str = "{}", **fields: Any) -> None:
        """Offers a call."""
        offer = tool_worker_service_pb2.CallOffer(
            lease=lease, tool=tool, arguments_json=arguments_json, run_id="run", step=2, attempt=1, **fields
        )
        self.send(offer=offer)

    def go(self, lease: str) -> None:
        """Says that the acceptance is stored."""
        self.send(go=tool_worker_service_pb2.CallGo(lease=lease))

    def cancel(self, lease: str, reason: str = "CANCELLED") -> None:
        """Stops a call."""
        self.send(cancel=tool_worker_service_pb2.CallCancel(lease=lease, reason=reason))

    def end(self, error: HoldfastError | None = None) -> None:
        """Ends the stream."""
        self.outgoing.put_nowait(error)

    async def hand(self, lease: str, tool: str, arguments_json: str = "{}", **fields: Any) -> None:
        """Offers a call, waits until it is accepted, and says go."""
        self.offer(lease, tool, arguments_json, **fields)
        start = await self.receive("start")
        assert start.lease == lease
        self.go(lease)


class FakeExecutor:
    """The fake. An async context manager; `address` is where it listens."""

    def __init__(self, *, port: int = 0) -> None:
        self.port = port
        self.runs: dict[str, FakeRun] = {}
        self.started: list[run_service_pb2.StartRunRequest] = []
        self.applied: list[agent_pb2.AgentSpec] = []
        self.cancelled: list[run_service_pb2.CancelRunRequest] = []
        self.paused: list[run_service_pb2.PauseRunRequest] = []
        self.resumed: list[run_service_pb2.ResumeRunRequest] = []
        self.budgets: dict[str, list[run_pb2.BudgetLine]] = {}
        """What is left of runs that have a budget."""
        self.refuse: HoldfastError | None = None
        """Every call fails with this."""
        self.apply_error: HoldfastError | None = None
        self.streams: asyncio.Queue[WorkerStream] = asyncio.Queue(100)
        self.completions: asyncio.Queue[tool_worker_service_pb2.CompleteCallRequest] = asyncio.Queue(100)
        self.completion_errors: deque[HoldfastError] = deque()
        """What the next reports are answered with, before they are accepted."""
        self.credential_requests: list[tool_worker_service_pb2.GetCallCredentialRequest] = []
        self.credentials: deque[tool_worker_service_pb2.GetCallCredentialResponse | HoldfastError] = deque()
        """What the next requests for a credential are answered with."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        executor = "holdfast.api.executor.v1"
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    f"{executor}.RunService",
                    {
                        "StartRun": _unary(self._start_run, run_service_pb2.StartRunRequest),
                        "GetRun": _unary(self._get_run, run_service_pb2.GetRunRequest),
                        "GetRunBudget": _unary(self._get_run_budget, run_service_pb2.GetRunBudgetRequest),
                        "WaitRun": _unary(self._wait_run, run_service_pb2.WaitRunRequest),
                        "ListRuns": _unary(self._list_runs, run_service_pb2.ListRunsRequest),
                        "CancelRun": _unary(self._cancel_run, run_service_pb2.CancelRunRequest),
                        "PauseRun": _unary(self._pause_run, run_service_pb2.PauseRunRequest),
                        "ResumeRun": _unary(self._resume_run, run_service_pb2.ResumeRunRequest),
                        "WatchRun": _stream(self._watch_run, run_service_pb2.WatchRunRequest),
                    },
                ),
                grpc.method_handlers_generic_handler(
                    f"{executor}.AgentService",
                    {"ApplyAgent": _unary(self._apply_agent, agent_service_pb2.ApplyAgentRequest)},
                ),
                grpc.method_handlers_generic_handler(
                    f"{executor}.ToolWorkerService",
                    {
                        "Work": _bidirectional(self._work, tool_worker_service_pb2.WorkRequest),
                        "CompleteCall": _unary(self._complete_call, tool_worker_service_pb2.CompleteCallRequest),
                        "GetCallCredential": _unary(
                            self._get_call_credential, tool_worker_service_pb2.GetCallCredentialRequest
                        ),
                    },
                ),
            )
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._server.stop(None)

    def add_run(self, run_id: str, events: Iterable[run_pb2.Event] = (), *, agent: str = "agent") -> FakeRun:
        """Adds a run. Its state follows from its events."""
        run = FakeRun(run_pb2.Run(run_id=run_id, agent=agent, state=run_pb2.RUN_STATE_RUNNING), list(events))
        self.runs[run_id] = run
        _settle(run)
        return run

    async def next_stream(self) -> WorkerStream:
        """Returns the next worker's stream."""
        async with asyncio.timeout(10):
            return await self.streams.get()

    async def next_completion(self) -> tool_worker_service_pb2.CompleteCallRequest:
        """Returns the next report that was accepted or refused."""
        async with asyncio.timeout(10):
            return await self.completions.get()

    # --- handlers

    def _check(self, context: Any) -> None:
        keys = [value for name, value in context.invocation_metadata() if name == "authorization"]
        if keys != [f"Bearer {API_KEY}"]:
            raise Unauthenticated("the API key is not valid", reason="API_KEY_INVALID")
        if self.refuse is not None:
            raise self.refuse

    async def _start_run(self, request: run_service_pb2.StartRunRequest, context: Any) -> Any:
        self._check(context)
        self.started.append(request)
        for run in self.runs.values():
            if run.run.agent == request.agent:
                return run_service_pb2.StartRunResponse(run=run.run)
        raise NotFound(f"there is no agent {request.agent!r}", reason="AGENT_NOT_FOUND")

    async def _get_run(self, request: run_service_pb2.GetRunRequest, context: Any) -> Any:
        self._check(context)
        return run_service_pb2.GetRunResponse(run=self._find(request.run_id).run)

    async def _get_run_budget(self, request: run_service_pb2.GetRunBudgetRequest, context: Any) -> Any:
        self._check(context)
        return run_service_pb2.GetRunBudgetResponse(lines=self.budgets.get(request.run_id, []))

    async def _wait_run(self, request: run_service_pb2.WaitRunRequest, context: Any) -> Any:
        self._check(context)
        run = self._find(request.run_id)
        run.watches.put_nowait(0)
        for step in run.streams.popleft() if run.streams else ():
            if isinstance(step, HoldfastError):
                raise step
        if run.run.state == run_pb2.RUN_STATE_RUNNING:
            await run.hold.wait()
        return run_service_pb2.WaitRunResponse(run=run.run)

    async def _list_runs(self, request: run_service_pb2.ListRunsRequest, context: Any) -> Any:
        self._check(context)
        # One to a page, so that whoever lists has to turn it.
        runs = [known for known in self.runs.values() if known.run.parent_run_id == request.parent_run_id]
        index = int(request.page_token or 0)
        last = index + 1 >= len(runs)
        return run_service_pb2.ListRunsResponse(
            runs=[runs[index].run] if runs else [], next_page_token="" if last else str(index + 1)
        )

    async def _cancel_run(self, request: run_service_pb2.CancelRunRequest, context: Any) -> Any:
        self._check(context)
        self.cancelled.append(request)
        run = self._find(request.run_id).run
        run.cancel_requested = True
        return run_service_pb2.CancelRunResponse(run=run)

    async def _pause_run(self, request: run_service_pb2.PauseRunRequest, context: Any) -> Any:
        self._check(context)
        self.paused.append(request)
        run = self._find(request.run_id).run
        run.pause_requested = True
        run.state = run_pb2.RUN_STATE_PAUSED
        return run_service_pb2.PauseRunResponse(run=run)

    async def _resume_run(self, request: run_service_pb2.ResumeRunRequest, context: Any) -> Any:
        self._check(context)
        self.resumed.append(request)
        run = self._find(request.run_id).run
        run.pause_requested = False
        run.state = run_pb2.RUN_STATE_QUEUED
        return run_service_pb2.ResumeRunResponse(run=run)

    async def _watch_run(self, request: run_service_pb2.WatchRunRequest, context: Any) -> AsyncIterator[Any]:
        self._check(context)
        run = self._find(request.run_id)
        run.after_seqs.append(request.after_seq)
        run.watches.put_nowait(request.after_seq)
        if run.streams:
            for step in run.streams.popleft():
                if isinstance(step, HoldfastError):
                    raise step
                yield _watched(step)
            return
        for event in run.events:
            if event.seq > request.after_seq:
                yield _watched(event)
        if run.run.state == run_pb2.RUN_STATE_RUNNING:
            await run.hold.wait()

    async def _apply_agent(self, request: agent_service_pb2.ApplyAgentRequest, context: Any) -> Any:
        self._check(context)
        if self.apply_error is not None:
            raise self.apply_error
        if not request.validate_only:
            self.applied.append(request.spec)
        revision = agent_pb2.AgentRevision(revision="ab" * 32, agent=request.spec.name, spec=request.spec)
        return agent_service_pb2.ApplyAgentResponse(revision=revision, created=True)

    async def _work(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self._check(context)
        stream = WorkerStream(requests)
        await self.streams.put(stream)

        async def listen() -> None:
            try:
                async for request in requests:
                    await stream.received.put(request)
            finally:
                stream.received.put_nowait(None)
                stream.outgoing.put_nowait(None)

        # Not a task group around a `yield`; the task ends with the stream.
        listening = asyncio.create_task(listen())
        try:
            while (response := await stream.outgoing.get()) is not None:
                if isinstance(response, HoldfastError):
                    raise response
                yield response
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _get_call_credential(
        self, request: tool_worker_service_pb2.GetCallCredentialRequest, context: Any
    ) -> Any:
        self._check(context)
        self.credential_requests.append(request)
        answer = self.credentials.popleft()
        if isinstance(answer, HoldfastError):
            raise answer
        return answer

    async def _complete_call(self, request: tool_worker_service_pb2.CompleteCallRequest, context: Any) -> Any:
        self._check(context)
        await self.completions.put(request)
        if self.completion_errors:
            raise self.completion_errors.popleft()
        return tool_worker_service_pb2.CompleteCallResponse()

    def _find(self, run_id: str) -> FakeRun:
        if run_id not in self.runs:
            raise NotFound(f"there is no run {run_id}", reason="RUN_NOT_FOUND")
        return self.runs[run_id]


def event(run_id: str, seq: int, **change: Any) -> run_pb2.Event:
    """Returns an event with one change."""
    changes = [run_pb2.Change(**change)] if change else []
    return run_pb2.Event(run_id=run_id, seq=seq, epoch=1, changes=changes)


def ended(run_id: str, seq: int, state: run_pb2.RunState = run_pb2.RUN_STATE_SUCCEEDED) -> run_pb2.Event:
    """Returns the event that ends a run."""
    return event(run_id, seq, run_state_changed=run_pb2.RunStateChanged(state=state))


def delta(run_id: str, step: int, attempt: int, index: int, text: str) -> run_pb2.Delta:
    """Returns a piece of an answer."""
    return run_pb2.Delta(run_id=run_id, step=step, attempt=attempt, index=index, text=text)


def _settle(run: FakeRun) -> None:
    for item in run.events:
        run.run.last_seq = item.seq
        for change in item.changes:
            if change.WhichOneof("kind") == "run_state_changed":
                run.run.state = change.run_state_changed.state
                run.run.wait_reason = change.run_state_changed.wait_reason
                run.run.failure.CopyFrom(change.run_state_changed.failure)


def _watched(step: Message) -> run_service_pb2.WatchRunResponse:
    if isinstance(step, run_pb2.Delta):
        return run_service_pb2.WatchRunResponse(delta=step)
    assert isinstance(step, run_pb2.Event)
    return run_service_pb2.WatchRunResponse(event=step)


async def _abort(context: Any, error: HoldfastError) -> None:
    code, message, metadata = to_status(error)
    await context.abort(code, message, trailing_metadata=metadata)


def _unary(function: Callable[..., Any], request_type: type[Message]) -> Any:
    async def handle(request: Any, context: Any) -> Any:
        try:
            return await function(request, context)
        except HoldfastError as error:
            await _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(handle, request_type.FromString, _serialize)


def _stream(function: Callable[..., Any], request_type: type[Message]) -> Any:
    return grpc.unary_stream_rpc_method_handler(_guarded(function), request_type.FromString, _serialize)


def _bidirectional(function: Callable[..., Any], request_type: type[Message]) -> Any:
    return grpc.stream_stream_rpc_method_handler(_guarded(function), request_type.FromString, _serialize)


def _guarded(function: Callable[..., Any]) -> Callable[..., AsyncIterator[Any]]:
    async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in function(request, context):
                yield response
        except HoldfastError as error:
            await _abort(context, error)

    return handle


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
