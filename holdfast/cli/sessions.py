"""`holdfast sessions`: conversations and their messages."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from holdfast.api.common.v1 import content_pb2
from holdfast.api.executor.v1 import session_service_pb2
from holdfast.cli.app import JsonOption, LimitOption, group, take, with_client
from holdfast.cli.console import age, moment, note, print_json, print_table, say
from holdfast.client import Client
from holdfast.runs import short_name

sessions = group("sessions", "Conversations; alone it lists them.")

_ROLE_STYLES = {"USER": "bold cyan", "ASSISTANT": "bold green", "TOOL": "bold yellow", "RUNTIME": "bold magenta"}


@sessions.callback()
def default(
    context: typer.Context,
    user: Annotated[str, typer.Option(help="Only those of this user.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Conversations; alone it lists them."""
    if context.invoked_subcommand is None:
        list_sessions(user=user, limit=limit, as_json=as_json)


@sessions.command("list")
def list_sessions(
    user: Annotated[str, typer.Option(help="Only those of this user.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List conversations, newest first."""
    found = with_client(lambda client: take(client.sessions.list(user_id=user), limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("session", "user", "began", "run"),
        ((item.session_id, item.user_id, age(item.create_time), item.last_run_id) for item in found),
        empty="There are no conversations.",
    )


@sessions.command()
def show(
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the conversation.")],
    as_json: JsonOption = False,
) -> None:
    """Show the messages of a conversation, in order."""

    async def read(client: Client) -> list[session_service_pb2.SessionMessage]:
        return [item async for item in client.sessions.messages(session_id)]

    found = with_client(read)
    if as_json:
        print_json(found)
        return
    if not found:
        note("Nothing has been said.")
    for item in found:
        for line in message_lines(item.message, f"{moment(item.time)}  run {item.run_id}"):
            say(line)


def message_lines(message: content_pb2.Message, where: str = "") -> list[Text]:
    """Returns a message for a person: who speaks, and every part of it in full."""
    role = short_name(content_pb2.Role, message.role, "ROLE_")
    lines = [Text.assemble((role.lower(), _ROLE_STYLES.get(role, "bold")), (f"  {where}" if where else "", "dim"))]
    for part in message.parts:
        kind = part.WhichOneof("kind")
        if kind == "text":
            lines += [Text(f"  {line}") for line in part.text.splitlines()]
        elif kind == "tool_call":
            lines.append(Text(f"  → {part.tool_call.tool} {part.tool_call.arguments_json}", style="cyan"))
        elif kind == "tool_result":
            style = "red" if part.tool_result.is_error else ""
            mark = "✗" if part.tool_result.is_error else "←"
            content = part.tool_result.content.splitlines() or [""]
            lines.append(Text(f"  {mark} {part.tool_result.tool}: {content[0]}", style=style))
            lines += [Text(f"    {line}", style=style) for line in content[1:]]
        elif kind == "reasoning" and part.reasoning.text:
            lines += [Text(f"  {line}", style="dim italic") for line in part.reasoning.text.splitlines()]
    return lines
