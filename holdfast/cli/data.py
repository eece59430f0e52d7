"""`holdfast export` and `holdfast erase`: a workspace's data as a whole, or of one conversation or user."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from holdfast.api.common.v1 import workspace_pb2
from holdfast.cli.app import JsonOption, app, with_client
from holdfast.cli.console import ExitCode, note, plain, print_json, say
from holdfast.client import Client
from holdfast.errors import FailedPrecondition, InvalidArgument

_TAIL_BYTES: Final = 64 * 1024 * 1024

SessionOption = Annotated[str, typer.Option("--session", metavar="SESSION", help="Only this conversation.")]
UserOption = Annotated[
    str,
    typer.Option("--user", metavar="USER", help="Only the conversations of this user, and those with a run of theirs."),
]


@app.command("export")
def export_data(
    session_id: SessionOption = "",
    user_id: UserOption = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file, for its owner only; standard output when not given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a file that a broken export of the same has left.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export the workspace's data as NDJSON: agents, conversations, runs, events, questions and bodies (base64)."""
    if session_id and user_id:
        raise typer.BadParameter("give --session or --user, not both")
    if resume and output is None:
        raise typer.BadParameter("--resume needs the file: --output FILE")
    cursor = _resume(output) if resume and output is not None else ""
    counts: dict[str, int] = {}

    async def write(client: Client, file: BinaryIO) -> None:
        async for frame in client.housekeeping.export(session_id=session_id, user_id=user_id, cursor=cursor):
            for record in frame.records:
                kind = str(record.WhichOneof("kind"))
                counts[kind] = counts.get(kind, 0) + 1
                file.write(_line(record))
            # Last of its piece: what comes after it belongs to a piece that may have been cut off.
            file.write(_line({"cursor": frame.cursor}))
            file.flush()
        file.write(_line({"end": {"complete": True}}))
        file.flush()

    with _opened(output, append=resume) as file:
        with_client(lambda client: write(client, file))
        if output is not None:
            os.fsync(file.fileno())
    if as_json and output is not None:
        print_json({"exported": counts})
        return
    note("exported " + (", ".join(f"{number} {kind}s" for kind, number in sorted(counts.items())) or "nothing more"))


def _line(value: Any) -> bytes:
    return (json.dumps(plain(value), ensure_ascii=False, separators=(",", ":")) + "\n").encode()


@contextmanager
def _opened(output: Path | None, *, append: bool) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        return
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_EXCL)
    try:
        descriptor = os.open(output, flags, 0o600)
    except FileExistsError:
        raise FailedPrecondition(f"{output} exists: choose another file, or go on with it by --resume") from None
    with os.fdopen(descriptor, "wb") as file:
        yield file


def _resume(path: Path) -> str:
    """Cuts off what follows the last whole piece of an export, and returns the cursor behind that.

    Raises:
        FailedPrecondition: It is complete.
        InvalidArgument: It is no export.
    """
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        tail = file.read()
        if tail.endswith(b'{"end":{"complete":true}}\n'):
            raise FailedPrecondition(f"{path} is complete")
        at = tail.rfind(b'\n{"cursor":')
        begin = at + 1 if at >= 0 else 0
        # One that is cut in the middle is not the end of a piece; the one before it is.
        end = tail.find(b"\n", begin)
        if end < 0 and at >= 0:
            at = tail.rfind(b'\n{"cursor":', 0, at)
            begin = at + 1 if at >= 0 else 0
            end = tail.find(b"\n", begin)
        line = tail[begin:end] if end >= 0 else b""
        if not line.startswith(b'{"cursor":'):
            if start:
                raise InvalidArgument(f"{path} is no export of `holdfast export`")
            file.truncate(0)
            return ""
        file.truncate(start + end + 1)
    cursor = json.loads(line).get("cursor")
    if not isinstance(cursor, str):
        raise InvalidArgument(f"{path} is no export of `holdfast export`")
    return cursor


@app.command()
def erase(
    session_id: SessionOption = "",
    user_id: UserOption = "",
    everything: Annotated[
        bool, typer.Option("--everything", help="All that the workspace has, its agents too.")
    ] = False,
    cancel_first: Annotated[
        bool, typer.Option("--cancel", help="Cancel what has not ended first, instead of refusing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be erased.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase a conversation, those of a user, or everything, for good: runs, events, questions, bodies, traces."""
    if bool(session_id) + bool(user_id) + everything != 1:
        raise typer.BadParameter("give one of --session, --user and --everything")

    async def ask(client: Client, *, only_look: bool) -> workspace_pb2.DataCounts:
        last = workspace_pb2.DataCounts()
        async for frame in client.housekeeping.erase(
            session_id=session_id,
            user_id=user_id,
            everything=everything,
            cancel_first=cancel_first,
            dry_run=only_look,
        ):
            last.CopyFrom(frame.erased)
        return last

    found = with_client(lambda client: ask(client, only_look=True))
    if dry_run:
        if as_json:
            print_json({"dry_run": True, "would_erase": plain(found)})
        else:
            say(f"would erase {described(found)}")
        return
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise InvalidArgument("this cannot be undone: add --yes, or look first with --dry-run")
        note(f"This erases {described(found)}. It cannot be undone.", style="bold")
        if not typer.confirm("Erase it?", err=True):
            raise typer.Exit(int(ExitCode.ERROR))
    erased = with_client(lambda client: ask(client, only_look=False))
    if as_json:
        print_json({"erased": plain(erased)})
        return
    say(f"erased {described(erased)}")


def described(counts: workspace_pb2.DataCounts) -> str:
    """Says for a person what was erased, or would be."""
    parts = [
        f"{number} {noun}{'' if number == 1 else 's'}"
        for noun, number in (
            ("conversation", counts.sessions),
            ("run", counts.runs),
            ("event", counts.events),
            ("body", counts.blobs),
            ("agent", counts.agents),
            ("connection", counts.connections),
        )
        if number
    ]
    unfinished = f" ({counts.unfinished_runs} of the runs have not ended)" if counts.unfinished_runs else ""
    return (", ".join(parts) or "nothing").replace("bodys", "bodies") + unfinished
