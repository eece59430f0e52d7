"""Makes the faults of a schedule happen to a suite, several at once but one at a time to each process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast.testing import Suite
from tests.campaign import schedule
from tests.campaign.proxy import StateProxy
from tests.campaign.schedule import Fault
from tests.fakes.cluster import Cluster
from tests.repository.tree import ROOT

AT_ONCE = 3
# What a process that goes on, or one that was killed, may have left to its sockets has arrived by then.
SETTLE_SECONDS = 1.0
# How long an armed process may take to reach its crash point; then it is killed.
ARMED_SECONDS = 6.0


class Workers:
    """The users' processes.

    Args:
        count: How many.
        url: Where their tools count.
        environment: Where the suite is.
        log: What they say.
    """

    def __init__(self, count: int, url: str, environment: dict[str, str], log: Path) -> None:
        self._url = url
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        self._environment = {**plain, **environment, "PYTHONPATH": str(ROOT)}
        self._log = log
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    def __len__(self) -> int:
        return len(self._processes)

    def start(self, number: int) -> None:
        """Starts one of them."""
        with open(self._log, "ab") as log:
            self._processes[number] = subprocess.Popen(
                [sys.executable, "-m", "tests.campaign.worker", self._url],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: int, what: signal.Signals) -> None:
        """Sends one of them a signal."""
        process = self._processes[number]
        if process is not None and process.poll() is None:
            process.send_signal(what)

    async def kill(self, number: int) -> None:
        """Kills one of them, and returns when it is gone."""
        self.signal(number, signal.SIGKILL)
        process = self._processes[number]
        if process is not None:
            await asyncio.to_thread(process.wait)

    async def close(self) -> None:
        """Kills all of them."""
        await asyncio.gather(*(self.kill(number) for number in range(len(self._processes))))


class Faults:
    """Lets the faults of a schedule happen.

    Args:
        suite: To whom.
        workers: The users' processes.
        proxies: Between state and its callers.
        cluster: The suite's PostgreSQL, if it has one.
        on_fault: Is told of each fault when it begins.
    """

    def __init__(
        self,
        suite: Suite,
        workers: Workers,
        proxies: Sequence[StateProxy],
        cluster: Cluster | None,
        on_fault: Callable[[Fault], None],
    ) -> None:
        self._suite = suite
        self._workers = workers
        self._proxies = proxies
        self._cluster = cluster
        self._on_fault = on_fault
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unsettled = 0
        self._settled_at = 0.0
        self.happened: Counter[str] = Counter()
        self.reached = 0
        """How many crash points were reached."""
        self.is_over = False
        """Set by whoever runs the last of them."""

    async def run(self, faults: Sequence[Fault]) -> None:
        """Lets all of them happen, and returns when everything runs again."""
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(fault.gap)
                await slots.acquire()
                self._on_fault(fault)
                task = tasks.create_task(self._let_happen(fault))
                task.add_done_callback(lambda _: slots.release())

    async def settled(self) -> None:
        """Returns when no process is stopped, or was until a moment ago, that may have a call still to make."""
        loop = asyncio.get_running_loop()
        while self._unsettled or loop.time() - self._settled_at < SETTLE_SECONDS:
            await asyncio.sleep(0.05)

    async def _let_happen(self, fault: Fault) -> None:
        self.happened[fault.kind] += 1
        executors, states = self._suite.executors, self._suite.states
        match fault.kind:
            case schedule.KILL_EXECUTOR:
                await self._kill(executors[fault.target], fault)
            case schedule.KILL_STATE:
                await self._kill(states[fault.target], fault)
            case schedule.KILL_TRACE:
                await self._kill("trace", fault)
            case schedule.KILL_AUTH:
                await self._kill("auth", fault)
            case schedule.DRAIN_EXECUTOR:
                async with self._busy[executors[fault.target]]:
                    await self._suite.terminate(executors[fault.target])
                    await asyncio.sleep(fault.seconds)
                    await self._suite.restart(executors[fault.target])
            case schedule.PAUSE_EXECUTOR:
                await self._pause(executors[fault.target], fault)
            case schedule.PAUSE_STATE:
                await self._pause(states[fault.target], fault)
            case schedule.CRASH_EXECUTOR:
                await self._crash(executors[fault.target], fault)
            case schedule.CRASH_STATE:
                await self._crash(states[fault.target], fault)
            case schedule.KILL_WORKER:
                async with self._busy[f"worker {fault.target}"]:
                    self._unsettle(1)
                    await self._workers.kill(fault.target)
                    self._unsettle(-1)
                    await asyncio.sleep(fault.seconds)
                    self._workers.start(fault.target)
            case schedule.PAUSE_WORKER:
                async with self._busy[f"worker {fault.target}"]:
                    self._unsettle(1)
                    self._workers.signal(fault.target, signal.SIGSTOP)
                    await asyncio.sleep(fault.seconds)
                    self._workers.signal(fault.target, signal.SIGCONT)
                    self._unsettle(-1)
            case schedule.CUT_CONNECTIONS:
                for proxy in self._proxies:
                    proxy.cut()
            case schedule.LOSE_ANSWERS:
                await asyncio.gather(*(proxy.lose_answers(fault.seconds) for proxy in self._proxies))
            case schedule.RESTART_POSTGRES:
                assert self._cluster is not None
                async with self._busy["postgres"]:
                    await asyncio.to_thread(self._cluster.stop, "immediate")
                    await asyncio.sleep(fault.seconds)
                    await asyncio.to_thread(self._cluster.start)
            case _:
                raise AssertionError(f"nobody knows how to {fault.kind}")

    async def _kill(self, name: str, fault: Fault) -> None:
        async with self._busy[name]:
            self._unsettle(1)
            await self._suite.kill(name)
            self._unsettle(-1)
            await asyncio.sleep(fault.seconds)
            await self._suite.restart(name)

    async def _pause(self, name: str, fault: Fault) -> None:
        async with self._busy[name]:
            self._unsettle(1)
            self._suite.pause(name)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                self._suite.resume(name)
                self._unsettle(-1)

    async def _crash(self, name: str, fault: Fault) -> None:
        """Starts a process anew that dies at a point, and once more when it has died."""
        async with self._busy[name]:
            await self._suite.kill(name)
            # It may reach the point before it is asked whether it serves.
            self._suite.launch(name, settings={"HOLDFAST_CRASH_POINT": fault.point})
            try:
                await self._suite.wait_for_exit(name, timeout=ARMED_SECONDS)
                self.reached += 1
            except TimeoutError:
                await self._suite.kill(name)
            await self._suite.restart(name, settings={"HOLDFAST_CRASH_POINT": ""})
            self._unsettle(0)

    def _unsettle(self, change: int) -> None:
        self._unsettled += change
        self._settled_at = asyncio.get_running_loop().time()
