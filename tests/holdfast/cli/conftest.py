"""The command line as tests call it: in this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli import __main__ as entry
from tests.fakes.executor import API_KEY, FakeExecutor
from tests.repository.tree import ROOT

Invoke = Callable[..., Awaitable[Result]]
Launch = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def executor() -> AsyncIterator[FakeExecutor]:
    """An executor without runs."""
    async with FakeExecutor() as fake:
        yield fake


@pytest.fixture
def holdfast(executor: FakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command against the executor, in a thread, because commands have a loop of their own."""
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOLDFAST_ADDRESS", executor.address)
    monkeypatch.setenv("HOLDFAST_API_KEY", API_KEY)

    async def invoke(*arguments: str, input: str | None = None) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, entry.app, list(arguments), input)

    return invoke


@pytest.fixture
async def launch(executor: FakeExecutor, tmp_path: Path) -> AsyncIterator[Launch]:
    """Starts a command as a process of its own; what is left of it at the end is killed."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.cli",
            *arguments,
            cwd=tmp_path,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "NO_COLOR": "1",
                "HOLDFAST_CONFIG": str(tmp_path / "config.toml"),
                "HOLDFAST_ADDRESS": executor.address,
                "HOLDFAST_API_KEY": API_KEY,
                **environment,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()
