"""Runs one measurement as a process group of its own, with a time limit; nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_TAIL_CHARACTERS: Final = 600
_END_SECONDS: Final = 20.0
_FOREIGN_PREFIXES: Final = (
    *("HOLDFAST_", "DBOS_", "RESTATE_"),
    *("LANGCHAIN_", "LANGSMITH_", "LANGGRAPH_"),
    *("PG", "OTEL_"),
)


class MeasurementFailed(Exception):
    """A system's program gave no row; the text says why."""


async def measure(python: Path, module: str, argument: str, *, limit: float) -> dict[str, Any]:
    """Runs `python -m module argument` and returns the JSON object on the last line that it prints.

    Args:
        python: The interpreter.
        module: What it runs, from the checkout.
        argument: Its one argument.
        limit: Seconds that it may take.

    Raises:
        MeasurementFailed: It ended without a row, or not in time.
    """
    process = await asyncio.create_subprocess_exec(
        str(python),
        "-m",
        module,
        argument,
        cwd=_CHECKOUT,
        env=_environment(os.environ),
        # Kept open: its end tells the program that nobody waits for it any more.
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limit):
            # Not communicate(): that closes standard input at once.
            assert process.stdout is not None and process.stderr is not None
            output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
            code = await process.wait()
    except TimeoutError:
        raise MeasurementFailed(f"not ready after {limit:.0f} s") from None
    finally:
        await _end_group(process)
    rows = [line for line in output.decode(errors="replace").splitlines() if line.startswith("{")]
    if code != 0 or not rows:
        raise MeasurementFailed(f"exit code {code}: {errors.decode(errors='replace').strip()[-_TAIL_CHARACTERS:]}")
    row: dict[str, Any] = json.loads(rows[-1])
    return row


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Ends what the program has started and left, and the program itself if it still runs."""
    with suppress(ProcessLookupError):
        if process.returncode is None:
            # A suite of Holdfast's own process groups ends with the process that started it.
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await process.wait()
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without what would change the measured systems."""
    return {name: value for name, value in inherited.items() if not name.startswith(_FOREIGN_PREFIXES)}
