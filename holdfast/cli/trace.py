"""`holdfast trace`: where a run's time, tokens and money went, and every step in full."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from holdfast.api.common.v1 import agent_pb2
from holdfast.api.trace.v1 import query_service_pb2
from holdfast.cli.app import JsonOption, app, with_client
from holdfast.cli.console import (
    cost,
    moment,
    note,
    out,
    plain,
    print_json,
    print_wide,
    say,
    span,
    state_text,
    to_datetime,
    tokens,
)
from holdfast.cli.run_view import question_lines, verdict_text
from holdfast.cli.sessions import message_lines
from holdfast.client import Client
from holdfast.runs import short_name, state_name

_BAR_WIDTH: Final = 36

_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
_COST: Final = "holdfast.usage.cost_usd_nanos"
_ATTEMPTS: Final = "holdfast.attempt.count"
_IN_DOUBT: Final = "holdfast.step.in_doubt"

_STYLES: Final[Mapping[int, str]] = {
    query_service_pb2.SPAN_KIND_RUN: "bold",
    query_service_pb2.SPAN_KIND_SEGMENT: "dim",
    query_service_pb2.SPAN_KIND_MODEL: "green",
    query_service_pb2.SPAN_KIND_TOOL: "cyan",
    query_service_pb2.SPAN_KIND_WAIT: "magenta",
    query_service_pb2.SPAN_KIND_ATTEMPT: "yellow",
    query_service_pb2.SPAN_KIND_APPROVAL: "magenta",
}


@app.command()
def trace(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    step: Annotated[int | None, typer.Option(min=1, help="Show this step with its full input and output.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run with those below it as a waterfall, or one step of it in full."""
    if step is not None:
        detail = with_client(lambda client: client.trace.step(run_id, step))
        print_json(detail) if as_json else _show_step(detail)
        return

    async def read(client: Client) -> query_service_pb2.GetRunTreeResponse:
        # Trace reads the journal a moment after it is written; a run that has just ended is shown whole.
        run = (await client.run(run_id)).run
        return await client.trace.tree(run_id, min_seq=run.last_seq, include_children=True)

    tree = with_client(read)
    print_json(tree) if as_json else _show_tree(tree)


# --------------------------------------------------------------------------------------------------------- waterfall


def _show_tree(tree: query_service_pb2.GetRunTreeResponse) -> None:
    run = tree.run
    say(Text.assemble(("run ", "dim"), (run.run_id, "bold"), "  ", state_text(state_name(run.state))))
    revision = f"{run.agent} @ {run.revision[:12]}"
    say(Text(f"  {revision}  session {run.session_id}" + (f"  user {run.user_id}" if run.user_id else ""), style="dim"))
    parts = [
        f"active {span(run.active_duration.ToTimedelta())}",
        f"waiting {span(run.waiting_duration.ToTimedelta())}",
        f"queued {span(run.queued_duration.ToTimedelta())}",
        f"{run.model_calls} model calls",
        f"{run.tool_calls} tool calls",
        f"{run.failed_attempts} failed attempts",
        f"{run.claims} claims",
    ]
    if run.paused_duration.ToTimedelta():
        parts.insert(2, f"paused {span(run.paused_duration.ToTimedelta())}")
    used = run.usage.input_tokens + run.usage.output_tokens
    if used:
        parts.append(f"{tokens(used)} tokens")
        parts.append(cost(run.usage.cost_usd_nanos if run.usage.HasField("cost_usd_nanos") else None))
    say(f"  {' · '.join(parts)}", style="dim")
    if run.HasField("failure"):
        say(f"  {run.failure.message} ({run.failure.reason})", style="red")
    say()
    if not tree.spans:
        note("Trace has not read this run yet.")
        return
    console = out()
    name_width = max(20, console.width - _BAR_WIDTH - 44) if console.is_terminal else None
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("name", no_wrap=True, overflow="ellipsis", max_width=name_width)
    table.add_column("", no_wrap=True, width=_BAR_WIDTH)
    for name in ("begins", "takes", "tries", "tokens", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    begin, end = _extent(tree.spans)
    for entry, depth in _in_tree_order(tree.spans):
        table.add_row(*_row(entry, depth, begin, end))
    print_wide(table)
    say()
    note(f"One step in full: holdfast trace {run.run_id} --step N")


def _in_tree_order(
    spans: Sequence[query_service_pb2.Span],
) -> Iterator[tuple[query_service_pb2.Span, int]]:
    known = {entry.span_id for entry in spans}
    children: dict[str, list[query_service_pb2.Span]] = {}
    for entry in spans:
        parent = entry.parent_span_id if entry.parent_span_id in known else ""
        children.setdefault(parent, []).append(entry)

    def walk(parent: str, depth: int) -> Iterator[tuple[query_service_pb2.Span, int]]:
        for entry in sorted(children.get(parent, ()), key=lambda entry: (entry.start_time.ToNanoseconds(), entry.step)):
            yield entry, depth
            yield from walk(entry.span_id, depth + 1)

    return walk("", 0)


def _extent(spans: Sequence[query_service_pb2.Span]) -> tuple[datetime, datetime]:
    begin = min(to_datetime(entry.start_time) for entry in spans)
    end = max(_end(entry) for entry in spans)
    return begin, max(end, begin + timedelta(milliseconds=1))


def _end(entry: query_service_pb2.Span) -> datetime:
    return to_datetime(entry.end_time) if entry.HasField("end_time") else datetime.now(UTC)


def _row(entry: query_service_pb2.Span, depth: int, begin: datetime, end: datetime) -> list[Text]:
    start, finish = to_datetime(entry.start_time), _end(entry)
    style = _STYLES.get(entry.kind, "")
    name = Text("  " * depth + entry.name, style=style)
    attributes = plain(entry.attributes)
    if entry.status == query_service_pb2.SPAN_STATUS_ERROR:
        name.append(f"  {entry.failure.reason}", style="red")
    elif entry.status == query_service_pb2.SPAN_STATUS_CANCELLED:
        name.append("  cancelled", style="yellow")
    if attributes.get(_IN_DOUBT):
        name.append("  in doubt", style="magenta")
    is_open = not entry.HasField("end_time")
    bar_style = "red" if entry.status == query_service_pb2.SPAN_STATUS_ERROR else style
    # The run's own span carries sums; those of its parts say the same in detail.
    attempts = attributes.get(_ATTEMPTS)
    used = int(attributes.get(_INPUT_TOKENS, 0)) + int(attributes.get(_OUTPUT_TOKENS, 0))
    nanos = attributes.get(_COST)
    return [
        Text(str(entry.step) if entry.step else "", style="dim"),
        name,
        Text(bar(start, finish, begin, end), style=bar_style),
        Text(f"+{span(start - begin)}", style="dim"),
        Text(span(finish - start) + ("…" if is_open else "")),
        Text(str(int(attempts)) if attempts is not None and attempts > 1 else "", style="yellow"),
        Text(tokens(used) if used else ""),
        Text(cost(int(nanos)) if nanos is not None else ""),
    ]


def bar(start: datetime, finish: datetime, begin: datetime, end: datetime, width: int = _BAR_WIDTH) -> str:
    """Returns a span's place in the whole as a bar of eighths of characters; the shortest span is still visible."""
    eighths = width * 8
    scale = eighths / (end - begin).total_seconds()
    first = min(int((start - begin).total_seconds() * scale), eighths - 1)
    last = max(first + 1, min(round((finish - begin).total_seconds() * scale), eighths))
    column, offset = divmod(first, 8)
    if last - first < 8:
        # Too short for a whole character: a thin mark where it begins.
        return " " * column + ("▏▎▍▌▋▊▉█"[max(last - first, 1) - 1] if offset < 4 else "▐")
    return " " * column + ("▐" if offset >= 4 else "█") + "█" * (last // 8 - column - 1) + _PARTIAL[last % 8]


_PARTIAL: Final = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


# -------------------------------------------------------------------------------------------------------------- a step


def _show_step(detail: query_service_pb2.GetStepResponse) -> None:
    entry = detail.span
    status = short_name(query_service_pb2.SpanStatus, entry.status, "SPAN_STATUS_")
    takes = span(_end(entry) - to_datetime(entry.start_time))
    say(Text.assemble(("step ", "dim"), (str(entry.step), "bold"), f"  {entry.name}  ", state_text(status)))
    say(f"  began {moment(entry.start_time)}, took {takes}", style="dim")
    if entry.HasField("failure"):
        say(f"  {entry.failure.message} ({entry.failure.reason})", style="red")
    for attempt in detail.attempts:
        word = short_name(query_service_pb2.SpanStatus, attempt.status, "SPAN_STATUS_")
        why = f": {attempt.failure.message} ({attempt.failure.reason})" if attempt.HasField("failure") else ""
        say(
            f"  attempt {attempt.attempt} {word}, {moment(attempt.start_time)}, "
            f"{span(_end(attempt) - to_datetime(attempt.start_time))}{why}",
            style="yellow",
        )
    if detail.WhichOneof("detail") == "model":
        _show_model(detail.model)
    elif detail.WhichOneof("detail") == "tool":
        _show_tool(detail.tool)


def _show_model(model: query_service_pb2.ModelStepDetail) -> None:
    spec = model.spec
    _heading("instructions")
    for row in spec.instructions.splitlines():
        say(f"  {row}")
    if spec.tools:
        _heading("tools offered")
        for tool in spec.tools:
            effect = short_name(agent_pb2.EffectClass, tool.effect, "EFFECT_CLASS_").lower()
            say(f"  {tool.name}  {effect}  {tool.description.partition(chr(10))[0]}")
    _heading(f"input: {len(model.input)} messages")
    for item in model.input:
        where = f"step {item.step}" if item.step else "the run's input"
        for line in message_lines(item.message, where + ("  new" if item.is_new else "")):
            say(line)
    _heading("output")
    if model.HasField("output"):
        for line in message_lines(model.output):
            say(line)
    else:
        say("  none yet")
    usage = model.usage
    used = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
    if usage.cache_read_input_tokens:
        used += f", {usage.cache_read_input_tokens} from the cache"
    price = cost(usage.cost_usd_nanos if usage.HasField("cost_usd_nanos") else None)
    say()
    say(f"{used} · {price} · {model.response_model} · {model.finish_reason}", style="dim")


def _show_tool(tool: query_service_pb2.ToolStepDetail) -> None:
    effect = short_name(agent_pb2.EffectClass, tool.effect, "EFFECT_CLASS_").lower()
    say(f"  effect {effect} · idempotency key {tool.idempotency_key} · call {tool.call_id}", style="dim")
    _heading("arguments")
    say(_pretty(tool.arguments_json))
    if tool.edited_arguments_json:
        _heading("arguments that a person approved instead")
        say(_pretty(tool.edited_arguments_json))
    if tool.approval_id:
        say(f"  made by the approval {tool.approval_id}, which holds for later calls", style="dim")
    for approval in tool.approvals:
        _heading("question")
        for line in question_lines(approval)[:1]:
            say(line)
        if approval.HasField("decision"):
            say(f"    decided {moment(approval.decide_time)} by {approval.decision.decided_by}", style="dim")
            if approval.decision.verdict:
                say(f"    {verdict_text(approval.decision)}")
            for said in (approval.decision.answer_json, approval.decision.comment):
                if said:
                    say(f"    {said}")
    _heading("what the model was shown")
    for line in message_lines(tool.shown)[1:]:
        say(line)
    if tool.output:
        _heading("the whole output")
        say(_pretty(tool.output))


def _heading(text: str) -> None:
    say()
    say(text, style="bold underline")


def _pretty(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    return json.dumps(value, ensure_ascii=False, indent=2)
