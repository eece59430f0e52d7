"""Services that start as forks of a loaded process: each is what its own command would have started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast import Agent
from holdfast.cli.launch import SERVICES
from holdfast.cli.warm import WarmProcess, WarmService, start_service
from holdfast.testing import Suite, SuiteError, scripted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what a warm start takes")

# Starts a suite, says which processes it has, and waits to be killed.
STARTER = """
import asyncio
from holdfast.cli.launch import SERVICES
from holdfast.testing import Suite

async def main():
    async with Suite() as suite:
        print(*(suite.process_id(name) for name in SERVICES), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}


def started(loaded: WarmService, log: Path, **settings: str) -> WarmProcess:
    with log.open("ab") as file:
        return loaded.start({**variables(), **settings}, file)


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
async def suite() -> AsyncIterator[Suite]:
    async with Suite() as started:
        yield started


async def test_services_of_a_suite_are_forks_in_sessions_of_their_own(suite: Suite) -> None:
    ids = [suite.process_id(name) for name in SERVICES]
    forked_from = {parent_of(process_id) for process_id in ids}
    assert len({*ids, *forked_from, os.getpid()}) == 2 * len(SERVICES) + 1
    assert {parent_of(process_id) for process_id in forked_from} == {os.getpid()}
    assert [os.getsid(process_id) for process_id in ids] == ids


async def test_a_suite_that_may_not_start_warm_has_its_commands_processes() -> None:
    async with Suite(warm=False) as suite, suite.client() as client:
        assert {parent_of(suite.process_id(name)) for name in SERVICES} == {os.getpid()}
        agent = Agent("greeter", model=scripted("Hello!"))
        await client.apply(agent)
        assert await (await client.start(agent, "hi")).result(timeout=60) == "Hello!"


async def test_forks_of_one_process_share_nothing_but_their_code() -> None:
    async with Suite() as one, Suite() as other:
        assert parent_of(one.process_id()) == parent_of(other.process_id())
        ids = []
        for suite in (one, other):
            async with suite.client() as client:
                agent = Agent("greeter", model=scripted("Hello!"))
                await client.apply(agent)
                run = await client.start(agent, "hi")
                assert await run.result(timeout=60) == "Hello!"
                ids.append(run.id)
        assert one.api_key != other.api_key
        assert len({*ids}) == 2
        assert one.data != other.data


async def test_exit_codes_and_signals_are_those_of_a_process(suite: Suite) -> None:
    assert await suite.terminate("executor") == 0
    await suite.restart("executor")
    await suite.kill("executor")
    assert not suite.is_running("executor")
    await suite.restart("executor")
    async with suite.client() as client:
        assert [run async for run in client.runs.list()] == []


async def test_a_service_that_refuses_its_settings_says_so_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="HOLDFAST_DRAIN_SECONDS"):
        async with Suite(service_settings={"state": {"HOLDFAST_DRAIN_SECONDS": "soon"}}):
            pass


def test_a_process_is_waited_for_and_seen_to_end(tmp_path: Path) -> None:
    process = started(WarmService("state", variables()), tmp_path / "log", HOLDFAST_DRAIN_SECONDS="soon")
    assert process.wait(30) == 78
    assert process.poll() == process.returncode == 78
    # Nobody is there any more; whoever has the number now is spared.
    process.send_signal(signal.SIGKILL)
    assert "HOLDFAST_DRAIN_SECONDS" in (tmp_path / "log").read_text()
    assert process.stdin is not None
    process.stdin.close()


def test_waiting_for_a_process_that_goes_on_is_over_in_time(tmp_path: Path) -> None:
    settings = {"HOLDFAST_DATABASE_URL": f"sqlite:///{tmp_path}/state.db", "HOLDFAST_LISTEN": "127.0.0.1:0"}
    settings["HOLDFAST_SERVICE_TOKEN"] = "a-service-token-of-enough-characters"
    process = started(WarmService("state", variables()), tmp_path / "log", **settings)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert process.stdin is not None
    process.stdin.close()


def test_a_service_whose_loaded_process_is_gone_is_started_by_its_command(tmp_path: Path) -> None:
    loaded = WarmService("no-such-service", variables())
    with pytest.raises(OSError):
        loaded.load()
    with (tmp_path / "log").open("ab") as log:
        process = start_service("no-such-service", variables(), log)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(30) == 1
    assert process.stdin is not None
    process.stdin.close()
    assert "services.no-such-service" in (tmp_path / "log").read_text()


async def test_no_service_outlives_whoever_started_its_suite() -> None:
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", STARTER, stdout=asyncio.subprocess.PIPE)
    assert starter.stdout is not None
    async with asyncio.timeout(60):
        ids = [int(word) for word in (await starter.stdout.readline()).split()]
        assert len(ids) == len(SERVICES)
        watched = [os.pidfd_open(process_id) for process_id in ids]
        starter.kill()
        await starter.wait()
        for descriptor in watched:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(descriptor, ended.set)
            await ended.wait()
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
