"""`holdfast connect`: connect an account of a user at a third party, so that agents can act with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from holdfast.api.auth.v1 import connect_service_pb2, connection_service_pb2
from holdfast.cli.app import JsonOption, app, with_client
from holdfast.cli.console import err, note, print_json, say
from holdfast.cli.loopback import Loopback, loopback
from holdfast.cli.variables import VariableOption, read_variables
from holdfast.client import Client
from holdfast.connecting import ConnectHandle
from holdfast.errors import FailedPrecondition, HoldfastError, InvalidArgument, Reason
from holdfast.runs import short_name

_CONFIRMING: Final = connect_service_pb2.CONNECT_SESSION_STATE_CONFIRMING
_CONNECTED: Final = connect_service_pb2.CONNECT_SESSION_STATE_CONNECTED
_CANCEL_SECONDS: Final = 15
_MAX_LINE_BYTES: Final = 256

_PROGRESS: Final = {
    connect_service_pb2.CONNECT_SESSION_STATE_PENDING: "waiting for the link to be opened",
    connect_service_pb2.CONNECT_SESSION_STATE_AUTHORIZING: "waiting for the consent",
    connect_service_pb2.CONNECT_SESSION_STATE_CONFIRMING: "consent given; waiting for the code",
}
_ENDS: Final = {
    connect_service_pb2.CONNECT_SESSION_STATE_DECLINED: "the consent was declined",
    connect_service_pb2.CONNECT_SESSION_STATE_EXPIRED: "it took too long",
    connect_service_pb2.CONNECT_SESSION_STATE_CANCELLED: "it was given up",
}


@app.command()
def connect(
    integration: Annotated[str, typer.Argument(metavar="INTEGRATION", help="Name of the workspace's integration.")],
    user: Annotated[str, typer.Option("--user", "-u", help="Whose account it is; not given: the workspace's.")] = "",
    name: Annotated[str, typer.Option(help="Name of the connection; the integration's when not given.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option("--scope", "-s", help="A permission beyond the integration's; may be repeated.")
    ] = None,
    variable: VariableOption = None,
    device: Annotated[bool, typer.Option("--device", help="Consent by a code typed on another device.")] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Open no browser here, and type the code that the page shows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Connect an account: prints a link, waits for the consent, and says who was connected. Ctrl-C gives it up."""
    opens = not device and not no_browser and _has_browser()

    async def work(client: Client) -> connection_service_pb2.Connection:
        async with _coming_back(opens) as back:
            handle = await client.connect(
                integration,
                user_id=user,
                connection=name,
                scopes=scope or [],
                mode="device" if device else "browser",
                return_url="" if back is None else back.url,
                variables=read_variables(variable),
            )
            try:
                _tell(handle, as_json=as_json)
                if opens:
                    await asyncio.to_thread(webbrowser.open, handle.url)
                return await _connected(handle, back)
            except BaseException:
                await _give_up(handle)
                raise

    connection = with_client(work)
    if as_json:
        print_json(connection)
        return
    whose = f" for {connection.user_id}" if connection.user_id else ""
    account = f" as {connection.account_label}" if connection.account_label else ""
    say(f"connected {integration}{account}{whose}: connection {connection.name}", style="green")
    if connection.scopes:
        say(f"granted: {', '.join(connection.scopes)}")
    if connection.missing_scopes:
        say(f"not granted: {', '.join(connection.missing_scopes)}", style="yellow")


def _tell(handle: ConnectHandle, *, as_json: bool) -> None:
    if as_json:
        print_json(handle.session)
        return
    if handle.session.user_code:
        note("Open this address on any device, and type the code:", style=None)
        say(handle.session.verification_url)
        say(handle.session.user_code, style="bold")
    else:
        note("Open this link in a browser:", style=None)
        say(handle.url)


async def _connected(handle: ConnectHandle, back: Loopback | None) -> connection_service_pb2.Connection:
    """Follows the session to its end."""
    with _Progress() as progress:
        while handle.is_open:
            progress.show(_PROGRESS[handle.session.state])
            if handle.session.state == _CONFIRMING or (back is not None and back.answer.done()):
                progress.stop()
                return await _confirmed(handle, back)
            change: asyncio.Future[object] = asyncio.ensure_future(handle.changed())
            waits: list[asyncio.Future[Any]] = [change] if back is None else [change, back.answer]
            try:
                await asyncio.wait(waits, return_when="FIRST_COMPLETED")
                if change.done():
                    change.result()
            finally:
                change.cancel()
                await asyncio.gather(change, return_exceptions=True)
    if handle.session.state == _CONNECTED:
        return await handle.confirm()
    raise _ended(handle)


async def _confirmed(handle: ConnectHandle, back: Loopback | None) -> connection_service_pb2.Connection:
    if handle.session.mode == connect_service_pb2.CONNECT_MODE_DEVICE:
        return await handle.confirm()
    if back is not None:
        with _Progress() as progress:
            progress.show("waiting for the browser to come back (with --no-browser the page shows a code instead)")
            session_id, code = await back.answer
        if session_id != handle.id:
            raise InvalidArgument("the browser came back with another sign-in than this one")
        return await handle.confirm(code)
    while True:
        try:
            return await handle.confirm(await _read_code())
        except InvalidArgument as error:
            if error.reason != Reason.CONFIRM_CODE_INVALID or not sys.stdin.isatty():
                raise
            if (await handle.refresh()).state != _CONFIRMING:
                raise _ended(handle) from error
            note("That is not the code; it is shown in the browser in which you consented.", style="yellow")


async def _read_code() -> str:
    if sys.stdin.isatty():
        err().print(Text("Code that the page shows: "), end="")
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        text = _line_of_stdin()
        with contextlib.suppress(RuntimeError):  # the command has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if line.done() else line.set_result(text))

    # Not a thread of the loop's own: an interrupted command would wait for it, and it for a line.
    threading.Thread(target=read, name="holdfast-code", daemon=True).start()
    code = (await line).strip()
    if not code:
        raise InvalidArgument("no code was given: type the one that the page shows")
    return code


def _line_of_stdin() -> str:
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):
        return sys.stdin.readline()
    read = bytearray()
    # Past Python's buffer, whose lock a waiting thread would still hold when the process ends.
    while not read.endswith(b"\n") and len(read) < _MAX_LINE_BYTES and (byte := os.read(descriptor, 1)):
        read += byte
    return read.decode(errors="replace")


def _ended(handle: ConnectHandle) -> HoldfastError:
    session = handle.session
    state = short_name(connect_service_pb2.ConnectSessionState, session.state, "CONNECT_SESSION_STATE_")
    why = _ENDS.get(session.state) or (session.failure_reason or state).replace("_", " ").lower()
    return FailedPrecondition(
        f"nothing was connected: {why}", metadata={"session_id": session.session_id, "state": state}
    )


async def _give_up(handle: ConnectHandle) -> None:
    if not handle.is_open:
        return
    # Whatever ended the command, an interrupt included: a link must not stay good that nobody waits for. A second
    # interrupt ends this too.
    try:
        async with asyncio.timeout(_CANCEL_SECONDS):
            await handle.cancel()
    except (HoldfastError, TimeoutError) as error:
        why = error.message if isinstance(error, HoldfastError) else "the service does not answer"
        note(f"it could not be given up ({why}): the link is good until it expires", style="yellow")


@asynccontextmanager
async def _coming_back(is_wanted: bool) -> AsyncIterator[Loopback | None]:
    if not is_wanted:
        yield None
        return
    async with loopback() as back:
        yield back


def _has_browser() -> bool:
    """Tells whether a browser can be opened that reaches this machine's loopback, and is not in this terminal."""
    if os.environ.get("SSH_CONNECTION") or not sys.stdout.isatty():
        return False
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


class _Progress:
    """What is being waited for: a moving line on a terminal, one line for each change elsewhere."""

    def __init__(self) -> None:
        self._console = err()
        self._status = self._console.status("") if self._console.is_terminal else None
        self._last = ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def show(self, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        if self._status is None:
            note(text)
        else:
            self._status.update(Text(text, style="dim"))
            self._status.start()

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
