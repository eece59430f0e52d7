"""Commands against an executor that answers as each test says: output, errors and exit codes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.cli.app import app
from holdfast.cli.console import EPILOG, ExitCode
from holdfast.errors import FieldViolation, InvalidArgument, PermissionDenied, Unavailable
from tests.fakes.executor import FakeExecutor, delta, ended, event
from tests.holdfast.cli.conftest import Invoke, Launch
from tests.repository.tree import ROOT

AGENT = "name: shop\nmodel: {provider: scripted, script: {turns: [{text: hi}]}}\n"


def answered(executor: FakeExecutor, text: str = "All done.") -> None:
    """Adds a run that succeeds."""
    asked = content_pb2.StoredMessage(message=content_pb2.Message(parts=[content_pb2.Part(text="Do it.")]))
    answer = content_pb2.StoredMessage(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=[content_pb2.Part(text=text)])
    )
    run = executor.add_run(
        "r",
        [
            event("r", 1, run_created=run_pb2.RunCreated(agent="agent", revision="ab" * 32, input=asked)),
            event("r", 2, run_claimed=run_pb2.RunClaimed(executor_id="e", epoch=1)),
            event(
                "r",
                3,
                step_started=run_pb2.StepStarted(step=1, model=run_pb2.ModelIntent(provider="openai", model="m")),
            ),
            event(
                "r",
                4,
                step_finished=run_pb2.StepFinished(step=1, state=run_pb2.STEP_STATE_SUCCEEDED, message=answer),
            ),
            ended("r", 5),
        ],
    )
    run.run.output.CopyFrom(answer.message)


async def test_run_prints_the_id_first_and_the_answer_alone_on_standard_output(
    executor: FakeExecutor, holdfast: Invoke
) -> None:
    answered(executor)
    result = await holdfast("run", "agent", "Do it.")
    assert result.exit_code == ExitCode.OK, result.output
    assert result.stdout == "All done.\n"
    assert result.stderr.splitlines()[0] == "run r"
    assert "SUCCEEDED" in result.stderr


async def test_run_as_json_is_one_value_a_line_and_ends_with_the_run(executor: FakeExecutor, holdfast: Invoke) -> None:
    answered(executor)
    executor.runs["r"].streams.append(
        [executor.runs["r"].events[0], delta("r", 1, 1, 0, "All"), *executor.runs["r"].events[1:]]
    )
    result = await holdfast("run", "agent", "Do it.", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [next(iter(line)) for line in lines] == ["run", "event", "delta", *["event"] * 4, "run"]
    assert lines[-1]["run"]["state"] == "RUN_STATE_SUCCEEDED"
    assert lines[2]["delta"]["text"] == "All"


async def test_detached_run_prints_its_id_alone(executor: FakeExecutor, holdfast: Invoke) -> None:
    answered(executor)
    result = await holdfast("run", "agent", "-", "--detach", input="From a pipe.\n")
    assert (result.exit_code, result.stdout) == (ExitCode.OK, "r\n")
    assert executor.started[0].text == "From a pipe."
    assert executor.runs["r"].after_seqs == []


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (run_pb2.RUN_STATE_SUCCEEDED, ExitCode.OK),
        (run_pb2.RUN_STATE_FAILED, ExitCode.RUN_FAILED),
        (run_pb2.RUN_STATE_CANCELLED, ExitCode.RUN_CANCELLED),
    ],
    ids=lambda value: value.name if isinstance(value, ExitCode) else "",
)
async def test_exit_code_says_how_the_run_ended(
    executor: FakeExecutor, holdfast: Invoke, state: run_pb2.RunState, code: ExitCode
) -> None:
    executor.add_run("r", [event("r", 1), ended("r", 2, state)])
    assert (await holdfast("tail", "r")).exit_code == code
    assert (await holdfast("tail", "r", "--json")).exit_code == code


async def test_no_wait_leaves_a_run_that_asks_a_person(executor: FakeExecutor, holdfast: Invoke) -> None:
    approval = run_pb2.Approval(approval_id="q", prompt="Refund?", kind=run_pb2.APPROVAL_KIND_QUESTION)
    waits = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT)
    events = [
        event("r", 1, approval_requested=run_pb2.ApprovalRequested(approval=approval)),
        event("r", 2, run_state_changed=waits),
    ]
    executor.add_run("r", events)
    result = await holdfast("tail", "r", "--no-wait")
    assert result.exit_code == ExitCode.RUN_WAITING
    assert "Refund?" in result.stderr
    assert 'holdfast answer q "…"' in result.stderr


async def test_a_call_that_waits_for_approval_is_shown_with_its_arguments_and_what_to_do(
    executor: FakeExecutor, holdfast: Invoke
) -> None:
    approval = run_pb2.Approval(
        approval_id="q",
        prompt="May refund be called?",
        kind=run_pb2.APPROVAL_KIND_TOOL_CALL,
        tool="refund",
        arguments_json='{"amount":5}',
        arguments_sha256="ab" * 32,
    )
    waits = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_WAITING, wait_reason=run_pb2.WAIT_REASON_APPROVAL)
    approved = run_pb2.ApprovalDecided(
        approval_id="q",
        step=2,
        verdict=run_pb2.APPROVAL_VERDICT_APPROVED,
        scope=run_pb2.APPROVAL_SCOPE_SESSION,
        decided_by="key-of-ada",
        edited_arguments_json='{"amount":4}',
    )
    rejected = run_pb2.ApprovalDecided(
        approval_id="r", step=3, verdict=run_pb2.APPROVAL_VERDICT_REJECTED, reason="too much", decided_by="key-of-bob"
    )
    events = [
        event("r", 1, approval_requested=run_pb2.ApprovalRequested(approval=approval)),
        event("r", 2, approval_decided=approved),
        event("r", 3, approval_decided=rejected),
        event("r", 4, run_state_changed=waits),
    ]
    executor.add_run("r", events)
    result = await holdfast("tail", "r", "--no-wait")
    assert result.exit_code == ExitCode.RUN_WAITING
    for shown in (
        "May refund be called?",
        'refund {"amount":5}',
        f"sha256 {'ab' * 32}",
        "holdfast approve q ",
        "holdfast reject q ",
        'approved for the session by key-of-ada with {"amount":4}',
        "rejected by key-of-bob: too much",
    ):
        assert shown in result.stderr


async def test_tail_begins_where_it_is_told(executor: FakeExecutor, holdfast: Invoke) -> None:
    executor.add_run("r", [event("r", 1), event("r", 2), ended("r", 3)])
    result = await holdfast("tail", "r", "--from", "3", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"]["seq"] for line in lines if "event" in line] == ["3"]


async def test_unknown_agent_is_one_sentence_with_reason_and_hint(holdfast: Invoke) -> None:
    result = await holdfast("run", "nobody", "hi")
    assert result.exit_code == ExitCode.ERROR
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: there is no agent 'nobody' (AGENT_NOT_FOUND)",
        "hint: `holdfast agents` lists those of this workspace; `holdfast apply -f` adds one",
    ]


async def test_error_as_json_is_for_programs(holdfast: Invoke) -> None:
    result = await holdfast("tail", "x", "--json")
    assert json.loads(result.stderr)["error"]["reason"] == "RUN_NOT_FOUND"
    assert result.stdout == ""


async def test_refused_key_and_missing_scope_have_their_exit_code(
    executor: FakeExecutor, holdfast: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.refuse = PermissionDenied("the key may not do this", reason="SCOPE_MISSING")
    assert (await holdfast("runs")).exit_code == ExitCode.PERMISSION
    monkeypatch.setenv("HOLDFAST_API_KEY", "wrong")
    result = await holdfast("runs")
    assert (result.exit_code, "wrong" in result.output) == (ExitCode.PERMISSION, False)
    monkeypatch.delenv("HOLDFAST_API_KEY")
    assert (await holdfast("runs")).exit_code == ExitCode.PERMISSION


async def test_suite_that_is_away_has_its_exit_code_and_names_the_address(
    holdfast: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeExecutor() as gone:
        monkeypatch.setenv("HOLDFAST_ADDRESS", gone.address)
    result = await holdfast("runs")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert f"the executor service at {gone.address} can't be reached" in result.stderr
    assert "holdfast up" in result.stderr


async def test_unavailable_service_is_no_missing_suite(executor: FakeExecutor, holdfast: Invoke) -> None:
    executor.refuse = Unavailable("the database is away", reason="STORAGE_UNAVAILABLE")
    result = await holdfast("runs")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert result.stderr.startswith("error: the database is away (STORAGE_UNAVAILABLE)\n")


async def test_runs_are_listed_in_full_without_a_terminal(executor: FakeExecutor, holdfast: Invoke) -> None:
    for number in range(3):
        executor.add_run(f"0190f5fe-7c00-7a00-8a00-00000000000{number}", [ended("x", 1)])
    result = await holdfast("runs")
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [
        [f"0190f5fe-7c00-7a00-8a00-00000000000{number}", "agent", "SUCCEEDED"] for number in range(3)
    ]
    listed = json.loads((await holdfast("runs", "--limit", "2", "--json")).stdout)
    assert len(listed) == 2


async def test_cancel_tells_the_reason(executor: FakeExecutor, holdfast: Invoke) -> None:
    executor.add_run("r", [event("r", 1)])
    result = await holdfast("cancel", "r", "--reason", "wrong order")
    assert result.stdout == "run r will end at its next safe point\n"
    assert executor.cancelled[0].reason == "wrong order"
    assert executor.cancelled[0].request_id


async def test_run_is_paused_and_resumed_below_the_list_of_runs(executor: FakeExecutor, holdfast: Invoke) -> None:
    executor.add_run("r", [event("r", 1)])
    assert (await holdfast("runs", "pause", "r", "--reason", "lunch")).stdout == "run r is paused\n"
    assert json.loads((await holdfast("runs", "resume", "r", "--json")).stdout)["state"] == "RUN_STATE_QUEUED"
    [paused], [resumed] = executor.paused, executor.resumed
    assert (paused.reason, resumed.run_id) == ("lunch", "r")
    assert paused.request_id and resumed.request_id
    missing = await holdfast("runs", "pause", "nothing")
    assert (missing.exit_code, "RUN_NOT_FOUND" in missing.stderr) == (ExitCode.ERROR, True)


async def test_tail_shows_a_pause_and_leaves_when_told_not_to_wait(executor: FakeExecutor, holdfast: Invoke) -> None:
    paused = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_PAUSED)
    events = [
        event("r", 1, pause_requested=run_pb2.PauseRequested(reason="lunch")),
        event("r", 2, run_state_changed=paused),
    ]
    executor.add_run("r", events).run.state = run_pb2.RUN_STATE_PAUSED
    result = await holdfast("tail", "r", "--no-wait")
    assert result.exit_code == ExitCode.RUN_WAITING
    assert "pause was asked for: lunch" in result.stderr


async def test_expired_run_has_an_exit_code_of_its_own(executor: FakeExecutor, holdfast: Invoke) -> None:
    executor.add_run("r", [event("r", 1), ended("r", 2, run_pb2.RUN_STATE_EXPIRED)])
    assert (await holdfast("tail", "r")).exit_code == ExitCode.RUN_EXPIRED
    refused = await holdfast("run", "support", "hi", "--ttl", "soon")
    assert (refused.exit_code, "90s" in refused.stderr) == (ExitCode.USAGE, True)


async def test_budget_is_given_shown_and_has_an_exit_code(executor: FakeExecutor, holdfast: Invoke) -> None:
    events = [event("r", 1), ended("r", 2, run_pb2.RUN_STATE_BUDGET_EXCEEDED)]
    executor.add_run("r", events).run.agent = "support"
    executor.budgets["r"] = [
        run_pb2.BudgetLine(
            limit="max_cost_usd_nanos", max=10**9, used=250_000_000, reserved=50_000_000, left=7 * 10**8
        ),
        run_pb2.BudgetLine(limit="max_tool_calls", max=3, used=3),
    ]
    limits = ("--max-cost", "$0.25", "--max-tokens", "1000", "--max-model-calls", "4", "--max-tool-calls", "3")
    assert (await holdfast("run", "support", "hi", *limits)).exit_code == ExitCode.RUN_BUDGET_EXCEEDED
    assert executor.started[0].budget == agent_pb2.Budget(
        max_cost_usd_nanos=250_000_000, max_total_tokens=1_000, max_model_calls=4, max_tool_calls=3
    )
    shown = (await holdfast("runs", "get", "r")).stdout
    assert "BUDGET_EXCEEDED" in shown
    assert "cost_usd_nanos $1.00  $0.2500 $0.0500  $0.7000".split() == shown.splitlines()[-2].split()
    told = json.loads((await holdfast("runs", "get", "r", "--json")).stdout)
    assert told["budget"][1] == {"limit": "max_tool_calls", "max": "3", "used": "3"}
    refused = await holdfast("run", "support", "hi", "--max-cost", "a lot")
    assert (refused.exit_code, "0.25" in refused.stderr) == (ExitCode.USAGE, True)


async def test_question_about_a_budget_says_how_it_is_answered(executor: FakeExecutor, holdfast: Invoke) -> None:
    asked = run_pb2.Approval(
        approval_id="q", kind=run_pb2.APPROVAL_KIND_BUDGET, prompt="How much more?", step=2,
        budget=run_pb2.BudgetShortfall(limit="max_total_tokens", needed=512),
    )  # fmt: skip
    events = [
        event("r", 1, step_started=run_pb2.StepStarted(step=2, kind=run_pb2.STEP_KIND_WAIT)),
        event("r", 2, approval_requested=run_pb2.ApprovalRequested(approval=asked)),
        event("r", 3, approval_decided=run_pb2.ApprovalDecided(approval_id="q", step=2, answer_json="512")),
        ended("r", 4),
    ]
    executor.add_run("r", events)
    shown = (await holdfast("tail", "r")).stderr
    assert "holdfast answer q 512\n" in shown and "holdfast answer q --fail\n" in shown
    assert "decided: 512" in shown


async def test_apply_stores_every_agent_of_every_file(executor: FakeExecutor, holdfast: Invoke, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(AGENT)
    (tmp_path / "b.yaml").write_text(AGENT.replace("shop", "bar") + "---\n" + AGENT.replace("shop", "cafe"))
    result = await holdfast("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert result.exit_code == ExitCode.OK, result.output
    assert [spec.name for spec in executor.applied] == ["shop", "bar", "cafe"]
    assert result.stdout.splitlines()[0] == "shop applied revision abababababab"


async def test_mistake_in_the_last_file_leaves_nothing_applied(
    executor: FakeExecutor, holdfast: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(AGENT)
    (tmp_path / "b.yaml").write_text("name: bar\nmodel:\n  povider: openai\n")
    result = await holdfast("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert result.exit_code == ExitCode.ERROR
    assert f"{tmp_path / 'b.yaml'}:3: model.povider: unknown key; did you mean provider?" in result.stderr
    assert executor.applied == []


async def test_refusal_of_a_field_by_the_service_names_file_and_line(
    executor: FakeExecutor, holdfast: Invoke, tmp_path: Path
) -> None:
    executor.apply_error = InvalidArgument(
        "bad", field_violations=[FieldViolation("spec.model.provider", "unknown provider")]
    )
    (tmp_path / "a.yaml").write_text("name: shop\nmodel:\n  provider: cohere\n")
    result = await holdfast("apply", "-f", str(tmp_path / "a.yaml"))
    assert f"{tmp_path / 'a.yaml'}:3: model.provider: unknown provider" in result.stderr


async def test_missing_file_is_named(holdfast: Invoke, tmp_path: Path) -> None:
    result = await holdfast("apply", "-f", str(tmp_path / "none.yaml"))
    assert result.exit_code == ExitCode.ERROR
    assert result.stderr == f"error: {tmp_path / 'none.yaml'}: No such file or directory\n"


async def test_apply_completes_worker_tools_from_python(
    executor: FakeExecutor, holdfast: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "completing_tools.py").write_text(
        "from holdfast import tool\n"
        "@tool(effect='idempotent')\n"
        "def look(order: str) -> str:\n"
        "    '''Looks up an order.'''\n"
        "    return order\n"
    )
    (tmp_path / "a.yaml").write_text(AGENT + "tools:\n  - name: look\n    worker:\n")
    result = await holdfast("apply", "-f", "a.yaml", "--worker", "completing_tools")
    assert result.exit_code == ExitCode.OK, result.output
    [tool] = executor.applied[0].tools
    assert (tool.description, tool.effect) == ("Looks up an order.", 2)


async def test_check_stores_nothing(executor: FakeExecutor, holdfast: Invoke) -> None:
    result = await holdfast("apply", "-f", "-", "--check", input=AGENT)
    assert result.stdout.startswith("shop checked")
    assert executor.applied == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "agent"], "Missing argument 'TEXT'"),
        (["runs", "--state", "asleep"], "is none of queued, running"),
        (["tail", "r", "--from", "0"], "--from"),
        (["nonsense"], "No such command 'nonsense'"),
        (["answer", "a", "b", "c"], "put the text in quotes"),
        (["answer"], "give one of TEXT"),
        (["answer", "yes", "--fail"], "give one of TEXT"),
        (["keys", "create", "x", "--expires", "soon"], "is no duration such as 12h"),
        (["connections", "create", "vllm", "--no-api-key"], "needs its address"),
        (["up", "--port-base", "70000"], "--port-base"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    holdfast: Invoke, arguments: list[str], message: str
) -> None:
    result = await holdfast(*arguments)
    assert result.exit_code == ExitCode.USAGE, result.output
    # The message is in a frame that breaks its lines.
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())


async def test_wrong_usage_of_a_real_process_has_no_traceback(launch: Launch) -> None:
    process = await launch("runs", "--no-such-option")
    out, err = await process.communicate()
    assert (process.returncode, out) == (ExitCode.USAGE, b"")
    assert b"No such option: --no-such-option" in err
    assert b"Traceback" not in err


async def test_broken_configuration_of_a_real_process_is_one_sentence(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[profiles\n")
    process = await launch("--profile", "x", "runs")
    _, err = await process.communicate()
    assert process.returncode == ExitCode.ERROR
    assert err.decode().startswith(f"error: {tmp_path / 'config.toml'} is not valid TOML")
    assert b"Traceback" not in err


async def test_ctrl_c_detaches_and_says_how_to_go_on(executor: FakeExecutor, launch: Launch) -> None:
    run = executor.add_run("r", [event("r", 1), event("r", 2)])
    process = await launch("tail", "r", "--json")
    assert process.stdout is not None
    async with asyncio.timeout(30):
        await run.watches.get()
        await process.stdout.readline()
        await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    process = await launch("tail", "r")
    async with asyncio.timeout(30):
        await run.watches.get()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Detached; the run goes on. To follow it: holdfast tail r --from " in err.decode()
    assert executor.cancelled == []


async def test_worker_target_that_cannot_be_used_is_explained(
    holdfast: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_module.py").write_text("import no_such_library\n")
    (tmp_path / "empty_module.py").write_text("TOOLS = []\nNUMBER = 1\n")
    for target, message in (
        ("missing_module", "there is no module 'missing_module'"),
        ("failing_module", "failing_module can't be imported: ModuleNotFoundError: No module named 'no_such_library'"),
        ("empty_module", "the module empty_module has no @tool functions"),
        ("empty_module:OTHER", "the module empty_module has no 'OTHER'"),
        ("empty_module:NUMBER", "expected a list of tools, a Worker, or a module"),
        (":x", "is not of the form module or module:name"),
    ):
        result = await holdfast("worker", target)
        assert result.exit_code == ExitCode.ERROR
        assert message in result.stderr
        assert "Traceback" not in result.stderr


async def test_worker_serves_every_tool_of_a_module_and_drains_on_ctrl_c(
    executor: FakeExecutor, launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(
        "from holdfast import tool\n"
        "@tool(effect='read_only')\n"
        "def one() -> int: return 1\n"
        "@tool(effect='read_only')\n"
        "def two() -> int: return 2\n"
        "again = two\n"
    )
    process = await launch("worker", "shop", "--slots", "3")
    async with asyncio.timeout(30):
        stream = await executor.next_stream()
        hello = await stream.welcome()
        assert sorted(served.name for served in hello.tools) == ["one", "two"]
        assert hello.slots == 3
        await stream.hand("lease", "two")
        assert (await executor.next_completion()).result_json == "2"
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 0


async def test_key_of_a_connection_is_never_an_argument(holdfast: Invoke) -> None:
    result = await holdfast("connections", "create", "openai", "--api-key", "sk-x")
    assert result.exit_code == ExitCode.USAGE
    result = await holdfast("connections", "create", "openai")
    assert "--api-key-stdin" in result.stderr


async def test_version_names_what_matters(holdfast: Invoke) -> None:
    result = await holdfast("version", "--json")
    assert set(json.loads(result.stdout)) == {"holdfast", "python", "grpcio", "protobuf"}


async def test_help_lists_the_commands_in_the_order_of_their_use(holdfast: Invoke) -> None:
    result = await holdfast("--help")
    commands = re.findall(r"^│ (\w+) {2,}\S", result.stdout.partition("Commands")[2], re.MULTILINE)
    assert commands[:6] == ["up", "apply", "agents", "worker", "run", "tail"]


def test_every_command_and_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    names += [found.name for found in app.registered_groups if found.name]
    for name in names:
        assert f"holdfast {name}" in text, name
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", text, re.MULTILINE), code
        assert str(code.value) in EPILOG


def test_every_command_takes_json() -> None:
    import typer.main

    group = typer.main.get_command(app)
    pending = [("holdfast", group)]
    while pending:
        path, command = pending.pop()
        commands = getattr(command, "commands", None)
        if commands:
            pending += [(f"{path} {name}", found) for name, found in commands.items()]
        if path != "holdfast":
            assert any("--json" in parameter.opts for parameter in command.params), path
