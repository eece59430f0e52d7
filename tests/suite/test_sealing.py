"""Payloads sealed at rest: the suite works as ever, no word lies in a database, and none is left in a backup."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast import Agent, tool
from holdfast.api.auth.v1 import workspace_service_pb2 as auth_pb2
from holdfast.api.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from holdfast.api.common.v1 import run_pb2, workspace_pb2
from holdfast.api.state.v1 import housekeeping_service_pb2 as state_pb2
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import HousekeepingServiceStub
from holdfast.cli.operator import operator_channel
from holdfast.errors import FailedPrecondition, HoldfastError, NotFound, Reason, Unauthenticated
from holdfast.testing import call, scripted, turn
from tests.suite.canary import Canaries, rows_of
from tests.suite.stages import Stage, open_stage, question_of, until_waiting
from tests.suite.test_walls import create_key
from tests.suite.test_workspace_data import holdfast, records_of

pytestmark = [pytest.mark.slow, pytest.mark.promise("P8"), pytest.mark.promise("P11")]

SEALED = {"HOLDFAST_SEAL_PAYLOADS": "true"}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A suite that seals."""
    async with asyncio.timeout(110), open_stage(SEALED) as opened:
        yield opened


def databases_of(stage: Stage, *names: str) -> list[Path]:
    return [path for name in names for path in stage.suite.data.glob(f"{name}.db*")]


async def test_no_word_lies_in_a_database_and_everything_is_read_as_ever(stage: Stage) -> None:
    words = Canaries()
    said, told, asked, answered, failed, why = (
        words.new(kind) for kind in ("input", "instructions", "question", "answer", "failure", "reason")
    )
    large = words.new("output") + "y" * 40_000

    @tool(effect="read_only")
    def look() -> str:
        """Look something up, at length."""
        return large

    @tool(effect="read_only")
    def fail() -> str:
        """Fail."""
        raise ValueError(failed)

    agent = Agent(
        "teller",
        model=scripted(turn("", call("look"), call("fail")), call("ask_user", question=asked), f"{answered}!"),
        instructions=told,
        tools=[look, fail, "ask_user"],
    )
    async with stage.worker(look, fail):
        handle = await stage.start(agent, said)
        await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
        question = await question_of(handle)
        assert question.prompt == asked
        # What is in memory is gone; auth has the keys.
        for name in ("state", "executor"):
            await stage.suite.kill(name)
            await stage.suite.restart(name)
        await stage.client.approvals.answer(question.approval_id, answered, comment=why)
        assert await handle.result() == f"{answered}!"
        waiting = await stage.client.start(agent, said)
        await until_waiting(waiting, run_pb2.WAIT_REASON_INPUT)
        await waiting.cancel(why)
    exported = json.dumps([str(record) for record in await records_of(stage)])
    for word in (said, told, asked, answered):
        assert word in exported or word.replace("/", "\\/") in exported
    assert (await stage.client.trace.tree(handle.id, min_seq=handle.run.last_seq)).spans
    code, out, err = await holdfast(stage, "doctor", "--data", str(stage.suite.plan.data), "--json")
    assert code == 0, out + err
    for name in ("trace", "executor", "auth", "state"):
        await stage.suite.terminate(name)
    found = databases_of(stage, "state", "trace")
    assert {path.name for path in found} >= {"state.db", "trace.db"}
    words.assert_absent((path.name, path.read_bytes()) for path in found)
    words.assert_absent(row for path in found if path.suffix == ".db" for row in rows_of(path))


@pytest.fixture
async def plain_stage() -> AsyncIterator[Stage]:
    """A suite that seals for those who choose it."""
    async with asyncio.timeout(110), open_stage({}) as opened:
        yield opened


async def test_a_workspace_chooses_to_be_sealed_and_its_runs_go_on(plain_stage: Stage) -> None:
    stage = plain_stage
    words = Canaries()
    before, answer, sealed_input, after, why = (words.new(kind) for kind in ("a", "b", "c", "d", "e"))
    agent = Agent("teller", model=scripted(call("ask_user", question="Which?"), "thanks"), tools=["ask_user"])

    async def choose(choice: str) -> None:
        code, _, err = await holdfast(stage, "workspace", "seal", choice)
        assert code == 0, err
        # A process that meets the workspace asks before it writes; one that has met it does so within seconds.
        await stage.suite.kill("state")
        await stage.suite.restart("state")

    parked = await stage.start(agent, before)
    await until_waiting(parked, run_pb2.WAIT_REASON_INPUT)
    await choose("on")
    code, out, _ = await holdfast(stage, "workspace", "--json")
    assert code == 0 and json.loads(out)["payload_sealing"] == "PAYLOAD_SEALING_ON"
    await stage.client.approvals.answer((await question_of(parked)).approval_id, answer)
    assert await parked.result() == "thanks"
    sealed = await stage.start(agent, sealed_input)
    await until_waiting(sealed, run_pb2.WAIT_REASON_INPUT)
    await sealed.cancel(why)
    sealed = await stage.start(agent, sealed_input)
    await until_waiting(sealed, run_pb2.WAIT_REASON_INPUT)
    await choose("off")
    await stage.client.approvals.answer((await question_of(sealed)).approval_id, after)
    assert await sealed.result() == "thanks"
    exported = json.dumps([str(record) for record in await records_of(stage)])
    assert all(word in exported for word in (before, answer, sealed_input, after))
    assert (await stage.client.trace.tree(sealed.id, min_seq=(await sealed.get()).last_seq)).spans
    for name in ("trace", "executor", "auth", "state"):
        await stage.suite.terminate(name)
    stored = b"".join(path.read_bytes() for path in databases_of(stage, "state", "trace"))
    assert {word: word.encode() in stored for word in (before, answer, sealed_input, after, why)} == {
        before: True,
        answer: False,
        sealed_input: False,
        after: True,
        why: False,
    }


async def test_a_deleted_workspace_is_gone_and_its_backup_tells_nothing(stage: Stage, tmp_path: Path) -> None:
    words = Canaries()
    said = words.new("input")
    data = ("--data", str(stage.suite.plan.data))
    agent = Agent("asker", model=scripted(call("ask_user", question="Which?"), "thanks"), tools=["ask_user"])
    await stage.client.connections.create("openai", "sk-of-the-workspace", name="model")
    handle = await stage.start(agent, said)
    await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
    workspace_id = (await stage.client.workspace()).workspace_id
    await stage.suite.terminate("state")
    for path in databases_of(stage, "state"):
        shutil.copy(path, tmp_path / path.name)
    await stage.suite.restart("state")
    with pytest.raises(FailedPrecondition) as refused:
        async with operator_channel(stage.suite.plan.data, "auth") as channel:
            await WorkspaceServiceStub(channel).DeleteWorkspace(auth_pb2.DeleteWorkspaceRequest(name="default"))
    assert refused.value.reason == Reason.WORKSPACE_NOT_CLOSED
    code, _, err = await holdfast(stage, "workspace", "delete", "default", *data)
    assert code == 1 and "--yes" in err
    code, _, err = await holdfast(stage, "workspace", "delete", "nobody", "--yes", *data)
    assert code != 0 and "no such workspace" in err

    code, out, err = await holdfast(stage, "workspace", "delete", "default", "--yes", *data)

    assert code == 0, err
    assert "1 run" in out and "revoked 1 connection" in out
    async with asyncio.timeout(20):
        # Keys are remembered for seconds.
        while not await _is_refused(stage):
            await asyncio.sleep(0.1)
    code, out, err = await holdfast(stage, "workspace", "delete", "default", "--yes", *data)
    assert code == 0, err
    # The backup is restored: what it has of the workspace opens for nobody.
    await stage.suite.terminate("state")
    for path in databases_of(stage, "state"):
        path.unlink()
    for path in tmp_path.glob("state.db*"):
        shutil.copy(path, stage.suite.data / path.name)
    await stage.suite.restart("state")
    request = state_pb2.ExportDataRequest(workspace_id=workspace_id, scope=workspace_pb2.DataScope(everything=True))
    async with operator_channel(stage.suite.plan.data) as channel:
        records = [
            record async for frame in HousekeepingServiceStub(channel).ExportData(request) for record in frame.records
        ]
    events = [record.event for record in records if record.HasField("event")]
    assert events
    assert all(event.changes[0].HasField("run_erased") for event in events)
    words.assert_absent(("a record", record.SerializeToString()) for record in records)


@pytest.mark.promise("P1")
async def test_a_deletion_that_was_killed_goes_on_where_it_was(stage: Stage) -> None:
    data = ("--data", str(stage.suite.plan.data))
    for name, point in (
        ("one", "auth.workspace.after_integrations"),
        ("two", "auth.workspace.after_connections"),
        ("three", "auth.workspace.after_key"),
    ):
        async with stage.suite.client(api_key=await create_key(stage.suite, name)) as client:
            await client.connections.create("openai", "sk-of-the-workspace", name="model")
        # Killed, as a drain would wait for the executor's stream.
        await stage.suite.kill("auth")
        await stage.suite.restart("auth", settings={"HOLDFAST_CRASH_POINT": point})
        code, _, err = await holdfast(stage, "workspace", "delete", name, "--yes", *data)
        assert code != 0 and "auth" in err
        assert await stage.suite.wait_for_exit("auth") == 137
        await stage.suite.restart("auth", settings={"HOLDFAST_CRASH_POINT": ""})
        code, out, err = await holdfast(stage, "workspace", "delete", name, "--yes", *data)
        assert code == 0, err
        assert f"workspace {name} is deleted" in out
        with pytest.raises(AssertionError, match="is closed"):
            await create_key(stage.suite, name)


@pytest.mark.promise("P1")
async def test_an_erasure_of_a_user_that_was_killed_goes_on_where_it_was(stage: Stage) -> None:
    await stage.client.connections.create("openai", "sk-of-ann", name="model", user_id="ann")
    await stage.suite.kill("auth")
    await stage.suite.restart("auth", settings={"HOLDFAST_CRASH_POINT": "auth.user.after_connections"})
    code, _, _ = await holdfast(stage, "erase", "--user", "ann", "--yes")
    assert code != 0
    assert await stage.suite.wait_for_exit("auth") == 137
    await stage.suite.restart("auth", settings={"HOLDFAST_CRASH_POINT": ""})
    # Revoked by the process that died, and still there.
    assert [found.user_id async for found in stage.client.connections.list()] == ["ann"]
    code, out, err = await holdfast(stage, "erase", "--user", "ann", "--yes")
    assert code == 0, err
    assert "1 connection" in out
    assert [found.user_id async for found in stage.client.connections.list()] == []


@pytest.mark.parametrize("point", ["state.data_key.before_row", "state.data_key.after_row"])
async def test_a_key_that_was_made_in_a_killed_process_costs_nothing(stage: Stage, point: str) -> None:
    agent = Agent("talker", model=scripted("hello"))
    await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": point})
    starting = asyncio.create_task(stage.start(agent, "hi"))
    assert await stage.suite.wait_for_exit("state") == 137
    await stage.suite.restart("state", settings={"HOLDFAST_CRASH_POINT": ""})
    with contextlib.suppress(HoldfastError):
        await starting
    assert await (await stage.start(agent, "hi")).result() == "hello"


async def _is_refused(stage: Stage) -> bool:
    try:
        await stage.client.workspace()
    except (Unauthenticated, NotFound):
        return True
    return False
