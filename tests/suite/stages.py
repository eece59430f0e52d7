"""A running suite and what the tests of a module need around it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast import Agent, Client, Worker
from holdfast.agent import http_tool
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.errors import DeadlineExceeded, Unavailable
from holdfast.runs import RunEvent, RunHandle
from holdfast.testing import Suite
from holdfast.tool import Effect
from tests.suite.effects import HttpEffects

T = TypeVar("T")
LOOPBACK = {"HOLDFAST_HTTP_TOOLS_ALLOW": "127.0.0.0/8"}


@dataclass(frozen=True)
class Stage:
    """A suite, a client of it, and an HTTP endpoint for its tools."""

    suite: Suite
    client: Client
    http: HttpEffects

    def tool(self, name: str, effect: Effect = "at_most_once", **options: Any) -> agent_pb2.ToolSpec:
        """An `http` tool at the endpoint's path of the same name."""
        return http_tool(name, self.http.url(f"/{name}"), effect=effect, **options)

    async def start(self, agent: Agent, text: str = "go", **options: Any) -> RunHandle:
        """Applies an agent and starts a run of it."""
        await self.client.apply(agent)
        return await self.client.start(agent, text, **options)

    @asynccontextmanager
    async def worker(self, *tools: Any, slots: int = 8) -> AsyncIterator[Worker]:
        """A worker that is connected."""
        worker = self.suite.worker(tools, slots=slots)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(worker.run())
            await worker.connected.wait()
            try:
                yield worker
            finally:
                serving.cancel()

    async def answered_again(self, crash_point: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks for something of a state that dies at a point, and asks the next one until it answers."""
        await self.suite.kill("state")
        await self.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": crash_point})
        asking = asyncio.create_task(_until_answered(ask))
        assert await self.suite.wait_for_exit("state") == 137, "the crash point was reached"
        assert not asking.done(), "nobody was answered"
        await self.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
        return await asking

    def environment(self) -> dict[str, str]:
        """The variables of a process that talks to the suite."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        return {**plain, **self.suite.environment()}

    async def command(self, *arguments: str) -> Any:
        """Runs `holdfast … --json` against the suite and returns what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.cli",
            *arguments,
            "--json",
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return json.loads(out)


async def _until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except (Unavailable, DeadlineExceeded):
            continue


@asynccontextmanager
async def open_stage(
    settings: Mapping[str, str] | None = None,
    *,
    database_url: str = "",
    service_settings: Mapping[str, Mapping[str, str]] | None = None,
    warm: bool = True,
) -> AsyncIterator[Stage]:
    """Starts a suite with everything around it."""
    async with (
        HttpEffects() as http,
        Suite(
            settings={**LOOPBACK, **(settings or {})},
            database_url=database_url,
            service_settings=service_settings,
            warm=warm,
        ) as suite,
        suite.client() as client,
    ):
        yield Stage(suite, client, http)


async def until_change(handle: RunHandle, is_it: Callable[[run_pb2.Change], bool]) -> run_pb2.Change:
    """Follows a run until a change happens, and returns it."""
    async for event in handle.events(deltas=False):
        assert isinstance(event, RunEvent)
        for change in event.changes:
            if is_it(change):
                return change
    raise AssertionError("the run ended before that happened")


async def until_waiting(handle: RunHandle, reason: run_pb2.WaitReason) -> run_pb2.Change:
    """Follows a run until it waits for something."""
    return await until_change(handle, lambda change: change.run_state_changed.wait_reason == reason)


async def question_of(handle: RunHandle, *, but: str = "") -> run_pb2.Approval:
    """Follows a run until it asks (something else than what is known already), and returns the question."""

    def is_asked(change: run_pb2.Change) -> bool:
        return change.HasField("approval_requested") and change.approval_requested.approval.approval_id != but

    return (await until_change(handle, is_asked)).approval_requested.approval
