"""Claims runs while there are free slots, drives each in a task, renews the lease, and hands everything back on drain.

Promise P3 is kept by the epoch in every write: a driver whose run was taken over is refused at its next transition, and
begins nothing without one. So an executor that cannot reach state lets what is under way go on, and asks at its return
(`held`) which runs are still its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import grpc
import grpc.aio

from holdfast.api.state.v1 import lease_service_pb2 as lease_pb2
from holdfast.api.state.v1.lease_service_pb2_grpc import LeaseServiceStub
from holdfast.cancellation import raise_if_cancelled
from holdfast.errors import HoldfastError
from services.executor import retries
from services.executor.driver import DriveEnd, Driver, DriverParts
from services.executor.worker_hub import WorkerHub
from services.shared.telemetry import get_logger

DEFAULT_HEARTBEAT_SECONDS = 1.0
DEFAULT_LEASE_SECONDS = 5.0
# A run that cannot be driven (state away, a bug) is kept this long before it is given back, so that it does not spin.
FAILED_DRIVE_PAUSE_SECONDS = 1.0
LONGEST_FAILED_DRIVE_PAUSE_SECONDS = 30.0
MAX_EARLY_NUDGES = 1_000

WorkCall = grpc.aio.StreamStreamCall[lease_pb2.WorkRequest, lease_pb2.WorkResponse]

log = get_logger(__name__)


@dataclass(slots=True)
class _Drive:
    driver: Driver
    task: asyncio.Task[None]


class Scheduler:
    """Owns the lease stream and the drivers.

    Args:
        leases: State's leases.
        parts: What all drivers share.
        hub: The workers, who are told of new and cancelled calls.
        max_runs: How many runs are driven at once.
    """

    def __init__(self, leases: LeaseServiceStub, parts: DriverParts, hub: WorkerHub, *, max_runs: int) -> None:
        self._leases = leases
        self._parts = parts
        self._hub = hub
        self._max_runs = max_runs
        self._drives: dict[str, _Drive] = {}
        self._released: list[lease_pb2.HeldRun] = []
        self._failed_drives: dict[str, int] = {}
        # Of runs whose claim may be on its way, oldest first.
        self._early_nudges: dict[str, None] = {}
        # Slots for runs that are just being created, to be driven here.
        self._reserved = 0
        # Free slots that state still counts with: what it was told of, less what it has claimed since.
        self._offered = 0
        self._must_report = asyncio.Event()
        self._is_draining = False
        self._stream_closed = asyncio.Event()
        self._all_done = asyncio.Event()
        self._all_done.set()
        self._heartbeat_seconds = DEFAULT_HEARTBEAT_SECONDS
        self._lease_seconds = DEFAULT_LEASE_SECONDS
        self._call: WorkCall | None = None
        self._tasks: asyncio.TaskGroup | None = None
        # When the last report was sent, and when the last one that state has answered was.
        self._reported_at = 0.0
        self._renewed_at = 0.0
        # Set while state answers on the stream: drivers whose runs are lost have been told.
        self._is_connected = asyncio.Event()

    @property
    def executor_id(self) -> str:
        """Who drives the runs."""
        return self._parts.executor_id

    @property
    def active_runs(self) -> int:
        """How many runs are driven now."""
        return len(self._drives)

    def reserve(self) -> bool:
        """Keeps a slot for a run that is about to be created; False when there is none, or nobody to vouch for it.

        The last eighth of the slots is for claims: who starts runs without a pause must not keep out those that wait.
        """
        if self._is_draining or self._tasks is None or not self._is_connected.is_set():
            return False
        if self._free_slots() <= self._max_runs // 8:
            return False
        self._reserved += 1
        if self._free_slots() <= 0 < self._offered:
            self._must_report.set()
        return True

    def release(self) -> None:
        """The slot is not needed: the run was not created, or somebody else drives it."""
        self._reserved -= 1

    def begin(self, claim: lease_pb2.Claim) -> None:
        """Drives a run that was claimed for this executor as it was created, on the slot that was reserved for it."""
        self._reserved -= 1
        # Otherwise the stream has ended since, and with it every lease.
        if self._tasks is not None:
            self._begin_drive(claim, self._tasks)

    def _free_slots(self) -> int:
        return 0 if self._is_draining else self._max_runs - len(self._drives) - self._reserved

    async def run(self) -> None:
        """Serves until it is cancelled, or drained."""

        def announce(attempt: int, error: BaseException | None) -> None:
            level = log.info if attempt == 1 else log.debug
            level("lease_stream_broken", runs=len(self._drives))

        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while not (self._is_draining and not self._drives):
                    async for attempt in retries.reconnecting(announce, ConnectionError):
                        with attempt:
                            await self._serve_stream(tasks)
            finally:
                self._tasks = None
                self._stream_closed.set()
                for drive in self._drives.values():
                    drive.task.cancel()

    async def drain(self) -> None:
        """Takes no new runs, lets what is under way be stored, and gives the rest back."""
        self._is_draining = True
        for drive in list(self._drives.values()):
            drive.driver.stop()
        self._must_report.set()
        try:
            await self._all_done.wait()
        except asyncio.CancelledError:
            log.info("drain_cut_short", runs=len(self._drives))
            for drive in list(self._drives.values()):
                drive.task.cancel()
            raise
        finally:
            self._must_report.set()
        await self._stream_closed.wait()

    # --- the stream -------------------------------------------------------------------------------------------

    async def _serve_stream(self, tasks: asyncio.TaskGroup) -> None:
        call = self._call = self._leases.Work()
        first = self._report()
        first.held.extend(
            lease_pb2.HeldRun(run_id=drive.driver.run_id, epoch=drive.driver.epoch) for drive in self._drives.values()
        )
        has_answered = False
        try:
            self._reported_at = asyncio.get_running_loop().time()
            await call.write(first)
            reporter = asyncio.create_task(self._send_reports(call))  # ended below, on every path
            try:
                async for response in call:
                    self._handle(response, tasks)
                    if not has_answered:
                        has_answered = True
                        self._is_connected.set()
                        # What was said to them while the stream was away is lost: they read it themselves.
                        for drive in self._drives.values():
                            drive.driver.nudge()
            finally:
                reporter.cancel()
                await asyncio.gather(reporter, return_exceptions=True)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise_if_cancelled()
            # A stream that worked is re-opened at once; one that never did is tried again with growing pauses.
            if not has_answered:
                raise ConnectionError("the lease stream could not be opened") from error
            log.info("lease_stream_broken", runs=len(self._drives))
        except asyncio.CancelledError:
            # A call that is cancelled here ends its reader as if the reader's task had been cancelled.
            task = asyncio.current_task()
            if not call.cancelled() or task is None or task.cancelling():
                raise
            has_answered = True
        finally:
            self._is_connected.clear()
            call.cancel()
        if not has_answered and not self._is_draining:
            raise ConnectionError("the lease stream was closed")

    async def _send_reports(self, call: WorkCall) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._must_report.wait()
            self._must_report.clear()
            if asyncio.get_running_loop().time() - self._renewed_at > self._lease_seconds:
                # This process was stopped, or state did not answer, for longer than the leases last. A report would be
                # answered as if nothing had happened: a new stream asks which runs are still held here.
                log.warning("leases_not_renewed", runs=len(self._drives))
                call.cancel()
                return
            report = self._report()
            self._reported_at = asyncio.get_running_loop().time()
            await call.write(report)
            if self._is_draining and not self._drives:
                await call.done_writing()
                return

    def _report(self) -> lease_pb2.WorkRequest:
        released, self._released = self._released, []
        self._offered = self._free_slots()
        return lease_pb2.WorkRequest(
            executor_id=self._parts.executor_id,
            free_slots=self._offered,
            released=released,
            draining=self._is_draining,
        )

    async def _lease_holds(self) -> None:
        """Returns once the leases are known to hold, so that what is dispatched now is dispatched under a lease.

        A process that was stopped for longer than its leases last does not know what became of its runs: it asks, by
        a new stream, and the drivers of lost runs are cancelled before this returns to them.
        """
        while True:
            await self._is_connected.wait()
            if asyncio.get_running_loop().time() - self._renewed_at < self._lease_seconds:
                return
            log.warning("leases_not_renewed", runs=len(self._drives))
            self._is_connected.clear()
            assert self._call is not None
            self._call.cancel()

    def _handle(self, response: lease_pb2.WorkResponse, tasks: asyncio.TaskGroup) -> None:
        # Not the time of the answer: after a stop of this process it may have lain here for long.
        self._renewed_at = self._reported_at
        if response.HasField("heartbeat_interval"):
            self._heartbeat_seconds = response.heartbeat_interval.ToTimedelta().total_seconds()
        if response.HasField("lease_duration"):
            self._lease_seconds = response.lease_duration.ToTimedelta().total_seconds()
        self._offered -= len(response.claims)
        for claim in response.claims:
            if self._free_slots() > 0 or claim.run.run_id in self._drives:
                self._begin_drive(claim, tasks)
            else:
                # It crossed the start of another run on the way.
                self._give_back(claim.run.run_id, claim.epoch)
        for run_id in response.nudged_run_ids:
            if run_id in self._drives:
                self._drives[run_id].driver.nudge()
            else:
                # It may be about a run whose claim is still on its way.
                self._early_nudges[run_id] = None
                if len(self._early_nudges) > MAX_EARLY_NUDGES:
                    del self._early_nudges[next(iter(self._early_nudges))]
        for lost in response.lost:
            drive = self._drives.get(lost.run_id)
            if drive is not None and drive.driver.epoch == lost.epoch:
                log.info("lease_lost", run_id=lost.run_id, epoch=lost.epoch)
                drive.task.cancel()
        for queued in response.calls_queued:
            self._hub.calls_queued(queued.workspace_id, queued.tool)
        if response.cancelled_call_leases:
            self._hub.cancel_leases(list(response.cancelled_call_leases))

    # --- drives -----------------------------------------------------------------------------------------------

    def _begin_drive(self, claim: lease_pb2.Claim, tasks: asyncio.TaskGroup) -> None:
        run_id = claim.run.run_id
        if self._is_draining:
            self._give_back(run_id, claim.epoch)
            return
        older = self._drives.get(run_id)
        if older is not None:
            # Invariant: one drive for each lease. A second one would find intents that are stored under its own lease,
            # and take them for calls that were not made yet.
            if older.driver.epoch >= claim.epoch:
                return
            older.task.cancel()
        driver = Driver(self._parts, claim, self._lease_holds)
        drive = _Drive(driver, tasks.create_task(self._drive(driver)))
        self._drives[run_id] = drive
        self._all_done.clear()
        if run_id in self._early_nudges:
            del self._early_nudges[run_id]
            driver.nudge()

    async def _drive(self, driver: Driver) -> None:
        try:
            end = await driver.drive()
            if end is DriveEnd.HANDED_BACK:
                self._give_back(driver.run_id, driver.epoch)
            self._failed_drives.pop(driver.run_id, None)
        except asyncio.CancelledError:
            if asyncio.current_task() is not None and self._stream_closed.is_set():
                raise
        except BaseExceptionGroup as group:
            await self._after_failed_drive(driver, group)
        except HoldfastError as error:
            await self._after_failed_drive(driver, error)
        except Exception as error:
            await self._after_failed_drive(driver, error)
        finally:
            drive = self._drives.get(driver.run_id)
            if drive is not None and drive.driver is driver:
                del self._drives[driver.run_id]
            if not self._drives:
                self._all_done.set()
            if self._is_draining or self._offered <= self._free_slots() // 2:
                # Otherwise state still has slots to fill, and the next heartbeat tells of this one.
                self._must_report.set()

    async def _after_failed_drive(self, driver: Driver, error: BaseException) -> None:
        """Nothing is lost: the journal stands, another drive begins where it ends. It only must not spin."""
        if len(self._failed_drives) > MAX_EARLY_NUDGES:
            # Runs that others drive by now; forgetting how often they failed here costs a shorter pause.
            self._failed_drives.clear()
        failures = self._failed_drives[driver.run_id] = self._failed_drives.get(driver.run_id, 0) + 1
        log.error("drive_failed", run_id=driver.run_id, failures=failures, exc_info=error)
        pause = min(FAILED_DRIVE_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_FAILED_DRIVE_PAUSE_SECONDS)
        await self._parts.clock.sleep(pause)
        self._give_back(driver.run_id, driver.epoch)

    def _give_back(self, run_id: str, epoch: int) -> None:
        self._released.append(lease_pb2.HeldRun(run_id=run_id, epoch=epoch))
        self._must_report.set()
