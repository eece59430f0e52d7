"""`holdfast doctor` against a whole suite: all is well, something is broken, it can't be checked."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys

import pytest

from holdfast import Agent
from holdfast.testing import Suite, call, scripted
from tests.suite.stages import Stage, open_stage

pytestmark = pytest.mark.slow


async def doctor(suite: Suite, *arguments: str) -> tuple[int, str, str]:
    """Runs the command; its exit code, what it printed, and what it complained of."""
    return await holdfast(suite, "doctor", *arguments)


async def holdfast(suite: Suite, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "holdfast.cli", *arguments,
        env=Stage(suite, None, None).environment(),  # type: ignore[arg-type]
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_doctor_says_that_all_is_well_what_is_broken_and_that_it_cannot_tell() -> None:
    async with asyncio.timeout(60), open_stage() as stage:
        agent = Agent("greeter", model=scripted(call("noop"), "Hello, {{input}}!"), tools=["noop"])
        run = await stage.start(agent, "world")
        await run.result()
        data = ("--data", str(stage.suite.data))

        code, printed, _ = await doctor(stage.suite, *data, "--json")
        found = json.loads(printed)
        assert (code, found["result"]) == (0, "OK"), found
        assert {service["health"] for service in found["services"].values()} == {"SERVING"}
        assert set(found["services"]) == {"executor", "state", "auth", "trace"}
        assert {check["result"] for check in found["checks"]} == {"OK"}
        assert next(check["examined"] for check in found["checks"] if check["name"] == "dense_sequences") == 1
        assert next(check["examined"] for check in found["checks"] if check["name"] == "audit_chain") >= 2
        assert any("SQLite" in warning for warning in found["warnings"])

        with sqlite3.connect(stage.suite.data / "state.db") as database:
            database.execute("UPDATE runs SET step_count = 9")
        code, printed, _ = await doctor(stage.suite, *data)
        assert code == 1
        assert "totals_add_up" in printed
        assert f"run {run.id}: step_count is 9, and 3 have begun" in printed
        assert "their journals are right" in printed, "it says what that means"

        # The installation's own trail begins with what the operator does.
        code, exported, complaint = await holdfast(stage.suite, "audit", "export", "--installation", *data)
        assert (code, len(exported.splitlines())) == (0, 2), complaint
        with sqlite3.connect(stage.suite.data / "auth.db") as database:
            database.execute(
                "UPDATE audit_records SET actor = 'somebody else' WHERE seq = 2 OR action = 'audit.export'"
            )
        code, printed, _ = await doctor(stage.suite, *data)
        assert code == 1
        assert "record 2: EDITED" in printed
        assert "the installation, record 1: EDITED" in printed
        with sqlite3.connect(stage.suite.data / "auth.db") as database:
            database.execute("UPDATE audit_records SET actor = 'bootstrap' WHERE seq = 2")
        with sqlite3.connect(stage.suite.data / "state.db") as database:
            database.execute("UPDATE runs SET step_count = 3")
        await stage.suite.kill("trace")
        code, printed, _ = await doctor(stage.suite, *data)
        assert (code, printed.splitlines()[-1]) == (1, "Not serving: trace")

        await stage.suite.kill("state")
        code, printed, complaint = await doctor(stage.suite, *data, "--json")
        assert (code, json.loads(printed)["result"]) == (2, "NOT_CHECKED")
        code, _, complaint = await doctor(stage.suite, *data)
        assert code == 2
        assert f"state at {stage.suite.address('state')} can't be reached" in complaint
        # They would wait for state to take their leases back.
        await asyncio.gather(*(stage.suite.kill(name) for name in ("executor", "auth")))


async def test_doctor_without_the_services_token_is_refused(suite: Suite) -> None:
    environment = {
        **Stage(suite, None, None).environment(),  # type: ignore[arg-type]
        "HOLDFAST_STATE_ADDRESS": suite.address("state"),
        "HOLDFAST_SERVICE_TOKEN": "x" * 40,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "holdfast.cli", "doctor", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, complaint = await process.communicate()
    assert process.returncode == 2
    assert "SERVICE_TOKEN_INVALID" in complaint.decode()
