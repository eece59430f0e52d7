"""A run as it happens, for a person: text as the model writes it, and one line for each thing that happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.status import Status
from rich.text import Text

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.cli.console import cost, moment, plain, span, state_text, to_datetime, tokens
from holdfast.runs import RunEvent, RunHandle, TextDelta, short_name, state_name, text_of

_MAX_SHOWN: Final = 160

_WAITS: Final[Mapping[int, str]] = {
    run_pb2.WAIT_REASON_INPUT: "for a person's answer",
    run_pb2.WAIT_REASON_IN_DOUBT: "for a person's word on a call in doubt",
    run_pb2.WAIT_REASON_TOOL: "for a worker",
    run_pb2.WAIT_REASON_TIMER: "for its time",
    run_pb2.WAIT_REASON_AUTH: "for a sign-in",
    run_pb2.WAIT_REASON_APPROVAL: "for a person's approval of a call",
    run_pb2.WAIT_REASON_CHILD: "for an agent's run",
}

PERSON: Final = frozenset(
    {
        run_pb2.WAIT_REASON_INPUT,
        run_pb2.WAIT_REASON_IN_DOUBT,
        run_pb2.WAIT_REASON_AUTH,
        run_pb2.WAIT_REASON_APPROVAL,
    }
)
"""Reasons to wait that only somebody can end."""


class RunView:
    """Prints events and pieces of text as they come.

    Args:
        console: Where to.
        handle: The run, to fetch what an event only refers to.
    """

    def __init__(self, console: Console, handle: RunHandle) -> None:
        self._console = console
        self._handle = handle
        self._status: Status | None = None
        self._calls: dict[str, content_pb2.ToolCall] = {}
        self._tools: dict[int, str] = {}
        # The attempt whose text is on the screen, and whether its line is still open.
        self._writing: tuple[int, int] | None = None
        self._is_line_open = False
        self._written: set[int] = set()
        self._began: Any = None
        self._open_steps: dict[int, str] = {}
        self._start_times: dict[int, Any] = {}

    def delta(self, delta: TextDelta) -> None:
        """Prints a piece of a model's answer."""
        self._quiet()
        key = (delta.step, delta.attempt)
        if self._writing != key:
            self._close_line()
            if self._writing is not None and self._writing[0] == delta.step:
                self._line(Text(f"  attempt {delta.attempt} begins anew; what stands above is void", style="yellow"))
            self._writing = key
        if delta.follows_gap:
            self._console.print(Text(" […] ", style="dim"), end="")
        self._console.print(Text(delta.text), end="")
        self._is_line_open = not delta.text.endswith("\n")
        self._written.add(delta.step)
        self._console.file.flush()

    async def event(self, event: RunEvent) -> None:
        """Prints what happened."""
        self._quiet()
        for change in event.changes:
            kind = change.WhichOneof("kind")
            handler = getattr(self, f"_on_{kind}", None)
            # A kind of change that this release does not know has nothing to show.
            if handler is not None:
                await handler(getattr(change, kind), event)
        self._progress()

    def close(self) -> None:
        """Leaves the screen in order."""
        self._quiet()
        self._close_line()

    # ------------------------------------------------------------------------------------------------------ changes

    async def _on_run_created(self, created: run_pb2.RunCreated, event: RunEvent) -> None:
        self._began = event.message.time
        text = text_of(await self._handle.read_message(created.input))
        self._line(Text.assemble((f"{created.agent}", "bold"), (f" @ {created.revision[:12]}", "dim")))
        self._line(Text.assemble(("  asked ", "dim"), _short(text)))

    async def _on_run_claimed(self, claimed: run_pb2.RunClaimed, event: RunEvent) -> None:
        self._line(Text(f"  executor {claimed.executor_id} drives it (epoch {claimed.epoch})", style="dim"))

    async def _on_step_started(self, started: run_pb2.StepStarted, event: RunEvent) -> None:
        self._start_times[started.step] = event.message.time
        if started.WhichOneof("intent") == "model":
            name = "/".join(filter(None, (started.model.provider, started.model.model)))
            self._open_steps[started.step] = f"step {started.step}: {name}"
            return
        if started.WhichOneof("intent") is None:
            # A wait for a person's word on the run itself: the question says what about.
            return
        tool = started.tool
        self._tools[started.step] = tool.tool
        call = self._calls.get(tool.call_id)
        arguments = _short(call.arguments_json) if call is not None else ""
        self._open_steps[started.step] = f"step {started.step}: {tool.tool}"
        effect = short_name(agent_pb2.EffectClass, tool.effect, "EFFECT_CLASS_").lower()
        self._line(
            Text.assemble(
                (f"  {started.step:>3} → ", "cyan"),
                (tool.tool, "bold"),
                (f" {effect} " if tool.effect and not tool.child_run_id else " ", "dim"),
                arguments,
            ),
            cut=True,
        )

        self._on_child(started.step, tool.child_run_id)

    def _on_child(self, step: int, child_run_id: str) -> None:
        if child_run_id:
            self._line(Text(f"  {step:>3}   run {child_run_id}", style="dim"))

    async def _on_child_ended(self, ended: run_pb2.ChildEnded, event: RunEvent) -> None:
        self._open_steps.pop(0, None)
        state = state_text(state_name(ended.state))
        self._line(Text.assemble((f"  {ended.step:>3}   run {ended.child_run_id} ", "dim"), state))

    async def _on_attempt_started(self, started: run_pb2.AttemptStarted, event: RunEvent) -> None:
        if started.attempt == 1:
            # It was waited with: that time is not the call's.
            self._start_times[started.step] = event.message.time
        when = moment(started.not_before)
        self._line(
            Text(
                f"  {started.step:>3} ↻ attempt {started.attempt}" + (f", not before {when}" if when else ""), "yellow"
            )
        )
        self._on_child(started.step, started.child_run_id)

    async def _on_attempt_failed(self, failed: run_pb2.AttemptFailed, event: RunEvent) -> None:
        failure = failed.failure
        self._line(
            Text(f"  {failed.step:>3} ! attempt {failed.attempt}: {failure.message} ({failure.reason})", "yellow")
        )

    async def _on_step_finished(self, finished: run_pb2.StepFinished, event: RunEvent) -> None:
        self._open_steps.pop(finished.step, None)
        tool = self._tools.get(finished.step)
        if tool is None:
            await self._model_finished(finished)
            return
        seconds = self._duration(finished, event)
        message = await self._message(finished)
        result = next((part.tool_result for part in message.parts if part.WhichOneof("kind") == "tool_result"), None)
        shown = _short(result.content) if result is not None else ""
        mark, style = _MARKS.get(finished.state, ("?", ""))
        self._line(
            Text.assemble(
                (f"  {finished.step:>3} {mark} ", style),
                (tool, "bold"),
                (f" {seconds} " if seconds else " ", "dim"),
                shown,
            ),
            cut=True,
        )

    async def _model_finished(self, finished: run_pb2.StepFinished) -> None:
        message = await self._message(finished)
        for part in message.parts:
            if part.WhichOneof("kind") == "tool_call":
                self._calls[part.tool_call.call_id] = part.tool_call
        self._close_line()
        if finished.state != run_pb2.STEP_STATE_SUCCEEDED:
            failure = finished.failure
            self._line(Text(f"  {finished.step:>3} ✗ model: {failure.message} ({failure.reason})", "red"))
            return
        text = text_of(message)
        if text and finished.step not in self._written:
            self._console.print(Text(text))
        self._writing = None

    async def _on_step_in_doubt(self, doubt: run_pb2.StepInDoubt, event: RunEvent) -> None:
        tool = self._tools.get(doubt.step, "the call")
        self._line(
            Text(f"  {doubt.step:>3} ? nobody knows whether {tool} took effect: {doubt.failure.message}", "magenta")
        )

    async def _on_approval_requested(self, requested: run_pb2.ApprovalRequested, event: RunEvent) -> None:
        self._close_line()
        for line in question_lines(requested.approval):
            self._console.print(line)

    async def _on_approval_decided(self, decided: run_pb2.ApprovalDecided, event: RunEvent) -> None:
        self._open_steps.pop(decided.step, None)
        said = decided.answer_json
        if decided.verdict:
            self._line(Text.assemble((f"  {decided.step:>3} ⚖ ", "magenta"), verdict_text(decided)))
            return
        if decided.resolution:
            word = short_name(run_pb2.InDoubtResolution, decided.resolution, "IN_DOUBT_RESOLUTION_")
            said = f"{word.lower().replace('_', ' ')} {said}".strip()
        self._line(Text(f"  {decided.step:>3} ⚖ decided: {_short(said)}", style="magenta"))

    async def _on_approval_closed(self, closed: run_pb2.ApprovalClosed, event: RunEvent) -> None:
        word = short_name(run_pb2.ApprovalState, closed.state, "APPROVAL_STATE_").lower()
        self._line(Text(f"      the question {closed.approval_id} is void: {word}", style="dim"))

    async def _on_cancel_requested(self, cancel: run_pb2.CancelRequested, event: RunEvent) -> None:
        self._line(Text("  cancel was asked for" + (f": {cancel.reason}" if cancel.reason else ""), style="yellow"))

    async def _on_expiry_reached(self, expiry: run_pb2.ExpiryReached, event: RunEvent) -> None:
        self._line(Text("  its time is over", style="yellow"))

    async def _on_pause_requested(self, pause: run_pb2.PauseRequested, event: RunEvent) -> None:
        self._line(Text("  pause was asked for" + (f": {pause.reason}" if pause.reason else ""), style="yellow"))

    async def _on_resume_requested(self, resume: run_pb2.ResumeRequested, event: RunEvent) -> None:
        self._open_steps.pop(0, None)
        self._line(Text("  resume was asked for" + (f": {resume.reason}" if resume.reason else ""), style="yellow"))

    async def _on_late_result(self, late: run_pb2.LateResult, event: RunEvent) -> None:
        self._line(Text(f"  {late.step:>3} … a late result does not count: {_short(late.content)}", style="dim"))

    async def _on_run_state_changed(self, changed: run_pb2.RunStateChanged, event: RunEvent) -> None:
        if changed.state == run_pb2.RUN_STATE_WAITING:
            text = f"waits {_WAITS.get(changed.wait_reason, '')}".rstrip()
            when = moment(changed.wake_time)
            self._open_steps[0] = text + (f", until {when} at the latest" if when else "")
            return
        if changed.state == run_pb2.RUN_STATE_PAUSED:
            self._open_steps[0] = "is paused"
            return
        self._open_steps.clear()
        self._close_line()
        took = ""
        if self._began is not None:
            took = f" after {span(to_datetime(event.message.time) - to_datetime(self._began))}"
        line = Text.assemble(state_text(state_name(changed.state)), took)
        if changed.HasField("failure"):
            line.append(f": {changed.failure.message} ({changed.failure.reason})", style="red")
        self._console.print(line)

    # ------------------------------------------------------------------------------------------------------- screen

    def _duration(self, finished: run_pb2.StepFinished, event: RunEvent) -> str:
        measured = finished.duration.ToTimedelta()
        began = self._start_times.pop(finished.step, None)
        if not measured and began is not None:
            # A worker does not say how long it took: from intent to result is what the journal knows.
            measured = to_datetime(event.message.time) - to_datetime(began)
        return span(measured) if measured else ""

    async def _message(self, finished: run_pb2.StepFinished) -> content_pb2.Message:
        if not finished.HasField("message"):
            return content_pb2.Message()
        return await self._handle.read_message(finished.message)

    def _line(self, text: Text, *, cut: bool = False) -> None:
        self._close_line()
        if cut and self._console.is_terminal:
            # Arguments and results in short: one line each, as wide as the terminal.
            self._console.print(text, soft_wrap=False, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            self._console.print(text)

    def _close_line(self) -> None:
        if self._is_line_open:
            self._console.print()
            self._is_line_open = False

    def _progress(self) -> None:
        """Shows what is going on while nothing is printed; on a terminal only."""
        waiting = self._open_steps.pop(0, None)
        text = waiting or ", ".join(self._open_steps.values())
        if text and self._console.is_terminal and not self._is_line_open:
            self._status = self._console.status(Text(f"{text} …", style="dim"))
            self._status.start()
        elif waiting:
            self._line(Text(f"  {waiting}", style="magenta"))

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


_MARKS: Final[Mapping[int, tuple[str, str]]] = {
    run_pb2.STEP_STATE_SUCCEEDED: ("✓", "green"),
    run_pb2.STEP_STATE_FAILED: ("✗", "red"),
    run_pb2.STEP_STATE_CANCELLED: ("⊘", "yellow"),
}


def question_lines(approval: run_pb2.Approval, *, is_whole: bool = False) -> list[Text]:
    """Returns a question and the commands that decide it; of a call, all of its arguments if it is to be whole."""
    lines = [Text.assemble(("  ? ", "bold magenta"), (approval.prompt, "bold"))]
    if approval.kind == run_pb2.APPROVAL_KIND_IN_DOUBT:
        if approval.tool and approval.tool not in approval.prompt:
            lines.append(Text(f"    {approval.tool} {_short(approval.arguments_json)}"))
        choices = ("--done RESULT", "--not-done", "--tell-model", "--fail")
        lines += [Text(f"    holdfast answer {approval.approval_id} {choice}", style="magenta") for choice in choices]
    elif approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN:
        lines += _sign_in_lines(approval)
    elif approval.kind == run_pb2.APPROVAL_KIND_TOOL_CALL:
        lines += _call_lines(approval, is_whole=is_whole)
    elif approval.kind == run_pb2.APPROVAL_KIND_BUDGET:
        more = "'$0.25'" if approval.budget.limit == "max_cost_usd_nanos" else str(approval.budget.needed)
        lines += [
            Text(f"    holdfast answer {approval.approval_id} {choice}", "magenta") for choice in (more, "--fail")
        ]
    else:
        if approval.HasField("answer_schema"):
            lines.append(Text(f"    answer as JSON that fits {_schema(approval)}", style="dim"))
        lines.append(Text(f'    holdfast answer {approval.approval_id} "…"', style="magenta"))
    return lines


def _call_lines(approval: run_pb2.Approval, *, is_whole: bool) -> list[Text]:
    shown = approval.arguments_json if is_whole else _short(approval.arguments_json)
    lines = [
        Text(f"    {approval.tool} {shown}"),
        Text(f"    sha256 {approval.arguments_sha256}", style="dim"),
    ]
    if shown != approval.arguments_json or approval.arguments_shortened:
        lines.append(Text(f"    the whole of it: holdfast approvals {approval.approval_id}", style="dim"))
    choices = ("approve", "reject")
    for choice, more in zip(choices, ("[--arguments JSON] [--for run|session]", "[--reason TEXT]"), strict=True):
        lines.append(Text(f"    holdfast {choice} {approval.approval_id}   {more}", style="magenta"))
    return lines


def verdict_text(decided: run_pb2.ApprovalDecided) -> str:
    """Returns what somebody said about a call that waited for approval."""
    by = f" by {decided.decided_by}" if decided.decided_by else ""
    if decided.verdict == run_pb2.APPROVAL_VERDICT_REJECTED:
        return f"rejected{by}" + (f": {_short(decided.reason)}" if decided.reason else "")
    scope = ""
    if decided.scope in (run_pb2.APPROVAL_SCOPE_RUN, run_pb2.APPROVAL_SCOPE_SESSION):
        scope = f" for the {short_name(run_pb2.ApprovalScope, decided.scope, 'APPROVAL_SCOPE_').lower()}"
    edited = f" with {_short(decided.edited_arguments_json)}" if decided.edited_arguments_json else ""
    return f"approved{scope}{by}{edited}"


def _sign_in_lines(approval: run_pb2.Approval) -> list[Text]:
    needed = approval.sign_in
    whose = f" --user {needed.user_id}" if needed.user_id else ""
    scopes = "".join(f" --scope {scope}" for scope in needed.scopes)
    lines = []
    if needed.connect_url:
        lines.append(Text(f"    open {needed.connect_url}", style="magenta"))
        lines.append(
            Text(f"    holdfast answer {approval.approval_id} CODE   (the code that the page shows)", "magenta")
        )
        lines.append(Text(f"    or: holdfast connect {needed.connection}{whose}{scopes}", style="magenta"))
    else:
        lines.append(Text(f"    the run goes on by itself once the connection {needed.connection!r} is there", "dim"))
    lines += [
        Text(f"    holdfast answer {approval.approval_id} {choice}", style="magenta")
        for choice in ("--tell-model", "--fail")
    ]
    return lines


def summary(run: run_pb2.Run) -> str:
    """Returns what a run took."""
    parts = [f"{run.step_count} steps"]
    used = run.usage.input_tokens + run.usage.output_tokens
    if used:
        parts.append(f"{tokens(used)} tokens")
        parts.append(cost(run.usage.cost_usd_nanos if run.usage.HasField("cost_usd_nanos") else None))
    return " · ".join(parts)


def _schema(approval: run_pb2.Approval) -> str:
    return _short(json.dumps(plain(approval.answer_schema), ensure_ascii=False))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else f"{line[: _MAX_SHOWN - 1]}…"
