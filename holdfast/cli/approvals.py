"""`holdfast approvals`, `approve`, `reject` and `answer`: what waits for a person, and the person's word."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from holdfast.api.common.v1 import run_pb2
from holdfast.cli.app import JsonOption, LimitOption, app, read_text, take, with_client
from holdfast.cli.console import age, moment, note, out, print_json, say
from holdfast.cli.run_view import question_lines, verdict_text
from holdfast.client import Client
from holdfast.errors import InvalidArgument, NotFound
from holdfast.ids import is_uuid
from holdfast.resources import Resolution
from holdfast.runs import short_name


@app.command()
def approvals(
    approval_id: Annotated[
        str | None, typer.Argument(metavar="[APPROVAL]", help="Show this one, with a call's arguments whole.")
    ] = None,
    run_id: Annotated[str, typer.Option("--run", help="Only those of this run.")] = "",
    root: Annotated[str, typer.Option(help="Only those of this run and of the agents' runs below it.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those that are decided or void.")] = False,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List questions and calls that wait for a person, and the commands that decide them."""
    if approval_id is not None:
        shown = with_client(lambda client: client.approvals.get(approval_id))
        print_json(shown) if as_json else _show(shown, is_whole=True)
        return
    found = with_client(
        lambda client: take(client.approvals.list(run_id=run_id, root_run_id=root, pending_only=not everything), limit)
    )
    if as_json:
        print_json(found)
        return
    if not found:
        note("Nothing waits for a person.")
    for approval in found:
        _show(approval)


def _show(approval: run_pb2.Approval, *, is_whole: bool = False) -> None:
    state = short_name(run_pb2.ApprovalState, approval.state, "APPROVAL_STATE_")
    say(f"{approval.approval_id}  {state}  run {approval.run_id}, step {approval.step}, {age(approval.create_time)}")
    lines = question_lines(approval, is_whole=is_whole)
    for line in lines if approval.state == run_pb2.APPROVAL_STATE_PENDING else lines[:1]:
        out().print(line)
    if approval.HasField("decision"):
        said = verdict_text(approval.decision) if approval.decision.verdict else f"by {approval.decision.decided_by}"
        say(f"    {moment(approval.decide_time)} {said}", style="dim")


@app.command()
def answer(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[APPROVAL_OR_RUN] [TEXT]",
            help="The question, or the run that asks; may be left out when only one question is open. Then the answer: "
            "a text, or JSON where the question has a schema; - reads standard input.",
        ),
    ] = None,
    done: Annotated[
        str | None, typer.Option("--done", metavar="RESULT", help="The call took effect; this is its result.")
    ] = None,
    not_done: Annotated[bool, typer.Option("--not-done", help="The call took no effect: call it again.")] = False,
    tell_model: Annotated[
        bool, typer.Option("--tell-model", help="Tell the model that nobody knows, or signed in.")
    ] = False,
    fail: Annotated[bool, typer.Option("--fail", help="Fail the run.")] = False,
    comment: Annotated[str, typer.Option(help="For the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Answer a question of an agent, confirm a sign-in, or say what a call in doubt did. The run goes on."""
    target, text = _split(words or [])
    chosen: list[Resolution] = []
    if done is not None:
        chosen.append("done")
    if not_done:
        chosen.append("not_done")
    if tell_model:
        chosen.append("tell_model")
    if fail:
        chosen.append("fail_run")
    if len(chosen) + (text is not None) != 1:
        raise typer.BadParameter("give one of TEXT, --done, --not-done, --tell-model, --fail")

    async def decide(client: Client) -> run_pb2.Approval:
        approval = await _find(client, target)
        if text is not None:
            if approval.kind == run_pb2.APPROVAL_KIND_IN_DOUBT:
                raise InvalidArgument(
                    "this is about a call in doubt: say --done RESULT, --not-done, --tell-model or --fail"
                )
            _check_is_no_call(approval)
            return await client.approvals.answer_json(approval.approval_id, read_text(text), comment=comment)
        if approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN and chosen[0] in ("done", "not_done"):
            raise InvalidArgument("this wants a sign-in: give the code that the page shows, --tell-model or --fail")
        if approval.kind == run_pb2.APPROVAL_KIND_BUDGET and chosen[0] != "fail_run":
            raise InvalidArgument("this asks for more of a budget: say how much, or --fail")
        _check_is_no_call(approval)
        if approval.kind == run_pb2.APPROVAL_KIND_QUESTION:
            raise InvalidArgument(f"this is a question, and wants an answer: {approval.prompt}")
        result = _json_or_text(read_text(done)) if done is not None else None
        return await client.approvals.resolve(approval.approval_id, chosen[0], result=result, comment=comment)

    _show_decided(with_client(decide), as_json=as_json)


_TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[APPROVAL_OR_RUN]",
        help="The question, or the run that asks; may be left out when only one call waits for approval.",
    ),
]
_HashOption = Annotated[
    str,
    typer.Option("--sha256", help="Hash of the arguments that you have seen; a call with any others is not decided."),
]
_CommentOption = Annotated[str, typer.Option(help="For the record.")]


class Scope(StrEnum):
    """For how long an approval holds."""

    ONCE = "once"
    RUN = "run"
    SESSION = "session"


@app.command()
def approve(
    target: _TargetArgument = None,
    arguments: Annotated[
        str | None,
        typer.Option(help="Make the call with these instead: one JSON object; - reads standard input."),
    ] = None,
    scope: Annotated[
        Scope,
        typer.Option(
            "--for",
            help="once: this call. run: also later calls of the tool in the run, whatever their arguments. session: "
            "also in later runs of the session.",
        ),
    ] = Scope.ONCE,
    sha256: _HashOption = "",
    comment: _CommentOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a tool's call be made that waits for approval. The run goes on."""
    edited = None if arguments is None else _json_object(read_text(arguments))

    async def decide(client: Client) -> run_pb2.Approval:
        approval = await _find_call(client, target)
        return await client.approvals.approve(
            approval.approval_id,
            arguments=edited,
            scope=scope.value,
            # What was looked up here and shown to nobody binds nobody; it keeps the two calls together all the same.
            arguments_sha256=sha256 or approval.arguments_sha256,
            comment=comment,
        )

    _show_decided(with_client(decide), as_json=as_json)


@app.command()
def reject(
    target: _TargetArgument = None,
    reason: Annotated[str, typer.Option(help="Why, for the model.")] = "",
    sha256: _HashOption = "",
    comment: _CommentOption = "",
    as_json: JsonOption = False,
) -> None:
    """Refuse a tool's call that waits for approval. The model is told, and the run goes on."""

    async def decide(client: Client) -> run_pb2.Approval:
        approval = await _find_call(client, target)
        return await client.approvals.reject(
            approval.approval_id, reason, arguments_sha256=sha256 or approval.arguments_sha256, comment=comment
        )

    _show_decided(with_client(decide), as_json=as_json)


def _show_decided(decided: run_pb2.Approval, *, as_json: bool) -> None:
    if as_json:
        print_json(decided)
    else:
        say(f"decided; to follow the run: holdfast tail {decided.run_id}")


def _check_is_no_call(approval: run_pb2.Approval) -> None:
    if approval.kind == run_pb2.APPROVAL_KIND_TOOL_CALL:
        raise InvalidArgument(
            f"this call waits for approval: holdfast approve {approval.approval_id}, or "
            f"holdfast reject {approval.approval_id}"
        )


async def _find_call(client: Client, target: str | None) -> run_pb2.Approval:
    approval = await _find(client, target, only=run_pb2.APPROVAL_KIND_TOOL_CALL)
    if approval.kind != run_pb2.APPROVAL_KIND_TOOL_CALL:
        raise InvalidArgument(f"this is no call that waits for approval; use holdfast answer {approval.approval_id}")
    return approval


def _split(words: list[str]) -> tuple[str | None, str | None]:
    if len(words) > 2:
        raise typer.BadParameter("there is more than a question and a text; put the text in quotes")
    if len(words) == 2:
        return words[0], words[1]
    if len(words) == 1:
        return (words[0], None) if is_uuid(words[0]) else (None, words[0])
    return None, None


async def _find(
    client: Client, target: str | None, only: run_pb2.ApprovalKind = run_pb2.APPROVAL_KIND_UNSPECIFIED
) -> run_pb2.Approval:
    if target is not None:
        try:
            return await client.approvals.get(target)
        except NotFound:
            # It may be the run's id.
            pass
        run = await client.run(target)
        # What agents ask that it has called is asked of whoever has to do with it.
        found = [item async for item in client.approvals.list(root_run_id=run.id) if only in (0, item.kind)]
        asked = f"the run {run.id} asks nothing"
    else:
        found = [item async for item in client.approvals.list() if only in (0, item.kind)]
        asked = "nothing waits for a person"
    if not found:
        raise InvalidArgument(asked)
    if len(found) > 1:
        listing = "\n".join(f"{item.approval_id}: {item.prompt}" for item in found)
        raise InvalidArgument(f"several questions are open; name one of them:\n{listing}")
    return found[0]


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"the arguments are not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument("the arguments are one JSON object")
    return value


def _json_or_text(text: str) -> object:
    try:
        value: object = json.loads(text)
        return value
    except ValueError:
        return text
