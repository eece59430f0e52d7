"""The examples run as they stand, and the demo would notice if an effect happened twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from rich.console import Console

from examples import demo
from examples.support import tools
from examples.support.shop import Shop, ShopError
from holdfast import RunEvent, Tool, load_agents
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.testing import Suite
from tests.repository.tree import ROOT

EXAMPLES = ROOT / "examples"
SECONDS = 100


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    with asyncio.Runner() as runner:
        suite = Suite()
        runner.run(suite.start())
        try:
            yield suite
        finally:
            runner.run(suite.stop())


def run_python(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


# ---------------------------------------------------------------------------------------------------------------- demo


@pytest.mark.slow
@pytest.mark.promise("P2")
@pytest.mark.promise("P5")
def test_the_demo_kills_the_executor_and_every_effect_happens_once(tmp_path: Path) -> None:
    done = run_python(EXAMPLES / "demo.py", "--exit", "--data", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" in done.stdout
    assert "has taken over" in done.stdout
    assert "Each effect happened exactly once: one refund, one note on the order, one reply." in done.stdout
    counted = [(row["tool"], row["subject"]) for row in Shop(tmp_path / "shop").executions()]
    assert sorted(counted) == [
        ("refund_invoice", "INV-10425"),
        ("send_reply", "m-2031"),
        ("update_order", "LL-10425"),
    ]


def story_of_a_refund() -> demo.Story:
    """What the demo has heard of a run whose one step was a refund with the key `key-1`."""
    story = demo.Story(name_of=str, started=0.0)
    intent = run_pb2.ToolIntent(
        tool="refund_invoice", effect=agent_pb2.EFFECT_CLASS_AT_MOST_ONCE, idempotency_key="key-1"
    )
    story.steps[1] = run_pb2.StepStarted(step=1, kind=run_pb2.STEP_KIND_TOOL, tool=intent)
    story.finished[1] = run_pb2.StepFinished(step=1, state=run_pb2.STEP_STATE_SUCCEEDED)
    return story


@pytest.mark.parametrize(("executions", "is_right"), [(0, False), (1, True), (2, False)])
def test_the_demo_says_whether_an_effect_happened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executions: int, is_right: bool
) -> None:
    shop = Shop(tmp_path)
    for _ in range(executions):
        shop.refund("INV-10425", 100, "arrived broken", "key-1")
    monkeypatch.setattr(demo, "console", Console(quiet=True))

    assert demo.print_result(story_of_a_refund(), shop, is_scripted=False) is is_right


def test_the_demo_notices_an_execution_that_no_step_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path)
    shop.refund("INV-10425", 100, "arrived broken", "key-1")
    shop.refund("INV-10425", 100, "arrived broken", "key-of-nobody")
    monkeypatch.setattr(demo, "console", Console(quiet=True))

    assert not demo.print_result(story_of_a_refund(), shop, is_scripted=False)


# ------------------------------------------------------------------------------------------------------------- support


def test_a_refund_beyond_the_invoice_is_refused_but_counted(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.refund("INV-10425", 8900, "arrived broken", "key-1")

    with pytest.raises(ShopError, match="0 cents of INV-10425 are left"):
        shop.refund("INV-10425", 8900, "arrived broken", "key-1")

    assert shop.refunded_cents("INV-10425") == 8900
    assert len(shop.executions()) == 2


@pytest.mark.parametrize("message_id", ["../shop", "m-2031.eml", "/etc/passwd", ""])
def test_a_message_id_names_nothing_outside_the_mailbox(tmp_path: Path, message_id: str) -> None:
    with pytest.raises(ShopError):
        Shop(tmp_path).mail(message_id)


def test_both_definitions_of_the_support_agent_declare_what_the_worker_serves() -> None:
    served = {value.name: value for value in vars(tools).values() if isinstance(value, Tool)}
    [scripted] = load_agents(EXAMPLES / "support/agent.yaml")
    [real] = load_agents(EXAMPLES / "support/agent-model.yaml")

    assert list(scripted.spec.tools) == list(real.spec.tools)
    assert scripted.spec.instructions == real.spec.instructions
    for declared in scripted.spec.tools:
        spec = served.pop(declared.name).spec()
        assert declared.effect == spec.effect, declared.name
        assert required(declared) == required(spec), declared.name
    assert served == {}


def required(tool: agent_pb2.ToolSpec) -> set[str]:
    schema = MessageToDict(tool.input_schema)
    return set(schema.get("required", ()))


# --------------------------------------------------------------------------------------------------------- the others


def test_hello_prints_the_answer(suite: Suite) -> None:
    done = run_python(EXAMPLES / "hello.py", environment=suite.environment())

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("I looked it up: ")


@pytest.mark.promise("P6")
async def test_ask_user_waits_for_an_answer_and_goes_on(suite: Suite) -> None:
    [agent] = load_agents(EXAMPLES / "ask_user.yaml")
    async with asyncio.timeout(SECONDS), suite.client() as client:
        await client.apply(agent)
        run = await client.start("ask-user", "Book a table for Friday")
        async for item in run.events(deltas=False):
            if isinstance(item, RunEvent) and item.state == run_pb2.RUN_STATE_WAITING:
                break
        [question] = [question async for question in client.approvals.list(run_id=run.id)]
        await client.approvals.answer(question.approval_id, "four")

        assert question.prompt == "For how many people?"
        assert await run.result() == "Understood. You asked: Book a table for Friday. The answer was: four"


@pytest.mark.parametrize("arguments", [None, {"invoice": "A-7", "amount": 90}])
async def test_large_refund_waits_for_its_approval(suite: Suite, arguments: dict[str, object] | None) -> None:
    [agent] = load_agents(EXAMPLES / "approve_refund.yaml")
    async with asyncio.timeout(SECONDS), suite.client() as client:
        await client.apply(agent)
        run = await client.start("refunds", "Please refund the chair.")
        async for item in run.events(deltas=False):
            if isinstance(item, RunEvent) and item.state == run_pb2.RUN_STATE_WAITING:
                break
        [approval] = [approval async for approval in client.approvals.list(run_id=run.id)]
        assert approval.arguments_json == '{"amount":250,"invoice":"A-7"}'
        await client.approvals.approve(approval.approval_id, arguments=arguments)
        amount = 250 if arguments is None else 90
        assert f'"amount":{amount}' in await run.result()


def test_the_readme_shows_the_examples_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    hello = (EXAMPLES / "hello.py").read_text()
    ask_user = (EXAMPLES / "ask_user.yaml").read_text()

    assert hello[hello.index("import asyncio") :].strip() in readme
    assert ask_user[ask_user.index("name: ask-user") :].strip() in readme
