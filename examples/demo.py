"""The main job, end to end: an agent works on a shop's data, its executor is killed half-way, nothing is done twice.

`make demo` runs it. It needs no server, no container and no key; everything it makes lies in a folder of its own, which
it names. With ANTHROPIC_API_KEY or OPENAI_API_KEY (and OPENAI_BASE_URL) in the environment the same agent thinks with
that model instead of a script. Exit code 0 means that each effect happened exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from examples.support.shop import Shop
from holdfast import Client, RunEvent, RunHandle, load_agents
from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.runs import text_of
from holdfast.settings import Profile, save_profile
from holdfast.testing import Suite

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "examples" / "support"
MAIL = "m-2031"
TASK = f"A new mail is in the box: {MAIL}. Please take care of it."
# The call in whose middle the executor dies. A real model may never come to it; then this many steps are enough.
FATAL_TOOL = "refund_invoice"
FATAL_STEP = 9
# What the suite calls the executor that it starts with; the second one is `executor-2`.
FIRST = "executor"
# How long the bank takes to confirm a refund: the window in which the demo strikes.
BANK_SECONDS = 3.0

# Into a file or a pipe the lines are as long as they are on a wide terminal.
os.environ.setdefault("COLUMNS", "120" if not sys.stdout.isatty() else "")
console = Console(highlight=False)


# ------------------------------------------------------------------------------------------------------- the narration


@dataclass
class Story:
    """Reads a run's events aloud, and keeps what the final table needs.

    Attributes:
        steps: What each step does, from its intent.
        arguments: Arguments of each call that the model proposed, by the call's id.
        attempts: How many attempts of each step there were.
        finished: How each step ended.
        drivers: Executors that drove the run, in order.
        killed_at: When the executor was killed, by this machine's clock.
        take_over_seconds: From then to the moment when another one had taken over.
    """

    name_of: Callable[[str], str]
    started: float
    steps: dict[int, run_pb2.StepStarted] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    finished: dict[int, run_pb2.StepFinished] = field(default_factory=dict)
    drivers: list[str] = field(default_factory=list)
    killed_at: float | None = None
    take_over_seconds: float | None = None
    state: int = run_pb2.RUN_STATE_QUEUED

    def is_at_the_worst_moment(self, event: RunEvent) -> bool:
        """Whether a refund is under way, or the run has gone far enough without one."""
        for change in event.changes:
            kind = change.WhichOneof("kind")
            if kind == "call_started" and self.steps[change.call_started.step].tool.tool == FATAL_TOOL:
                return True
            if kind == "step_started" and change.step_started.step >= FATAL_STEP:
                return True
        return False

    def say(self, text: str, *, style: str = "") -> None:
        """Prints one line with the seconds since the run began."""
        clock = Text(f"{time.monotonic() - self.started:5.1f} s", style="dim")
        row = Table.grid(padding=(0, 2))
        row.add_row(clock, Text(text, style=style))
        console.print(row)

    async def hear(self, event: RunEvent, run: RunHandle) -> None:
        """Prints what one event says."""
        for change in event.changes:
            kind = change.WhichOneof("kind")
            if kind == "run_created":
                self.say("the run is stored: from here on it ends, whoever dies")
            elif kind == "run_claimed":
                self._claimed(change.run_claimed, event)
            elif kind == "step_started":
                self._step_started(change.step_started)
            elif kind == "attempt_started":
                self.attempts[change.attempt_started.step] += 1
                self.say(f"step {change.attempt_started.step}: attempt {change.attempt_started.attempt}")
            elif kind == "attempt_failed":
                failed = change.attempt_failed
                self.say(
                    f"step {failed.step}: attempt {failed.attempt} is void ({failed.failure.reason})", style="yellow"
                )
            elif kind == "call_started":
                tool = self.steps[change.call_started.step].tool.tool
                self.say(f"step {change.call_started.step}: the worker executes {tool}", style="cyan")
            elif kind == "step_finished":
                await self._step_finished(change.step_finished, run)
            elif kind == "step_in_doubt":
                self.say(f"step {change.step_in_doubt.step}: nobody knows whether it happened; a person is asked")
            elif kind == "run_state_changed":
                self.state = change.run_state_changed.state
                self._state_changed(change.run_state_changed)

    def _claimed(self, claimed: run_pb2.RunClaimed, event: RunEvent) -> None:
        name = self.name_of(claimed.executor_id)
        if self.killed_at is not None and self.take_over_seconds is None:
            self.take_over_seconds = max(0.0, event.time.timestamp() - self.killed_at)
            self.say(f"{label(name)} has taken over, {self.take_over_seconds:.1f} s after the kill", style="bold green")
        elif not self.drivers or self.drivers[-1] != name:
            self.say(f"{label(name)} drives the run")
        self.drivers.append(name)

    def _state_changed(self, changed: run_pb2.RunStateChanged) -> None:
        name = run_pb2.RunState.Name(changed.state).removeprefix("RUN_STATE_")
        if changed.state == run_pb2.RUN_STATE_WAITING:
            reason = run_pb2.WaitReason.Name(changed.wait_reason).removeprefix("WAIT_REASON_").lower()
            self.say(f"the run is {name} for the {reason}: no process drives it, it is only rows")
        else:
            self.say(f"the run is {name}", style="bold green" if name == "SUCCEEDED" else "bold red")

    def _step_started(self, started: run_pb2.StepStarted) -> None:
        self.steps[started.step] = started
        self.attempts[started.step] += 1
        if started.WhichOneof("intent") == "model":
            self.say(f"step {started.step}: asks the model")
        else:
            effect = agent_pb2.EffectClass.Name(started.tool.effect).removeprefix("EFFECT_CLASS_").lower()
            given = _short(self.arguments.get(started.tool.call_id, ""))
            self.say(f"step {started.step}: calls {started.tool.tool} {given}  [{effect}]")

    async def _step_finished(self, finished: run_pb2.StepFinished, run: RunHandle) -> None:
        self.finished[finished.step] = finished
        message = await run.read_message(finished.message)
        for part in message.parts:
            if part.WhichOneof("kind") == "tool_call":
                self.arguments[part.tool_call.call_id] = part.tool_call.arguments_json
            elif part.WhichOneof("kind") == "tool_result":
                self.say(f"step {finished.step}: result stored: {_short(part.tool_result.content)}")
        if text := text_of(message):
            self.say(f"step {finished.step}: “{text}”", style="italic")


def label(executor: str) -> str:
    """Returns what people call an executor."""
    return "executor 1" if executor == FIRST else executor.replace("-", " ")


def _short(text: str, length: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length - 1]}…"


# ---------------------------------------------------------------------------------------------------------- the result


def print_result(story: Story, shop: Shop, *, is_scripted: bool) -> bool:
    """Prints what was executed how often; returns whether each effect happened once."""
    counts = Counter(row["idempotency_key"] for row in shop.executions())
    table = Table(title="What was executed how often", title_justify="left", header_style="bold", pad_edge=False)
    table.add_column("step", justify="right")
    table.add_column("what")
    table.add_column("effect")
    table.add_column("attempts", justify="right")
    table.add_column("results", justify="right")
    table.add_column("executed by the shop", justify="right")
    is_right = True
    for number, started in sorted(story.steps.items()):
        finished = story.finished.get(number)
        results = "1" if finished is not None else "0"
        if started.WhichOneof("intent") == "model":
            table.add_row(str(number), "model", "", str(story.attempts[number]), results, "")
            continue
        effect = agent_pb2.EffectClass.Name(started.tool.effect).removeprefix("EFFECT_CLASS_").lower()
        changes_something = started.tool.effect != agent_pb2.EFFECT_CLASS_READ_ONLY
        # The key is the runtime's, the count is the shop's own.
        executed = counts.pop(started.tool.idempotency_key, 0)
        succeeded = finished is not None and finished.state == run_pb2.STEP_STATE_SUCCEEDED
        # Arguments that do not fit never reach the shop: such a step failed without an execution.
        if changes_something and (executed > 1 or (succeeded and executed != 1)):
            is_right = False
        shown = (f"{executed} ×" if executed else "") if changes_something else "(not counted)"
        attempts = str(story.attempts[number])
        table.add_row(str(number), started.tool.tool, effect, attempts, results, shown)
    console.print()
    console.print(table)
    is_right = is_right and not counts
    if is_scripted:
        is_right = is_right and shop.refunded_cents("INV-10425") == 8900 and len(list(shop.outbox.glob("*.eml"))) == 1
    if is_right:
        console.print(
            "Each effect happened exactly once: one refund, one note on the order, one reply."
            if is_scripted
            else "Each effect happened at most once, and each that succeeded exactly once.",
            style="bold green",
        )
    else:
        console.print("An effect is missing or happened more than once. This is a bug in Holdfast.", style="bold red")
    return is_right


# ----------------------------------------------------------------------------------------------------------- the suite


class Stage:
    """The running suite: the four services, a second executor and the shop's tool worker, each a process of its own."""

    def __init__(self, suite: Suite, second: str, second_began: float, config: Path) -> None:
        self.suite = suite
        self.config = config
        self._second = second
        self._second_began = second_began

    def executor_of(self, executor_id: str) -> str:
        """Returns which process has an id: ids are UUIDv7, made by each executor when it starts."""
        made_at = int(executor_id.replace("-", "")[:12], 16) / 1000
        return self._second if made_at >= self._second_began else FIRST

    @property
    def living_executor(self) -> str:
        """An executor that was not killed."""
        return FIRST if self.suite.is_running(FIRST) else self._second


@asynccontextmanager
async def stage(data: Path, shop_folder: Path) -> AsyncIterator[Stage]:
    """Starts everything, and stops it again."""
    began = time.monotonic()
    async with Suite(data, warm=False) as suite:
        seconds = time.monotonic() - began
        console.print(
            f"The suite is up after {seconds:.1f} s: executor, state, auth and trace, four processes on SQLite."
        )
        second_began = time.time()
        second = await suite.start_executor()
        console.print("A second executor has joined: they know nothing of each other, only the journal.")
        # The configuration file that SDK and CLI read. It names both executors: a client and a worker go on with the
        # other one when theirs is lost.
        config = data / "config.toml"
        profile = Profile(
            address=f"{suite.address()},{suite.address(second)}",
            auth_address=suite.address("auth"),
            trace_address=suite.address("trace"),
            api_key=suite.api_key,
            workspace="default",
        )
        save_profile(config, "default", profile)
        os.environ["HOLDFAST_CONFIG"] = str(config)
        with tool_worker(data / "worker.log", shop_folder):
            yield Stage(suite, second, second_began, config)


@contextmanager
def tool_worker(log_file: Path, shop_folder: Path) -> Iterator[None]:
    """Runs the shop's own process, which executes its tools."""
    # The model's key is for auth alone: the tools never see it.
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment = {**inherited, "SUPPORT_SHOP": str(shop_folder), "SUPPORT_BANK_SECONDS": str(BANK_SECONDS)}
    with log_file.open("ab") as log:
        worker = subprocess.Popen(
            holdfast_command("worker", "examples.support.tools"),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    console.print(
        f"The shop's tools are in a process of their own: holdfast worker examples.support.tools ({worker.pid})"
    )
    try:
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(10)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def holdfast_command(*arguments: str) -> list[str]:
    """Returns the command line of `holdfast` with this interpreter."""
    return [sys.executable, "-m", "holdfast.cli", *arguments]


# ------------------------------------------------------------------------------------------------------------ the demo


@dataclass(frozen=True)
class Model:
    """Who thinks: the script of agent.yaml, or a provider whose key is in the environment."""

    provider: str
    name: str
    api_key: str = ""
    base_url: str = ""

    @property
    def is_scripted(self) -> bool:
        return self.provider == "scripted"


def chosen_model() -> Model:
    """Returns the model that the environment offers, or the script."""
    if key := os.environ.get("ANTHROPIC_API_KEY"):
        name = os.environ.get("ANTHROPIC_MODEL", "claude-sonnet-4-5")
        return Model("anthropic", name, key, os.environ.get("ANTHROPIC_BASE_URL", ""))
    key, base_url = os.environ.get("OPENAI_API_KEY", ""), os.environ.get("OPENAI_BASE_URL", "")
    if key or base_url:
        return Model("openai", os.environ.get("OPENAI_MODEL", "gpt-5-mini"), key, base_url)
    return Model("scripted", "")


async def prepared_agent(client: Client, model: Model) -> str:
    """Applies the agent, with the model's key as a connection of the workspace; returns the agent's name."""
    if model.is_scripted:
        [agent] = load_agents(SUPPORT / "agent.yaml")
    else:
        await client.connections.create(model.provider, model.api_key, base_url=model.base_url, replace=True)
        [agent] = load_agents(SUPPORT / "agent-model.yaml")
        agent.spec.model.provider, agent.spec.model.name = model.provider, model.name
    revision = await client.apply(agent)
    console.print(f"The agent [bold]{agent.name}[/] is applied: revision {revision.revision[:12]}.")
    return agent.name


async def follow(run: RunHandle, on: Stage) -> Story:
    """Tells the run as it happens, and kills its executor in the middle of the refund."""
    story = Story(name_of=on.executor_of, started=time.monotonic())
    async for item in run.events(deltas=False):
        if not isinstance(item, RunEvent):
            continue
        await story.hear(item, run)
        if story.killed_at is None and story.is_at_the_worst_moment(item):
            driver = story.drivers[-1]
            story.killed_at = time.time()
            await on.suite.kill(driver)
            story.say(
                f"kill -9 {on.suite.process_id(driver)}: {label(driver)} is dead, the refund is on its way",
                style="bold red",
            )
    return story


def print_next_steps(on: Stage, run_id: str, shop: Shop) -> None:
    """Prints commands that work while the suite runs."""
    holdfast = shlex.quote(str(Path(sys.executable).with_name("holdfast")))
    lines = [
        f"export HOLDFAST_CONFIG={shlex.quote(str(on.config))}",
        f"{holdfast} tail {run_id}",
        f"{holdfast} trace {run_id}",
        f"{holdfast} runs",
        f'grpcurl -plaintext -H "authorization: Bearer $(cat {shlex.quote(str(on.suite.plan.key_file))})" \\',
        f"  -d '{json.dumps({'run_id': run_id})}' \\",
        f"  {on.suite.address(on.living_executor)} holdfast.api.executor.v1.RunService/GetRun",
    ]
    console.print()
    console.print("[bold]How to go on[/], in another terminal while this one runs:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    console.print()
    reply = next(iter(sorted(shop.outbox.glob("*.eml"))), "none")
    console.print(f"The reply that was sent: {reply}", soft_wrap=True)
    console.print(f"Data and logs:           {on.suite.data}", soft_wrap=True)


async def demo(data: Path, *, stay: bool) -> int:
    """Runs the demo; returns its exit code."""
    model = chosen_model()
    console.print(
        Panel(
            "A support agent takes care of a customer's mail: it reads the mail, looks up orders, sends a refund and "
            "a reply. In the middle of the refund, when the money has moved and nobody has the result yet, its "
            "executor is killed with [bold]kill -9[/]. Another one takes the run over. At the end you see what was "
            "executed how often.",
            title="Holdfast",
            title_align="left",
            width=min(console.width, 100),
        )
    )
    if model.is_scripted:
        console.print(
            "Model: a script in examples/support/agent.yaml. Set ANTHROPIC_API_KEY or OPENAI_API_KEY for a real one."
        )
    else:
        console.print(
            f"Model: {model.name} of {model.provider}, with the key of your environment. A run is about seven calls, "
            "some 10,000 tokens together, a few cents with most models; what it cost is said at the end."
        )
    shop_folder = data / "shop"
    shop = Shop(shop_folder)
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(stage(data, shop_folder))
        client = await stack.enter_async_context(Client())
        agent = await prepared_agent(client, model)
        console.print(f"[bold]holdfast run {agent} {json.dumps(TASK)}[/]\n")
        run = await client.start(agent, TASK)
        async with asyncio.timeout(300):
            story = await follow(run, on)
        end = await run.get()
        if end.state != run_pb2.RUN_STATE_SUCCEEDED:
            console.print(
                f"The run did not succeed: {end.failure.message or run_pb2.RunState.Name(end.state)}", style="red"
            )
        if end.usage.HasField("cost_usd_nanos"):
            console.print(f"It cost USD {end.usage.cost_usd_nanos / 1e9:.4f}.")
        console.print()
        await asyncio.to_thread(subprocess.run, holdfast_command("trace", run.id), check=False)
        is_right = print_result(story, shop, is_scripted=model.is_scripted)
        if story.killed_at is None:
            console.print("The run ended before there was anything to kill.", style="yellow")
        print_next_steps(on, run.id, shop)
        if stay:
            console.print("\nThe suite goes on running. Ctrl-C ends it.", style="bold")
            await asyncio.Event().wait()
        return 0 if is_right and end.state == run_pb2.RUN_STATE_SUCCEEDED else 1


def main() -> int:
    """Reads the command line and runs the demo."""
    parser = argparse.ArgumentParser(
        description="Kill an agent's executor half-way, and see that nothing happens twice."
    )
    parser.add_argument("--data", type=Path, help="folder for everything the demo makes (default: a new one)")
    parser.add_argument("--exit", action="store_true", help="end when the run has ended, also on a terminal")
    arguments = parser.parse_args()
    data = arguments.data or Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    stay = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.exit
    # SIGTERM is Ctrl-C: what was started is stopped, whoever ends this program.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return asyncio.run(demo(data.resolve(), stay=stay))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
