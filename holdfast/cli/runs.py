"""`holdfast run`, `tail`, `runs` and `cancel`."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from contextlib import aclosing, suppress
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

import typer
from rich.text import Text

from holdfast.agent import Budget
from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import run_service_pb2
from holdfast.cli.app import JsonOption, LimitOption, app, group, read_text, take, with_client
from holdfast.cli.console import ExitCode, age, cost, err, note, out, print_json, print_table, say, state_text, tokens
from holdfast.cli.run_view import PERSON, RunView, summary
from holdfast.client import Client
from holdfast.runs import ENDED, RunEvent, RunHandle, TextDelta, state_name, text_of

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the record.")]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Leave with exit code 5 when the run waits for a person or is paused.")
]

_EXIT_CODES = {
    run_pb2.RUN_STATE_SUCCEEDED: ExitCode.OK,
    run_pb2.RUN_STATE_FAILED: ExitCode.RUN_FAILED,
    run_pb2.RUN_STATE_CANCELLED: ExitCode.RUN_CANCELLED,
    run_pb2.RUN_STATE_EXPIRED: ExitCode.RUN_EXPIRED,
    run_pb2.RUN_STATE_BUDGET_EXCEEDED: ExitCode.RUN_BUDGET_EXCEEDED,
}


@app.command()
def run(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Name of the agent.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the run is asked to do; - reads standard input.")],
    session: Annotated[str, typer.Option(help="Go on with this conversation.")] = "",
    user: Annotated[str, typer.Option(help="On whose behalf: an id of your own.")] = "",
    revision: Annotated[str, typer.Option(help="A revision or a label instead of latest.")] = "",
    reject_when_busy: Annotated[
        bool, typer.Option("--reject-when-busy", help="Refuse while the session has an unfinished run.")
    ] = False,
    batch: Annotated[bool, typer.Option("--batch", help="Let the workspace's other runs go first.")] = False,
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="End it EXPIRED unless it has ended by then: 90s, 30m, 12h, 7d.")
    ] = "",
    max_cost: Annotated[
        str, typer.Option(metavar="USD", help="Stop it before its model calls cost more, such as 0.25.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="Stop it before it sends and receives more tokens.")] = 0,
    max_model_calls: Annotated[int, typer.Option(min=0, help="Stop it before it calls the model more often.")] = 0,
    max_tool_calls: Annotated[int, typer.Option(min=0, help="Stop it before it calls more tools.")] = 0,
    request_id: Annotated[
        str, typer.Option(help="The same id with the same content is the same run, however often it is sent.")
    ] = "",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the run's id and leave.")] = False,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a run and follow it. Ctrl-C leaves it running; `holdfast cancel` stops it."""
    asked = read_text(text)
    limit = _ttl(ttl) if ttl else None
    budget = Budget(
        max_cost_usd=_dollars(max_cost) if max_cost else 0,
        max_total_tokens=max_tokens,
        max_model_calls=max_model_calls,
        max_tool_calls=max_tool_calls,
    )

    async def start(client: Client) -> int:
        handle = await client.start(
            agent,
            asked,
            revision=revision,
            session_id=session,
            user_id=user,
            reject_when_busy=reject_when_busy,
            priority="batch" if batch else "interactive",
            ttl=limit,
            budget=budget if budget != Budget() else None,
            request_id=request_id or None,
        )
        if detach:
            print_json({"run": handle.run}) if as_json else say(handle.id)
            return ExitCode.OK
        if as_json:
            print_json({"run": handle.run})
        else:
            # On a terminal everything is one story; in a pipe the answer alone is the result.
            (out() if sys.stdout.isatty() else err()).print(Text.assemble(("run ", "dim"), (handle.id, "bold")))
        return await follow(handle, 0, as_json=as_json, no_wait=no_wait)

    raise typer.Exit(int(with_client(start)))


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _ttl(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,9})\s*([smhdw])", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time such as 90s, 30m, 12h or 7d", param_hint="--ttl")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _dollars(text: str) -> Decimal:
    match = re.fullmatch(r"\$?(\d{1,7}(?:\.\d{1,9})?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no amount of dollars such as 0.25", param_hint="--max-cost")
    return Decimal(match[1])


@app.command()
def tail(
    run_id: RunArgument,
    begin: Annotated[int, typer.Option("--from", metavar="SEQ", min=1, help="Number of the first event to show.")] = 1,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Follow a run: what it did, then what it does, until it ends. The exit code says how."""

    async def attach(client: Client) -> int:
        handle = await client.run(run_id)
        return await follow(handle, begin - 1, as_json=as_json, no_wait=no_wait)

    raise typer.Exit(int(with_client(attach)))


async def follow(handle: RunHandle, after_seq: int, *, as_json: bool, no_wait: bool) -> int:
    """Prints a run until its end and returns the exit code."""
    position = [after_seq]
    following = asyncio.ensure_future(_follow(handle, position, as_json=as_json, no_wait=no_wait))
    loop = asyncio.get_running_loop()
    is_interrupted = False

    def interrupt() -> None:
        nonlocal is_interrupted
        is_interrupted = True
        following.cancel()

    with suppress(ValueError, RuntimeError, NotImplementedError):
        # Outside the main thread there are no signals to handle.
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await following
    except asyncio.CancelledError:
        if not is_interrupted:
            raise
        if not as_json:
            note(f"\nDetached; the run goes on. To follow it: holdfast tail {handle.id} --from {position[0] + 1}")
            note(f"To stop it: holdfast cancel {handle.id}")
        return ExitCode.INTERRUPTED
    finally:
        with suppress(ValueError, RuntimeError, NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)


async def _follow(handle: RunHandle, position: list[int], *, as_json: bool, no_wait: bool) -> int:
    in_terminal = sys.stdout.isatty()
    view = None if as_json else RunView(out() if in_terminal else err(), handle)
    try:
        async with aclosing(handle.events(position[0])) as items:
            async for item in items:
                if isinstance(item, TextDelta):
                    if view is not None:
                        view.delta(item)
                    else:
                        print_json(_delta_json(handle.id, item))
                    continue
                if view is not None:
                    await view.event(item)
                else:
                    print_json(run_service_pb2.WatchRunResponse(event=item.message))
                position[0] = item.seq
                if no_wait and await _waits_for_a_person(handle, item):
                    break
    finally:
        if view is not None:
            view.close()
    run = await handle.get()
    if as_json:
        print_json({"run": run})
    elif run.state in ENDED:
        if run.state == run_pb2.RUN_STATE_SUCCEEDED and not in_terminal:
            say(text_of(run.output))
        note(f"{summary(run)} · holdfast trace {run.run_id}")
    return _EXIT_CODES.get(run.state, ExitCode.RUN_WAITING)


async def _waits_for_a_person(handle: RunHandle, event: RunEvent) -> bool:
    if event.state not in (run_pb2.RUN_STATE_WAITING, run_pb2.RUN_STATE_PAUSED):
        return False
    run = await handle.get()
    # An event of the past may have been answered since.
    is_asked = run.state == run_pb2.RUN_STATE_WAITING and run.wait_reason in PERSON
    return is_asked or run.state == run_pb2.RUN_STATE_PAUSED


def _delta_json(run_id: str, delta: TextDelta) -> run_service_pb2.WatchRunResponse:
    return run_service_pb2.WatchRunResponse(
        delta=run_pb2.Delta(run_id=run_id, step=delta.step, attempt=delta.attempt, index=delta.index, text=delta.text)
    )


runs = group("runs", "Runs; alone it lists them, newest first.")


@runs.callback()
def list_runs(
    context: typer.Context,
    agent: Annotated[str, typer.Option(help="Only runs of this agent.")] = "",
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs in this state: queued, running, waiting, paused, succeeded, failed, cancelled, expired, "
            "budget_exceeded."
        ),
    ] = None,
    session: Annotated[str, typer.Option(help="Only runs of this conversation.")] = "",
    user: Annotated[str, typer.Option(help="Only runs on behalf of this user.")] = "",
    parent: Annotated[str, typer.Option(help="Only the runs that this one started, by calls of agents.")] = "",
    root: Annotated[str, typer.Option(help="This run and all below it.")] = "",
    children: Annotated[bool, typer.Option("--children", help="Also runs that other runs started.")] = False,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Runs; alone it lists them, newest first."""
    if context.invoked_subcommand is not None:
        return
    states = [_state(name) for name in state or ()]
    found = with_client(
        lambda client: take(
            client.runs.list(
                agent=agent,
                session_id=session,
                user_id=user,
                states=states,
                parent_run_id=parent,
                root_run_id=root,
                include_children=children,
            ),
            limit,
        )
    )
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "agent", "state", "began", "steps", "tokens", "cost", "why"),
        (
            (
                item.run_id,
                item.agent,
                state_text(state_name(item.state)),
                age(item.create_time),
                str(item.step_count),
                tokens(item.usage.input_tokens + item.usage.output_tokens),
                cost(item.usage.cost_usd_nanos if item.usage.HasField("cost_usd_nanos") else None),
                _why(item),
            )
            for item in found
        ),
        empty='There are no such runs; `holdfast run AGENT "text"` starts one.',
    )


def _state(name: str) -> int:
    known = {
        value.removeprefix("RUN_STATE_").lower(): number
        for value, number in run_pb2.RunState.items()
        if number != run_pb2.RUN_STATE_UNSPECIFIED
    }
    found = known.get(name.lower().removeprefix("run_state_"))
    if found is None:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint="--state")
    return found


def _why(item: run_pb2.Run) -> str:
    if item.state == run_pb2.RUN_STATE_WAITING:
        return run_pb2.WaitReason.Name(item.wait_reason).removeprefix("WAIT_REASON_").lower().replace("_", " ")
    if item.state == run_pb2.RUN_STATE_FAILED:
        return item.failure.reason
    if item.state in ENDED or item.state == run_pb2.RUN_STATE_PAUSED:
        return ""
    return "cancelling" if item.cancel_requested else "pausing" if item.pause_requested else ""


@runs.command()
def get(run_id: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run, the runs of agents that it started, and what of its budget is used, reserved and left."""

    async def look(client: Client) -> tuple[run_pb2.Run, list[run_pb2.BudgetLine], list[run_pb2.Run]]:
        handle = await client.run(run_id)
        children = [child async for child in client.runs.list(parent_run_id=handle.id)]
        return handle.run, await handle.budget(), children

    found, lines, children = with_client(look)
    if as_json:
        print_json({"run": found, "budget": lines, "children": children})
        return
    why = _why(found)
    say(Text.assemble((f"run {found.run_id} ", "bold"), state_text(state_name(found.state)), f" {why}" if why else ""))
    say(f"{found.agent} · {summary(found)} · began {age(found.create_time)}")
    if found.parent_run_id:
        say(f"started by step {found.parent_step} of run {found.parent_run_id}, at depth {found.depth}")
    if found.HasField("failure"):
        say(f"{found.failure.message} ({found.failure.reason})", style="red")
    if found.HasField("output"):
        say(text_of(found.output))
    if lines:
        print_table(
            ("budget", "limit", "used", "reserved", "left"),
            (
                (
                    line.limit.removeprefix("max_"),
                    *(_amount(line, of) for of in (line.max, line.used, line.reserved, line.left)),
                )
                for line in lines
            ),
            empty="",
        )
    if children:
        print_table(
            ("step", "run", "agent", "state", "why"),
            (
                (str(child.parent_step), child.run_id, child.agent, state_text(state_name(child.state)), _why(child))
                for child in sorted(children, key=lambda child: child.parent_step)
            ),
            empty="",
        )


def _amount(line: run_pb2.BudgetLine, amount: int) -> str:
    return cost(amount) if line.limit == "max_cost_usd_nanos" else f"{amount:,}"


@runs.command()
def pause(run_id: RunArgument, reason: ReasonOption = "", as_json: JsonOption = False) -> None:
    """Let a run rest until it is resumed; what is under way ends before."""
    found = with_client(lambda client: client.pause(run_id, reason))
    if as_json:
        print_json(found)
        return
    word = "will pause at its next safe point"
    if found.state == run_pb2.RUN_STATE_PAUSED:
        word = "is paused"
    elif found.cancel_requested:
        word = "is being cancelled, and is not paused"
    say(f"run {found.run_id} {word}")


@runs.command()
def resume(run_id: RunArgument, reason: ReasonOption = "", as_json: JsonOption = False) -> None:
    """Go on with a paused run, or withdraw that it was to be paused."""
    found = with_client(lambda client: client.resume(run_id, reason))
    print_json(found) if as_json else say(f"run {found.run_id} goes on")


@app.command()
def cancel(
    run_id: RunArgument,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask a run to stop; it ends at its next safe point."""

    async def ask(client: Client) -> run_pb2.Run:
        handle = await client.run(run_id)
        return await handle.cancel(reason)

    found = with_client(ask)
    if as_json:
        print_json(found)
        return
    word = "is cancelled" if found.state == run_pb2.RUN_STATE_CANCELLED else "will end at its next safe point"
    say(f"run {found.run_id} {word}")
