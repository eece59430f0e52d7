"""`holdfast workspace`: what a workspace may use, and how long it keeps what has ended."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.auth.v1 import workspace_service_pb2 as auth_pb2
from holdfast.api.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from holdfast.api.common.v1 import workspace_pb2
from holdfast.api.state.v1 import housekeeping_service_pb2 as state_pb2
from holdfast.api.state.v1.housekeeping_service_pb2_grpc import HousekeepingServiceStub
from holdfast.cli.app import JsonOption, group, with_client
from holdfast.cli.console import ExitCode, moment, note, plain, print_json, say
from holdfast.cli.data import described
from holdfast.cli.operator import OPERATOR, DataOption, operator_channel
from holdfast.client import Client
from holdfast.errors import InvalidArgument

OPERATOR_SECONDS: Final = 60.0
DELETE_SECONDS: Final = 3600.0

T = TypeVar("T")

WorkspaceOption = Annotated[
    str,
    typer.Option(
        "--workspace",
        metavar="ID",
        help="Another workspace, by its id; as the operator, with the suite's service token.",
    ),
]

_UNITS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_NEVER: Final = ("forever", "for ever", "never")

_SEALING: Final = {
    auth_pb2.PAYLOAD_SEALING_UNSPECIFIED: "as the installation is set",
    auth_pb2.PAYLOAD_SEALING_ON: "yes",
    auth_pb2.PAYLOAD_SEALING_OFF: "no",
}


class Choice(StrEnum):
    """What a workspace chooses."""

    ON = "on"
    OFF = "off"
    DEFAULT = "default"


workspace = group("workspace", "What the workspace may use and how long it keeps what has ended; alone it shows that.")


@workspace.callback()
def default(context: typer.Context, as_json: JsonOption = False) -> None:
    """What the workspace may use and how long it keeps what has ended; alone it shows that."""
    if context.invoked_subcommand is None:
        show(as_json=as_json)


@workspace.command()
def show(
    workspace_id: WorkspaceOption = "",
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the settings of the key's workspace."""
    if workspace_id:
        request = state_pb2.GetWorkspaceSettingsRequest(workspace_id=workspace_id)

        async def ask(state: HousekeepingServiceStub) -> workspace_pb2.WorkspaceSettings:
            return (await state.GetWorkspaceSettings(request, timeout=OPERATOR_SECONDS)).settings

        _print(as_operator(data, ask), as_json=as_json)
        return

    async def look(client: Client) -> tuple[workspace_pb2.WorkspaceSettings, auth_pb2.Workspace]:
        return await client.housekeeping.settings(), await client.workspace()

    settings, own = with_client(look)
    if as_json:
        print_json({**plain(settings), "payload_sealing": auth_pb2.PayloadSealing.Name(own.payload_sealing)})
        return
    _print(settings, as_json=False)
    say(f"{'what is said is stored sealed':36} {_SEALING[own.payload_sealing]}")


@workspace.command()
def seal(
    choice: Annotated[Choice, typer.Argument(help="`default` leaves it to the installation.")],
    as_json: JsonOption = False,
) -> None:
    """Administrators: decide whether what people, models and tools say is stored sealed under the workspace's own key.

    It holds within seconds. What is stored already stays as it is, and all of it is read as before. Deleting the
    workspace destroys the key, so that what was sealed can be read in no backup either.
    """
    is_on = {Choice.ON: True, Choice.OFF: False, Choice.DEFAULT: None}[choice]
    changed = with_client(lambda client: client.seal_payloads(is_on))
    if as_json:
        print_json(changed)
        return
    say(f"what is said in {changed.name} is stored sealed: {_SEALING[changed.payload_sealing]}")


@workspace.command("set")
def set_settings(
    ended_runs_kept: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long a run is kept after its end: 12h, 30d, 8w, or forever."),
    ] = None,
    idle_sessions_kept: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long a conversation without runs is kept: 90d, 52w, or forever."),
    ] = None,
    keep_latest_runs: Annotated[
        int | None, typer.Option(min=0, help="Keep the newest so many runs of each agent whatever their age.")
    ] = None,
    weight: Annotated[
        int | None, typer.Option(min=1, max=100, help="Operator: its share of claims beside other workspaces.")
    ] = None,
    max_running_runs: Annotated[
        int | None, typer.Option(min=0, help="Operator: how many of its runs are driven at once; 0 is no limit.")
    ] = None,
    workspace_id: WorkspaceOption = "",
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change settings; what is not named stays. Retention is for administrators, the rest for the suite's operator."""
    settings = workspace_pb2.WorkspaceSettings()
    fields: list[str] = []
    for name, number in (
        ("keep_latest_runs", keep_latest_runs),
        ("weight", weight),
        ("max_running_runs", max_running_runs),
    ):
        if number is not None:
            fields.append(name)
            setattr(settings, name, number)
    for name, text in (("ended_runs_kept", ended_runs_kept), ("idle_sessions_kept", idle_sessions_kept)):
        if text is not None:
            fields.append(name)
            seconds = _seconds(text, f"--{name.replace('_', '-')}")
            if seconds:
                getattr(settings, name).CopyFrom(Duration(seconds=seconds))
    if not fields:
        raise typer.BadParameter("name a setting to change, such as --ended-runs-kept 30d")
    if workspace_id:
        request = state_pb2.UpdateWorkspaceSettingsRequest(
            workspace_id=workspace_id, settings=settings, update_mask=FieldMask(paths=fields)
        )

        async def ask(state: HousekeepingServiceStub) -> workspace_pb2.WorkspaceSettings:
            return (await state.UpdateWorkspaceSettings(request, timeout=OPERATOR_SECONDS)).settings

        _print(as_operator(data, ask), as_json=as_json)
        return
    _print(with_client(lambda client: client.housekeeping.update_settings(settings, fields)), as_json=as_json)


@workspace.command()
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the workspace.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Operator: delete a workspace for good, with its runs, its connections and the key that its data is sealed under.

    It is closed first: its API keys end, nothing new begins. What runs is cancelled, and its data is erased. Then its
    grants are revoked at their providers, its credentials are deleted, and its key is destroyed, so that what was
    sealed under it can be read in no backup either. Whatever breaks it off, the same command again goes on.
    """
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise InvalidArgument("this cannot be undone: add --yes")
        note(f"This deletes the workspace {name} with all that it has. It cannot be undone.", style="bold")
        if typer.prompt("Type its name to go on", err=True, default="", show_default=False) != name:
            raise typer.Exit(int(ExitCode.ERROR))

    async def run() -> tuple[auth_pb2.DeleteWorkspaceResponse, workspace_pb2.DataCounts]:
        async with operator_channel(data, "auth") as channel:
            closed = await WorkspaceServiceStub(channel).CloseWorkspace(
                auth_pb2.CloseWorkspaceRequest(name=name), timeout=OPERATOR_SECONDS
            )
        async with operator_channel(data) as channel:
            note(f"workspace {name} is closed; cancelling and erasing its runs …")
            erased = await _erase(HousekeepingServiceStub(channel), closed.workspace.workspace_id)
        note("erased; revoking its connections …")
        async with operator_channel(data, "auth") as channel:
            deleted = await WorkspaceServiceStub(channel).DeleteWorkspace(
                auth_pb2.DeleteWorkspaceRequest(name=name), timeout=DELETE_SECONDS
            )
        return deleted, erased

    deleted, erased = asyncio.run(run())
    if as_json:
        print_json({"deleted": plain(deleted.workspace), "connections": deleted.deleted_connections, **plain(erased)})
        return
    say(f"erased {described(erased)}")
    count = deleted.deleted_connections
    say(f"revoked {count} connection{'' if count == 1 else 's'}, destroyed the key")
    say(f"workspace {name} is deleted; its audit records stay")


async def _erase(state: HousekeepingServiceStub, workspace_id: str) -> workspace_pb2.DataCounts:
    """Cancels and erases what the workspace has; what was being started when it was closed ends at the second look."""
    request = state_pb2.EraseDataRequest(
        workspace_id=workspace_id,
        scope=workspace_pb2.DataScope(everything=True),
        cancel_first=True,
        requested_by=OPERATOR,
    )
    erased = workspace_pb2.DataCounts()
    for _ in range(2):
        found = workspace_pb2.DataCounts()
        async for frame in state.EraseData(request, timeout=DELETE_SECONDS):
            found.CopyFrom(frame.erased)
        for field in ("sessions", "runs", "events", "blobs", "agents"):
            setattr(erased, field, getattr(erased, field) + getattr(found, field))
    return erased


def as_operator(data: Path | None, ask: Callable[[HousekeepingServiceStub], Awaitable[T]]) -> T:
    """Runs `ask` with state, as the operator of the suite."""

    async def run() -> T:
        async with operator_channel(data) as channel:
            return await ask(HousekeepingServiceStub(channel))

    return asyncio.run(run())


def _seconds(text: str, option: str) -> int:
    """Returns a duration's seconds; 0 for ever."""
    cleaned = text.strip().lower()
    if cleaned in _NEVER:
        return 0
    match = re.fullmatch(r"(\d{1,6})\s*([mhdw])", cleaned)
    if match is None or not int(match[1]):
        raise typer.BadParameter(f"{text!r} is no duration such as 12h, 30d or 8w, and not forever", param_hint=option)
    return int(match[1]) * _UNITS[match[2]]


def _print(settings: workspace_pb2.WorkspaceSettings, *, as_json: bool) -> None:
    if as_json:
        print_json(settings)
        return
    for name, text in (
        ("ended runs are kept", _period(settings, "ended_runs_kept")),
        ("conversations without runs are kept", _period(settings, "idle_sessions_kept")),
        ("kept in any case", f"the newest {settings.keep_latest_runs} runs of each agent"),
        ("weight", str(settings.weight)),
        ("runs at once", str(settings.max_running_runs or "no limit")),
        ("changed", moment(settings.update_time) or "never"),
    ):
        say(f"{name:36} {text}")


def _period(settings: workspace_pb2.WorkspaceSettings, name: str) -> str:
    if not settings.HasField(name):
        return "for ever"
    seconds = getattr(settings, name).seconds
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
