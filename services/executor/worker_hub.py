"""Connected tool workers: who serves what with how many free slots, and which call is with whom.

Nothing here is durable. State knows every lease; a hub that dies, or drains, loses no call: offers that were not
started go to other workers, and calls that run are reported to any executor.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from holdfast.api.executor.v1 import tool_worker_service_pb2 as worker_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as queue_pb2
from holdfast.api.state.v1.call_queue_service_pb2_grpc import CallQueueServiceStub
from holdfast.errors import Aborted, DeadlineExceeded, HoldfastError, InvalidArgument, LeaseLost, Reason, Unavailable
from holdfast.times import to_duration
from services.executor.egress.proxy import egress_url
from services.executor.trace_context import traceparent_of_step
from services.shared.channels import calling
from services.shared.clock import Clock, SystemClock
from services.shared.telemetry import get_logger

MAX_TOOLS: Final = 1_000
MAX_SLOTS: Final = 10_000
MAX_RUNNING_LEASES: Final = 10_000
DETAILS_LIMIT_BYTES: Final = 4 * 1024

CANCELLED: Final = "CANCELLED"
LEASE_LOST: Final = str(Reason.CALL_LEASE_LOST)

_CALL_DEADLINE_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.5
# How many heartbeats a worker may miss before its stream is given up.
_MISSED_HEARTBEATS: Final = 5
_DRAIN_SECONDS: Final = 5.0

log = get_logger(__name__)


@dataclass(slots=True)
class _Offer:
    call: queue_pb2.LeasedCall
    expires_at: float


@dataclass(slots=True)
class _Running:
    """A call that this worker executes. Calls of a stream before this one have been there for ever."""

    since: float
    is_cancel_sent: bool = False


@dataclass(slots=True)
class _Worker:
    """One connected worker."""

    workspace_id: str
    worker_id: str
    tools: frozenset[str]
    slots: int
    # Bounded by what the worker can hold: its slots' offers, answers to its own messages, and one end.
    outgoing: asyncio.Queue[worker_pb2.WorkResponse | HoldfastError | None] = field(default_factory=asyncio.Queue)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    has_beat: asyncio.Event = field(default_factory=asyncio.Event)
    offers: dict[str, _Offer] = field(default_factory=dict)
    starting: set[str] = field(default_factory=set)
    running: dict[str, _Running] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    # Leases whose start was under way when the stream ended.
    unsettled: list[str] = field(default_factory=list)
    is_draining: bool = False
    leasing: asyncio.Task[list[queue_pb2.LeasedCall]] | None = None

    @property
    def free_slots(self) -> int:
        return self.slots - len(self.offers) - len(self.starting) - len(self.running)

    def send(self, response: worker_pb2.WorkResponse) -> None:
        self.outgoing.put_nowait(response)

    def cancel(self, lease: str, reason: str) -> None:
        self.send(worker_pb2.WorkResponse(cancel=worker_pb2.CallCancel(lease=lease, reason=reason)))

    def end(self, error: HoldfastError | None) -> None:
        self.outgoing.put_nowait(error)


class WorkerHub:
    """Serves the workers that are connected to this executor. An async context manager; leaving it waits for its tasks.

    Args:
        calls: State's queue of workers' calls.
        heartbeat_seconds: How often a worker has to say something.
        offer_seconds: How long an offer holds.
        poll_seconds: How often the queue is asked while a worker has free slots; hints only make it sooner.
        clock: Time for offers and heartbeats.
    """

    def __init__(
        self,
        calls: CallQueueServiceStub,
        *,
        heartbeat_seconds: float = 2.0,
        offer_seconds: float = 3.0,
        poll_seconds: float = 1.0,
        egress_base: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._calls = calls
        self._heartbeat_seconds = heartbeat_seconds
        self._offer_seconds = offer_seconds
        self._poll_seconds = poll_seconds
        self._egress_base = egress_base
        self._clock: Clock = SystemClock() if clock is None else clock
        self._workers: dict[tuple[str, str], _Worker] = {}
        # Tasks that outlive the stream for which they were begun: leases that must not get lost on their way back.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_draining = False

    @property
    def connected_workers(self) -> int:
        """How many workers are connected."""
        return len(self._workers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.drain()

    # --- hints --------------------------------------------------------------------------------------------------

    def calls_queued(self, workspace_id: str, tool: str) -> None:
        """Makes the workers that serve `tool` ask for calls at once."""
        for worker in self._workers.values():
            if worker.workspace_id == workspace_id and tool in worker.tools:
                worker.wake.set()

    def cancel_leases(self, leases: Collection[str]) -> None:
        """Tells the workers that have these calls to stop them."""
        for worker in self._workers.values():
            for lease in leases:
                self._cancel(worker, lease)

    def call_completed(self, workspace_id: str, worker_id: str, lease: str) -> None:
        """Notes that a call has its result, so that its worker can be given another one."""
        worker = self._workers.get((workspace_id, worker_id))
        if worker is not None and self._forget(worker, lease):
            worker.wake.set()

    async def drain(self) -> None:
        """Offers nothing more, gives back what was not started, and ends the streams so that workers go elsewhere."""
        self._is_draining = True
        for worker in list(self._workers.values()):
            worker.end(Unavailable("the executor is shutting down; connect again", reason=Reason.DRAINING))
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                # Tasks make tasks: a worker's end begins the return of its offers.
                while self._tasks or self._workers:
                    await asyncio.wait(self._tasks, timeout=0.05) if self._tasks else await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("worker_hub_drain_cut", workers=len(self._workers), tasks=len(self._tasks))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one worker's stream ------------------------------------------------------------------------------------

    async def serve(
        self, workspace_id: str, requests: AsyncIterator[worker_pb2.WorkRequest]
    ) -> AsyncGenerator[worker_pb2.WorkResponse, None]:
        """Serves one worker until its stream ends.

        Args:
            workspace_id: The workspace of the worker's key.
            requests: The worker's messages.

        Raises:
            InvalidArgument: A message is not as the protocol wants it.
            DeadlineExceeded: The worker has been silent for too long.
            Unavailable: DRAINING: connect to another executor.
            Aborted: The same worker has opened another stream.
        """
        if self._is_draining:
            raise Unavailable("the executor is shutting down; connect again", reason=Reason.DRAINING)
        worker = await self._greet(workspace_id, requests)
        key = (workspace_id, worker.worker_id)
        before = self._workers.get(key)
        if before is not None:
            # Its connection broke without a word; what was offered on it is given back when that stream ends.
            before.end(Aborted("this worker has opened another stream", reason=Reason.CONFLICT))
        self._workers[key] = worker
        log.info(
            "worker_connected",
            workspace_id=workspace_id,
            worker_id=worker.worker_id,
            tools=len(worker.tools),
            slots=worker.slots,
            running=len(worker.running),
        )
        interval = to_duration(self._heartbeat_seconds)
        # Not a task group around the `yield`: it would cancel whoever iterates, at a place that is not in here.
        life = asyncio.create_task(self._live(worker, requests))
        life.add_done_callback(lambda task: worker.end(_end_of(task)))
        try:
            yield worker_pb2.WorkResponse(
                welcome=worker_pb2.WorkerWelcome(heartbeat_interval=interval, workspace_id=workspace_id)
            )
            while True:
                response = await worker.outgoing.get()
                if response is None:
                    return
                if isinstance(response, HoldfastError):
                    raise response
                yield response
        finally:
            if self._workers.get(key) is worker:
                del self._workers[key]
            life.cancel()
            self._spawn(self._clean_up(worker, life))

    async def _greet(self, workspace_id: str, requests: AsyncIterator[worker_pb2.WorkRequest]) -> _Worker:
        try:
            async with asyncio.timeout(self._longest_silence):
                first = await anext(requests, None)
        except TimeoutError as error:
            raise DeadlineExceeded("the worker did not say hello in time") from error
        if first is None or first.WhichOneof("kind") != "hello":
            raise InvalidArgument("the first message of the stream must be hello", field="hello")
        hello = first.hello
        _check_id("hello.worker_id", hello.worker_id)
        if not 1 <= hello.slots <= MAX_SLOTS:
            raise InvalidArgument(f"expected 1 to {MAX_SLOTS} slots", field="hello.slots")
        if not 1 <= len(hello.tools) <= MAX_TOOLS:
            raise InvalidArgument(f"expected 1 to {MAX_TOOLS} tools", field="hello.tools")
        for index, tool in enumerate(hello.tools):
            if not tool.name or len(tool.name) > 64:
                raise InvalidArgument("expected 1 to 64 characters", field=f"hello.tools[{index}].name")
        if len(hello.running_leases) > MAX_RUNNING_LEASES:
            raise InvalidArgument(f"expected at most {MAX_RUNNING_LEASES} leases", field="hello.running_leases")
        worker = _Worker(workspace_id, hello.worker_id, frozenset(tool.name for tool in hello.tools), hello.slots)
        now = self._clock.monotonic()
        worker.running = {lease: _Running(now) for lease in hello.running_leases}
        if worker.running:
            # Which of them are still its own is asked at once.
            worker.details = dict.fromkeys(worker.running, "")
            worker.has_beat.set()
        worker.wake.set()
        return worker

    @property
    def _longest_silence(self) -> float:
        return max(self._heartbeat_seconds * _MISSED_HEARTBEATS, 10.0)

    async def _live(self, worker: _Worker, requests: AsyncIterator[worker_pb2.WorkRequest]) -> None:
        """Everything that happens on a stream but the writing; ends when the worker has nothing more to say."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self._keep_leasing(worker)),
                tasks.create_task(self._keep_renewing(worker)),
                tasks.create_task(self._notice_silence(worker)),
            ]
            async for request in requests:
                worker.heard.set()
                match request.WhichOneof("kind"):
                    case "start":
                        self._begin_start(worker, request.start.lease, tasks)
                    case "heartbeat":
                        self._take_heartbeat(worker, request.heartbeat)
                    case "drain":
                        worker.is_draining = True
                        self._return_offers(worker)
                    case "hello":
                        raise InvalidArgument("hello is the first message only", field="hello")
                    case _:
                        raise InvalidArgument("the message has none of start, heartbeat, drain", field="kind")
            for helper in helpers:
                helper.cancel()

    async def _notice_silence(self, worker: _Worker) -> None:
        while True:
            worker.heard.clear()
            try:
                async with asyncio.timeout(self._longest_silence):
                    await worker.heard.wait()
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"no message for {self._longest_silence:g} s; one is due every {self._heartbeat_seconds:g} s"
                ) from error

    async def _clean_up(self, worker: _Worker, life: asyncio.Task[None]) -> None:
        await asyncio.wait((life,))
        if not life.cancelled() and (error := life.exception()) is not None and not _is_expected(error):
            log.error("worker_stream_failed", worker_id=worker.worker_id, exc_info=error)
        # State keeps those that it has stored as started, and refuses to start what was returned.
        returned = [*worker.offers, *worker.unsettled]
        worker.offers.clear()
        if worker.leasing is not None:
            # What state has just leased for this worker would else wait for the offer to run out.
            await asyncio.wait((worker.leasing,))
            if not worker.leasing.cancelled() and worker.leasing.exception() is None:
                returned.extend(call.lease for call in worker.leasing.result())
        await self._give_back(worker, returned)
        log.info("worker_disconnected", workspace_id=worker.workspace_id, worker_id=worker.worker_id)

    # --- offers -------------------------------------------------------------------------------------------------

    async def _keep_leasing(self, worker: _Worker) -> None:
        while True:
            worker.wake.clear()
            self._expire_offers(worker)
            free = worker.free_slots
            if free > 0 and not worker.is_draining and not self._is_draining:
                # A task of the hub: a stream that breaks meanwhile must not lose what state answers.
                worker.leasing = self._spawn(self._lease(worker, free))
                calls = await asyncio.shield(worker.leasing)
                worker.leasing = None
                for call in calls:
                    self._offer(worker, call)
                if calls and worker.free_slots > 0:
                    continue
            # Jitter: the workers of one executor do not all ask in the same instant.
            pause = self._poll_seconds * random.uniform(0.8, 1.2)
            try:
                async with asyncio.timeout(pause):
                    await worker.wake.wait()
            except TimeoutError:
                continue

    async def _lease(self, worker: _Worker, free: int) -> list[queue_pb2.LeasedCall]:
        duration = to_duration(self._offer_seconds)
        try:
            with calling("state"):
                response = await self._calls.LeaseCalls(
                    queue_pb2.LeaseCallsRequest(
                        workspace_id=worker.workspace_id,
                        worker_id=worker.worker_id,
                        tools=sorted(worker.tools),
                        max_calls=free,
                        offer_duration=duration,
                    ),
                    timeout=_CALL_DEADLINE_SECONDS,
                )
        except HoldfastError as error:
            log.warning("calls_not_leased", worker_id=worker.worker_id, reason=error.reason)
            return []
        return list(response.calls)

    def _offer(self, worker: _Worker, call: queue_pb2.LeasedCall) -> None:
        worker.offers[call.lease] = _Offer(call, self._clock.monotonic() + self._offer_seconds)
        worker.send(
            worker_pb2.WorkResponse(
                offer=worker_pb2.CallOffer(
                    lease=call.lease,
                    run_id=call.run_id,
                    step=call.step,
                    attempt=call.attempt,
                    tool=call.tool,
                    arguments_json=call.arguments_json,
                    idempotency_key=call.idempotency_key,
                    timeout=call.timeout,
                    agent=call.agent,
                    user_id=call.user_id,
                    last_heartbeat_details=call.last_heartbeat_details,
                    traceparent=traceparent_of_step(call.run_id, call.step, call.root_run_id),
                    expire_time=call.offer_expire_time,
                    egress_url=egress_url(self._egress_base, worker.workspace_id, worker.worker_id, call.lease),
                )
            )
        )

    def _expire_offers(self, worker: _Worker) -> None:
        now = self._clock.monotonic()
        for lease in [lease for lease, offer in worker.offers.items() if offer.expires_at <= now]:
            # State has taken it back by its own clock; a worker that starts it now would be refused.
            del worker.offers[lease]
            worker.cancel(lease, LEASE_LOST)

    def _return_offers(self, worker: _Worker) -> None:
        leases = [*worker.offers]
        worker.offers.clear()
        for lease in leases:
            worker.cancel(lease, LEASE_LOST)
        if leases:
            self._spawn(self._give_back(worker, leases))

    async def _give_back(self, worker: _Worker, leases: list[str]) -> None:
        if not leases:
            return
        try:
            with calling("state"):
                await self._calls.ReturnCalls(
                    queue_pb2.ReturnCallsRequest(
                        workspace_id=worker.workspace_id, worker_id=worker.worker_id, leases=leases
                    ),
                    timeout=_CALL_DEADLINE_SECONDS,
                )
        except HoldfastError as error:
            # They are given to others once the offer has run out.
            log.info("offers_not_returned", worker_id=worker.worker_id, leases=len(leases), reason=error.reason)

    # --- calls that run -----------------------------------------------------------------------------------------

    def _begin_start(self, worker: _Worker, lease: str, tasks: asyncio.TaskGroup) -> None:
        if not lease:
            raise InvalidArgument("is required", field="start.lease")
        if lease in worker.starting:
            return
        if lease in worker.running:
            # Its `go` may have been lost with an earlier stream.
            worker.send(worker_pb2.WorkResponse(go=worker_pb2.CallGo(lease=lease)))
            return
        # An unknown lease goes to state as well: it may be an offer of a stream before this one.
        worker.offers.pop(lease, None)
        worker.starting.add(lease)
        tasks.create_task(self._start(worker, lease))

    async def _start(self, worker: _Worker, lease: str) -> None:
        request = queue_pb2.StartCallRequest(workspace_id=worker.workspace_id, worker_id=worker.worker_id, lease=lease)
        try:
            while True:
                try:
                    with calling("state"):
                        await self._calls.StartCall(request, timeout=_CALL_DEADLINE_SECONDS)
                    break
                except (Unavailable, DeadlineExceeded):
                    # It may be stored already, and may be repeated; the lease running out ends this.
                    await self._clock.sleep(_RETRY_SECONDS)
        except asyncio.CancelledError:
            worker.unsettled.append(lease)
            raise
        except HoldfastError as error:
            if not isinstance(error, LeaseLost):
                log.warning("call_not_started", worker_id=worker.worker_id, reason=error.reason)
            worker.cancel(lease, LEASE_LOST)
            worker.wake.set()
        else:
            # Order matters: whoever hears `go` may complete the call at once.
            worker.running[lease] = _Running(self._clock.monotonic())
            worker.send(worker_pb2.WorkResponse(go=worker_pb2.CallGo(lease=lease)))
        finally:
            worker.starting.discard(lease)

    def _take_heartbeat(self, worker: _Worker, heartbeat: worker_pb2.WorkerHeartbeat) -> None:
        if len(heartbeat.running) > MAX_RUNNING_LEASES:
            raise InvalidArgument(f"expected at most {MAX_RUNNING_LEASES} leases", field="heartbeat.running")
        worker.details = {lease: _capped(details) for lease, details in heartbeat.running.items() if lease}
        now = self._clock.monotonic()
        for lease in worker.details:
            if lease not in worker.running and lease not in worker.offers and lease not in worker.starting:
                worker.running[lease] = _Running(now)
        # A call that the worker no longer names is over, wherever it was reported; a fresh one it may not name yet.
        settled = now - 2 * self._heartbeat_seconds
        gone = [lease for lease, call in worker.running.items() if lease not in worker.details and call.since < settled]
        for lease in gone:
            del worker.running[lease]
        if gone:
            worker.wake.set()
        if worker.details:
            worker.has_beat.set()

    async def _keep_renewing(self, worker: _Worker) -> None:
        while True:
            await worker.has_beat.wait()
            # Beats that come while one is being stored are stored together.
            worker.has_beat.clear()
            request = queue_pb2.RenewCallsRequest(
                workspace_id=worker.workspace_id, worker_id=worker.worker_id, running=worker.details
            )
            try:
                with calling("state"):
                    response = await self._calls.RenewCalls(request, timeout=_CALL_DEADLINE_SECONDS)
            except HoldfastError as error:
                log.warning("calls_not_renewed", worker_id=worker.worker_id, reason=error.reason)
                continue
            for lease in response.lost_leases:
                # A call that was completed a moment ago is not lost, it is over.
                if self._forget(worker, lease):
                    worker.cancel(lease, LEASE_LOST)
                    worker.wake.set()
            for lease in response.cancelled_leases:
                self._cancel(worker, lease)

    def _cancel(self, worker: _Worker, lease: str) -> None:
        running = worker.running.get(lease)
        if running is not None:
            if not running.is_cancel_sent:
                running.is_cancel_sent = True
                worker.cancel(lease, CANCELLED)
        elif worker.offers.pop(lease, None) is not None:
            worker.cancel(lease, CANCELLED)
            worker.wake.set()

    def _forget(self, worker: _Worker, lease: str) -> bool:
        worker.details.pop(lease, None)
        return (worker.running.pop(lease, None) is not None) | (worker.offers.pop(lease, None) is not None)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        # A bare task: it outlives the stream that begins it. `drain` waits for all of them.
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _end_of(life: asyncio.Task[None]) -> HoldfastError | None:
    """Returns what the stream ends with: nothing when the worker has left, or what it did wrong."""
    if life.cancelled():
        return None
    error = life.exception()
    if error is None:
        return None
    leaves = _leaves(error)
    return next((leaf for leaf in leaves if isinstance(leaf, HoldfastError)), None) or Unavailable(
        "the stream broke", reason=Reason.EXECUTOR_UNAVAILABLE
    )


def _is_expected(error: BaseException) -> bool:
    return all(isinstance(leaf, HoldfastError) for leaf in _leaves(error))


def _leaves(error: BaseException) -> Iterable[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


def _check_id(path: str, text: str) -> None:
    if not text or len(text) > 64 or not text.isascii() or not text.isprintable():
        raise InvalidArgument("expected a UUID, or up to 64 printable ASCII characters", field=path)


def _capped(details: str) -> str:
    # Shortened, not refused: a refusal would end the stream, and with it the calls that run.
    return details.encode()[:DETAILS_LIMIT_BYTES].decode(errors="ignore")
