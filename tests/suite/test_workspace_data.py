"""A workspace's data through the whole suite: exported, kept for its time, and erased also from the traces."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast import Agent
from holdfast.api.common.v1 import run_pb2, workspace_pb2
from holdfast.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Reason
from holdfast.ids import new_uuid7
from holdfast.runs import RunHandle
from holdfast.testing import call, scripted
from tests.suite.stages import Stage, until_waiting

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ANSWER = "y" * 9_000
TALKER = Agent("talker", model=scripted(ANSWER))
ASKER = Agent("asker", model=scripted(call("ask_user", question="Which?"), "thanks"), tools=["ask_user"])


async def talk(stage: Stage, user: str) -> RunHandle:
    handle = await stage.start(TALKER, "hello", user_id=user)
    await handle.result()
    return handle


async def holdfast(stage: Stage, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Runs a command and returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "holdfast.cli",
        *arguments,
        env={**stage.environment(), **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def records_of(stage: Stage, **only: str) -> list[workspace_pb2.ExportRecord]:
    return [record async for frame in stage.client.housekeeping.export(**only) for record in frame.records]


async def until_forgotten(stage: Stage, run_id: str) -> None:
    """Returns when trace does not know a run any more."""
    async with asyncio.timeout(20):
        while True:
            try:
                await stage.client.trace.tree(run_id)
            except NotFound:
                return
            await asyncio.sleep(0.05)


async def test_what_is_erased_is_gone_from_state_and_trace(stage: Stage) -> None:
    user, other = f"u-{new_uuid7()}", f"u-{new_uuid7()}"
    erased, kept = await talk(stage, user), await talk(stage, other)
    for handle in (erased, kept):
        assert (await stage.client.trace.tree(handle.id, min_seq=handle.run.last_seq)).spans
    assert {record.run.run_id for record in await records_of(stage, user_id=user)} - {""} == {erased.id}
    for owner in (user, other):
        await stage.client.connections.create("openai", f"sk-of-{owner}", name="model", user_id=owner)
    code, out, _ = await holdfast(stage, "erase", "--user", user, "--dry-run", "--json")
    would_erase = json.loads(out)["would_erase"]
    assert (code, would_erase["runs"], would_erase["connections"]) == (0, "1", "1")
    code, _, err = await holdfast(stage, "erase", "--user", user)
    assert code == 1 and "--yes" in err

    code, out, err = await holdfast(stage, "erase", "--user", user, "--yes")

    assert code == 0, err
    assert out.startswith("erased 1 conversation, 1 run, ") and "1 connection" in out
    assert {connection.user_id async for connection in stage.client.connections.list()} >= {other}
    assert user not in {connection.user_id async for connection in stage.client.connections.list()}
    assert await records_of(stage, user_id=user) == []
    with pytest.raises(NotFound):
        await stage.client.run(erased.id)
    with pytest.raises(NotFound):
        await stage.client.sessions.get(erased.run.session_id)
    await until_forgotten(stage, erased.id)
    assert erased.id not in [run.run_id async for run in stage.client.trace.list(user_id=user)]
    # The body that both had in common is still there for the other one.
    assert await (await stage.client.run(kept.id)).result() == ANSWER
    assert (await stage.client.trace.tree(kept.id)).spans


async def test_a_waiting_run_is_erased_after_it_was_cancelled(stage: Stage) -> None:
    user = f"u-{new_uuid7()}"
    handle = await stage.start(ASKER, "go", user_id=user)
    await until_waiting(handle, run_pb2.WAIT_REASON_INPUT)
    with pytest.raises(FailedPrecondition) as refused:
        _ = [frame async for frame in stage.client.housekeeping.erase(user_id=user)]
    assert refused.value.reason == Reason.SESSION_BUSY
    async with asyncio.timeout(30):
        frames = [frame async for frame in stage.client.housekeeping.erase(user_id=user, cancel_first=True)]
    assert frames[-1].is_done and frames[-1].erased.runs == 1
    assert await records_of(stage, user_id=user) == []
    await until_forgotten(stage, handle.id)


async def test_an_export_is_lines_of_json_and_goes_on_where_it_broke(stage: Stage, tmp_path: Path) -> None:
    user = f"u-{new_uuid7()}"
    first = await talk(stage, user)
    whole = tmp_path / "whole.ndjson"
    code, _, err = await holdfast(stage, "export", "--user", user, "--output", str(whole))
    assert code == 0, err
    assert whole.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [next(iter(line)) for line in lines if "event" not in line] == ["session", "run", "blob", "cursor", "end"]
    assert next(line["run"]["run_id"] for line in lines if "run" in line) == first.id
    code, out, _ = await holdfast(stage, "export", "--user", user)
    assert (code, out) == (0, whole.read_text())
    code, _, err = await holdfast(stage, "export", "--user", user, "--output", str(whole), "--resume")
    assert code == 1 and "complete" in err

    # Cut in the middle of a line before the first cursor, and of one behind it.
    for keep in (300, len(whole.read_text()) - 5):
        broken = tmp_path / f"broken-{keep}.ndjson"
        broken.write_text(whole.read_text()[:keep])
        code, _, err = await holdfast(stage, "export", "--user", user, "--output", str(broken), "--resume")
        assert code == 0, err
        again = [line for line in broken.read_text().splitlines() if not line.startswith('{"cursor"')]
        assert again == [line for line in whole.read_text().splitlines() if not line.startswith('{"cursor"')]


async def test_settings_are_the_administrators_but_for_the_operators(stage: Stage) -> None:
    keeping = stage.client.housekeeping
    code, out, err = await holdfast(
        stage, "workspace", "set", "--ended-runs-kept", "30d", "--keep-latest-runs", "5", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["ended_runs_kept"] == "2592000s"
    found = await keeping.settings()
    assert (found.ended_runs_kept.ToTimedelta(), found.keep_latest_runs) == (timedelta(days=30), 5)
    with pytest.raises(InvalidArgument) as refused:
        await keeping.update_settings(workspace_pb2.WorkspaceSettings(weight=50), ["weight"])
    assert refused.value.field_violations[0].field == "settings.weight"
    await keeping.keep()
    with pytest.raises(Conflict):
        await keeping.update_settings(found, ["keep_latest_runs"], etag=found.etag)
    code, out, _ = await holdfast(stage, "workspace")
    assert code == 0 and "for ever" in out

    workspace_id = (await stage.client.workspace()).workspace_id
    data = ("--data", str(stage.suite.plan.data))
    code, out, err = await holdfast(
        stage, "workspace", "set", "--workspace", workspace_id, "--weight", "7", "--json", *data
    )
    assert code == 0, err
    assert (await keeping.settings()).weight == 7
    code, _, err = await holdfast(stage, "workspace", "set", "--workspace", workspace_id, "--weight", "1", *data)
    assert code == 0, err


async def test_a_key_without_the_admin_scope_may_do_none_of_it(stage: Stage) -> None:
    _, secret = await stage.client.keys.create("runner", ["runs:read", "runs:write", "agents:write"])
    async with stage.suite.client(api_key=secret) as client:
        for attempt in (client.housekeeping.settings(), client.housekeeping.storage(), client.housekeeping.keep()):
            with pytest.raises(PermissionDenied):
                await attempt
        with pytest.raises(PermissionDenied):
            _ = [frame async for frame in client.housekeeping.export()]
        with pytest.raises(PermissionDenied):
            _ = [frame async for frame in client.housekeeping.erase(everything=True)]


async def test_storage_is_shown_to_the_tenant_and_as_a_whole_to_the_operator(stage: Stage) -> None:
    await talk(stage, "ada")
    code, out, err = await holdfast(stage, "storage", "--json")
    assert code == 0, err
    own = json.loads(out)
    assert int(own["events"]) > 0
    code, out, _ = await holdfast(stage, "storage")
    assert code == 0 and "may be removed now" in out
    code, out, err = await holdfast(stage, "storage", "--all", "--data", str(stage.suite.plan.data), "--json")
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    assert own["workspace_id"] in [found["workspace_id"] for found in report["workspaces"]]
    assert {"runs", "journal", "blobs"} <= {table["name"] for table in report["database"]["tables"]}
    code, out, err = await holdfast(stage, "storage", "--all", "--data", str(stage.suite.plan.data))
    assert code == 0 and "journal" in out, err
    # Neither in the environment nor in a data folder.
    code, _, err = await holdfast(stage, "storage", "--all", "--data", "/nonexistent")
    assert code == 1 and "HOLDFAST_SERVICE_TOKEN" in err
