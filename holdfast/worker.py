"""`Worker`: a process of the user's that executes calls of tools, over one stream to an executor.

Nothing is executed before the executor says `go`, and nothing twice: a call's lease is remembered when it is done. A
broken stream does not stop what runs; its end is reported until somebody answers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import random
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import Any, Final

import grpc
import grpc.aio

from holdfast.api.executor.v1 import tool_worker_service_pb2 as pb
from holdfast.api.executor.v1.tool_worker_service_pb2_grpc import ToolWorkerServiceStub
from holdfast.cancellation import raise_if_cancelled
from holdfast.credential import Credential, HandedOut
from holdfast.errors import (
    Aborted,
    DeadlineExceeded,
    HoldfastError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from holdfast.ids import new_uuid7
from holdfast.settings import resolve
from holdfast.tool import SIGN_IN_REASONS, SignInNeeded, Tool, ToolContext, ToolError, by_name
from holdfast.tool_calls import MAX_ERROR_CHARACTERS, Call, CallFailed, Phase, execute
from holdfast.transport import Transport
from holdfast.version import __version__

_FIRST_BACKOFF_SECONDS: Final = 0.1
_LONGEST_BACKOFF_SECONDS: Final = 5.0
_REPORT_TIMEOUT_SECONDS: Final = 30.0
# A token that is renewed at a slow provider is waited for.
_CREDENTIAL_TIMEOUT_SECONDS: Final = 45.0
# Details of a heartbeat are sent as they come, but not more often than this.
_SHORTEST_BEAT_SECONDS: Final = 0.2
_REMEMBERED_LEASES: Final = 10_000
_STALE_OFFER_SECONDS: Final = 60.0
_FAREWELL_SECONDS: Final = 1.0

log = logging.getLogger("holdfast.worker")


class Worker:
    """Executes calls of tools for the agents of a workspace.

    Example:
        Worker([read_mail, refund_invoice]).run_forever()

    Args:
        tools: Tools made by `@tool`, or plain functions.
        slots: How many calls are executed at once.
        address: The executor; as for `Client`.
        api_key: As for `Client`; its scopes must contain `workers`.
        profile: As for `Client`.

    Raises:
        ValueError: There is no tool, two have one name, or `slots` is less than 1.
    """

    def __init__(
        self,
        tools: Iterable[Tool[Any, Any] | Callable[..., Any]],
        *,
        slots: int = 8,
        address: str | None = None,
        api_key: str | None = None,
        profile: str | None = None,
    ) -> None:
        self.tools = by_name(tools)
        if not self.tools:
            raise ValueError("a worker needs at least one tool")
        if slots < 1:
            raise ValueError(f"slots={slots}: a worker executes at least one call at once")
        self.slots = slots
        self.worker_id = new_uuid7()
        self.connected = asyncio.Event()
        """Set while an executor knows this worker."""
        self._given = (address, api_key, profile)
        self._calls: dict[str, Call] = {}
        self._done: OrderedDict[str, None] = OrderedDict()
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._beat_now = asyncio.Event()
        self._handed_out = HandedOut()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Worker {', '.join(self.tools)}>"

    def run_forever(self) -> None:
        """Serves until SIGTERM or SIGINT; then takes no new calls, ends those it runs, and returns.

        A second signal ends the process at once; what it was running is then treated by each tool's effect class.

        Raises:
            HoldfastError: The executor refuses this worker: its key, or what it announces.
        """
        asyncio.run(self._run_with_signals())

    async def _run_with_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._draining.is_set():
                # Threads of sync tools can't be stopped; waiting for them is what the first signal was for.
                os._exit(130)
            if self._calls:
                log.warning("finishing %d running calls; once more to stop at once", len(self._calls))
            self.drain()

        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, on_signal)
        try:
            await self.run()
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def drain(self) -> None:
        """Takes no new calls from now on; `run` returns when those that run are reported. For the loop's thread."""
        self._draining.set()

    async def run(self) -> None:
        """Serves until `drain` is called or the task is cancelled.

        Raises:
            HoldfastError: The executor refuses this worker: its key, or what it announces.
        """
        self._loop = asyncio.get_running_loop()
        address, api_key, profile = self._given
        transport = Transport(resolve(address=address, api_key=api_key, profile=profile))
        try:
            # The calls' tasks belong to this group, not to a stream: they outlive each of its streams.
            async with asyncio.TaskGroup() as group:
                await self._serve(transport, group)
        except BaseExceptionGroup as failures:
            # The group's only other members are calls, which end in reports and never raise.
            raise failures.exceptions[0] from None
        finally:
            await transport.close()

    async def _serve(self, transport: Transport, group: asyncio.TaskGroup) -> None:
        failures = 0
        while not (self._draining.is_set() and not self._calls):
            stream = _Stream(self, transport, group)
            failure: HoldfastError | None = None
            try:
                await stream.serve()
            except grpc.RpcError as error:
                raise_if_cancelled()
                failure = transport.error("executor", error)
            except HoldfastError as error:
                failure = error
            finally:
                self.connected.clear()
            if stream.was_welcome:
                failures = 0
            if failure is not None and _is_refusal(failure) and not self._calls:
                raise failure
            if self._draining.is_set() and not self._calls:
                return
            delay = _backoff_seconds(failures)
            # The first failure is news, and then each that takes twice as many as the one before.
            if failure is not None and failures & (failures - 1) == 0:
                log.warning("%s; trying again", failure)
            failures += 1
            await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        if self._draining.is_set():
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            pass

    # ------------------------------------------------------------------------------------------------------- calls

    def _accept(self, offer: pb.CallOffer, transport: Transport) -> bool:
        """Notes an offer; False when it is not for this worker now, so that it goes to another one."""
        if offer.lease in self._done or self._draining.is_set():
            return False
        if offer.lease in self._calls:
            return self._calls[offer.lease].phase is Phase.OFFERED
        tool = self.tools.get(offer.tool)
        # A call that is being reported has left its slot: the next offer may come before the report's answer.
        busy = sum(call.phase is not Phase.REPORTING for call in self._calls.values())
        if tool is None or busy >= self.slots:
            return False
        context = ToolContext(
            idempotency_key=offer.idempotency_key,
            run_id=offer.run_id,
            step=offer.step,
            attempt=offer.attempt,
            agent=offer.agent,
            user_id=offer.user_id,
            last_heartbeat_details=offer.last_heartbeat_details,
            traceparent=offer.traceparent,
            egress_url=offer.egress_url,
            on_heartbeat=lambda details: self._on_heartbeat(offer.lease, details),
            on_credential=lambda rejected: self._on_credential(offer.lease, rejected, transport),
        )
        self._calls[offer.lease] = Call(offer, tool, context)
        self._idle.clear()
        return True

    def _go(self, lease: str, transport: Transport, group: asyncio.TaskGroup) -> None:
        call = self._calls.get(lease)
        # Invariant: a call is executed only on the first `go` of its lease.
        if call is None or call.phase is not Phase.OFFERED:
            return
        call.phase = Phase.RUNNING
        log.info("call of %s begins", call)
        call.task = group.create_task(self._execute_and_report(call, transport))

    def _cancel(self, lease: str, reason: str) -> None:
        call = self._calls.get(lease)
        if call is None:
            return
        if call.phase is Phase.OFFERED:
            self._forget(call)
            return
        log.info("call of %s is to stop: %s", call, reason)
        call.context.cancel()
        # What may not be repeated is not torn apart in the middle: it sees `is_cancelled`.
        is_breakable = call.tool.is_async and call.tool.effect != "at_most_once"
        if call.phase is Phase.RUNNING and is_breakable and not call.is_stopped:
            assert call.task is not None
            call.is_stopped = True
            call.task.cancel()

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.lease, None)
        self._done[call.lease] = None
        while len(self._done) > _REMEMBERED_LEASES:
            self._done.popitem(last=False)
        if not self._calls:
            self._idle.set()

    def _on_heartbeat(self, lease: str, details: str) -> None:
        """Called by tools, from any thread."""
        loop = self._loop
        assert loop is not None

        def note() -> None:
            call = self._calls.get(lease)
            if call is not None:
                call.details = self._handed_out.scrubbed(details)
                self._beat_now.set()

        if not loop.is_closed():
            loop.call_soon_threadsafe(note)

    def _on_credential(
        self, lease: str, rejected_fingerprint: str, transport: Transport
    ) -> concurrent.futures.Future[Credential]:
        """Called by tools, from any thread and any loop."""
        loop = self._loop
        assert loop is not None
        if loop.is_closed():
            raise ToolError("the worker has stopped")
        return asyncio.run_coroutine_threadsafe(self._get_credential(lease, rejected_fingerprint, transport), loop)

    async def _get_credential(self, lease: str, rejected_fingerprint: str, transport: Transport) -> Credential:
        stub = transport.stub("executor", ToolWorkerServiceStub)
        request = pb.GetCallCredentialRequest(
            worker_id=self.worker_id, lease=lease, rejected_fingerprint=rejected_fingerprint
        )
        try:
            answer = await transport.call(
                "executor", stub.GetCallCredential, request, timeout=_CREDENTIAL_TIMEOUT_SECONDS
            )
        except HoldfastError as error:
            if error.reason in SIGN_IN_REASONS:
                raise SignInNeeded(error.message) from error
            # Of nothing that was refused anything can have come about; waiting helps only where somebody is away.
            is_away = isinstance(error, (Unavailable, DeadlineExceeded, ResourceExhausted))
            raise ToolError(f"there is no credential: {error.message}", retryable=is_away) from error
        credential = Credential(
            answer.secret,
            fingerprint=answer.fingerprint,
            headers={field.name: field.value for field in answer.headers},
            query={field.name: field.value for field in answer.query},
            expire_time=answer.expire_time.ToDatetime(tzinfo=UTC) if answer.HasField("expire_time") else None,
            base_url=answer.base_url,
        )
        self._handed_out.learn(credential)
        return credential

    async def _execute_and_report(self, call: Call, transport: Transport) -> None:
        request = pb.CompleteCallRequest(worker_id=self.worker_id, lease=call.lease)
        try:
            request.result_json = await execute(call, self._handed_out)
        except CallFailed as failed:
            request.error.CopyFrom(failed.error)
        call.phase = Phase.REPORTING
        await self._report(call, request, transport)
        self._forget(call)

    async def _report(self, call: Call, request: pb.CompleteCallRequest, transport: Transport) -> None:
        """Repeats CompleteCall until it is answered; the same report twice is answered the same."""
        stub = transport.stub("executor", ToolWorkerServiceStub)
        failures = 0
        while True:
            try:
                await transport.call("executor", stub.CompleteCall, request, timeout=_REPORT_TIMEOUT_SECONDS)
                log.info("call of %s %s", call, "failed" if request.HasField("error") else "is done")
                return
            except (Aborted, NotFound) as error:
                log.warning("the result of %s came too late to count: %s", call, error)
                return
            except InvalidArgument as error:
                if request.HasField("error"):
                    log.error("the report of %s was refused: %s", call, error)
                    return
                message = f"the tool ran, but its result was refused: {error.message}"
                request.error.CopyFrom(pb.CallError(message=message[:MAX_ERROR_CHARACTERS]))
            except HoldfastError as error:
                delay = _backoff_seconds(failures)
                if error.retry_delay_seconds is not None and error.origin == "remote":
                    delay = max(delay, min(error.retry_delay_seconds, 60.0))
                if failures == 0:
                    log.warning("the result of %s can't be reported yet: %s", call, error)
                failures += 1
                await asyncio.sleep(delay)


class _Stream:
    """One stream of the worker: from `hello` until it breaks, or until nothing is left to do."""

    def __init__(self, worker: Worker, transport: Transport, group: asyncio.TaskGroup) -> None:
        self.was_welcome = False
        self._worker = worker
        self._transport = transport
        self._group = group
        self._interval_seconds = 5.0
        # Writes are serialized: grpc allows one at a time.
        self._writing = asyncio.Lock()
        self._drain_was_sent = False

    async def serve(self) -> None:
        worker = self._worker
        stub = self._transport.stub("executor", ToolWorkerServiceStub)
        self._call = stub.Work(metadata=self._transport.metadata())
        try:
            await self._write(hello=self._hello())
            response = await self._read()
            if response is None:
                return
            if response.WhichOneof("kind") != "welcome":
                raise Unavailable("the executor did not answer `hello` with `welcome`")
            self.was_welcome = True
            self._interval_seconds = max(response.welcome.heartbeat_interval.ToNanoseconds() / 1e9, 0.1)
            worker.connected.set()
            log.info(
                "serving %s at %s, workspace %s",
                ", ".join(worker.tools),
                self._transport.address("executor"),
                response.welcome.workspace_id,
            )
            await self._converse()
        finally:
            self._call.cancel()

    def _hello(self) -> pb.WorkerHello:
        worker = self._worker
        return pb.WorkerHello(
            worker_id=worker.worker_id,
            tools=[tool.served() for tool in worker.tools.values()],
            slots=worker.slots,
            running_leases=[call.lease for call in worker._calls.values() if call.phase is not Phase.OFFERED],
            client=f"holdfast-python {__version__}",
        )

    async def _converse(self) -> None:
        # The conversation ends with its first part that ends: the reader when the stream does, the drain when all
        # is reported. The other parts are then cancelled.
        parts = [
            asyncio.ensure_future(part) for part in (self._read_all(), self._beat_forever(), self._drain_when_told())
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        for part in done:
            part.result()

    async def _read_all(self) -> None:
        worker = self._worker
        # `start` was sent on the stream that broke, but its `go` has not come: it may be asked for again.
        for call in list(worker._calls.values()):
            if call.phase is Phase.OFFERED:
                await self._write(start=pb.StartCall(lease=call.lease))
        while (response := await self._read()) is not None:
            kind = response.WhichOneof("kind")
            if kind == "offer":
                if worker._accept(response.offer, self._transport):
                    await self._write(start=pb.StartCall(lease=response.offer.lease))
            elif kind == "go":
                worker._go(response.go.lease, self._transport, self._group)
            elif kind == "cancel":
                worker._cancel(response.cancel.lease, response.cancel.reason)

    async def _beat_forever(self) -> None:
        worker = self._worker
        # Twice as often as needed: one late beat is no lost worker.
        pause = self._interval_seconds / 2
        while True:
            try:
                async with asyncio.timeout(pause):
                    await worker._beat_now.wait()
            except TimeoutError:
                pass
            worker._beat_now.clear()
            self._forget_stale_offers()
            running = {call.lease: call.details for call in worker._calls.values() if call.phase is not Phase.OFFERED}
            await self._write(heartbeat=pb.WorkerHeartbeat(running=running))
            await asyncio.sleep(min(_SHORTEST_BEAT_SECONDS, pause / 2))

    async def _drain_when_told(self) -> None:
        worker = self._worker
        await worker._draining.wait()
        await self._write(drain=pb.WorkerDrain())
        # A call whose `start` is on its way may be stored as started: its `go` or `cancel` is waited for as well.
        await worker._idle.wait()
        async with self._writing:
            await self._call.done_writing()
        # The executor ends the stream now, which ends the reader and with it the conversation.
        await asyncio.sleep(_FAREWELL_SECONDS)

    def _forget_stale_offers(self) -> None:
        # Whoever made these offers is gone; a slot must not wait for a `go` that nobody will send.
        oldest = asyncio.get_running_loop().time() - _STALE_OFFER_SECONDS
        for call in list(self._worker._calls.values()):
            if call.phase is Phase.OFFERED and call.offered_at < oldest:
                self._worker._forget(call)

    async def _write(self, **kind: Any) -> None:
        async with self._writing:
            try:
                await self._call.write(pb.WorkRequest(**kind))
            except asyncio.InvalidStateError:
                # The stream is over; reading raises the status with which it ended.
                await self._call.read()
                raise Unavailable("the executor has ended the stream", reason="EXECUTOR_UNAVAILABLE") from None

    async def _read(self) -> pb.WorkResponse | None:
        response = await self._call.read()
        # grpc.aio.EOF: the executor has ended the stream, which a draining one does.
        return response if isinstance(response, pb.WorkResponse) else None


def _is_refusal(error: HoldfastError) -> bool:
    return isinstance(error, (Unauthenticated, PermissionDenied, InvalidArgument))


def _backoff_seconds(failures: int) -> float:
    bound = min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 20), _LONGEST_BACKOFF_SECONDS)
    return random.uniform(bound / 2, bound)


def tools_of(candidate: Any) -> Sequence[Tool[Any, Any]]:
    """Returns the tools that a module, list or tool stands for: `holdfast worker module:name` serves them.

    Raises:
        TypeError: It is none of them.
    """
    if isinstance(candidate, Tool):
        return [candidate]
    if isinstance(candidate, Worker):
        return list(candidate.tools.values())
    if isinstance(candidate, (list, tuple, set, frozenset)):
        return list(by_name(candidate).values())
    if isinstance(candidate, dict):
        return list(by_name(candidate.values()).values())
    raise TypeError("expected a list of tools, a Worker, or a module with @tool functions")
