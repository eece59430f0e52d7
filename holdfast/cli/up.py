"""`holdfast up`: the whole suite on this machine, in the foreground, with nothing installed beside it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from holdfast.cli.app import JsonOption, app
from holdfast.cli.console import err, out, print_json
from holdfast.cli.launch import SERVICES, WORKSPACE, Plan, check_server_is_installed, local_addresses, local_pages
from holdfast.cli.supervisor import SuiteFailure, Supervisor, extra_fields, install_signals
from holdfast.errors import FailedPrecondition, InvalidArgument
from holdfast.settings import (
    DEFAULT_PROFILE,
    PORTS,
    ConfigurationError,
    Profile,
    config_path,
    load_profiles,
    save_profile,
)
from holdfast.transport import is_local
from holdfast.version import __version__

_COLOURS: Final = {"executor": "cyan", "state": "green", "auth": "magenta", "trace": "blue", "": "bold"}
_LEVEL_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}


@app.command()
def up(
    data: Annotated[
        Path | None, typer.Option(help="Folder of everything the suite keeps.", show_default="the user's data folder")
    ] = None,
    port_base: Annotated[
        int,
        typer.Option(min=1, max=65532, help="Port of the executor; state, auth and trace take the three behind it."),
    ] = PORTS["executor"],
    host: Annotated[
        str, typer.Option(help="Where executor, auth and trace listen. Beyond this machine needs --allow-plaintext.")
    ] = "127.0.0.1",
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="Listen beyond this machine without encryption.")
    ] = False,
    profile: Annotated[
        str, typer.Option(help="Profile of the configuration file that the key is written to.")
    ] = DEFAULT_PROFILE,
    no_config: Annotated[bool, typer.Option("--no-config", help="Leave the configuration file as it is.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every call that the services answer.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only warnings and errors of the services.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start the suite here: executor, state, auth and trace, in the foreground. Ctrl-C drains and stops it."""
    check_server_is_installed()
    if not is_local(f"{host}:1" if ":" not in host else f"[{host}]:1") and not allow_plaintext:
        raise InvalidArgument(
            f"--host {host} reaches beyond this machine, and connections are not encrypted: add --allow-plaintext if "
            "nobody else can read that network"
        )
    plan = Plan(
        data=_data_folder(data),
        addresses=local_addresses(port_base, host=host),
        pages=local_pages(port_base),
        settings={"HOLDFAST_ALLOW_PLAINTEXT": "true"} if allow_plaintext else {},
    )
    try:
        plan.prepare()
    except OSError as error:
        raise FailedPrecondition(f"the data folder {plan.data} can't be used: {error.strerror}") from error
    with _locked(plan.data):
        _check_ports(plan)
        screen: _Screen = _JsonScreen() if as_json else _Screen(quiet=quiet, verbose=verbose)
        target = None if no_config else _profile_name(profile, plan)
        try:
            asyncio.run(_run(plan, screen, target))
        except SuiteFailure as failure:
            raise FailedPrecondition(str(failure)) from failure
    if not as_json:
        err().print("Stopped. Everything is kept in " + str(plan.data), style="dim")


async def _run(plan: Plan, screen: _Screen, profile: str | None) -> None:
    supervisor = Supervisor(plan, on_log=screen.log, on_remark=screen.remark)
    began = time.monotonic()
    screen.begin(plan)

    def on_up() -> None:
        seconds = time.monotonic() - began
        config = None
        if profile is not None:
            try:
                config = _write_profile(plan, profile)
            except ConfigurationError as error:
                # The suite is of use without it: the key is in the data folder.
                screen.remark("", error.message)
        screen.up(plan, seconds, config, profile)

    remove_signals = install_signals(supervisor)
    try:
        await supervisor.run(on_up)
    finally:
        remove_signals()


def _data_folder(given: Path | None) -> Path:
    if given is not None:
        return given.expanduser().resolve()
    import platformdirs

    return platformdirs.user_data_path("holdfast")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second suite out of the same folder. The lock goes with this process, however it ends."""
    path = folder / "up.lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            file.seek(0)
            owner = file.read().strip()
            named = f" (process {owner})" if owner else ""
            raise FailedPrecondition(
                f"another `holdfast up`{named} uses {folder}: stop it, or choose another folder with --data"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _check_ports(plan: Plan) -> None:
    for service in SERVICES:
        host, _, port = plan.addresses[service].rpartition(":")
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the services do it: a port whose last connections are still fading is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((bare, int(port)))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise FailedPrecondition(
                        f"port {port}, which {service} needs, is in use: choose others with --port-base, such as "
                        f"--port-base {_another_base(int(port))}"
                    ) from error
                raise FailedPrecondition(
                    f"{service} can't listen on {plan.addresses[service]}: {error.strerror}; see --host and --port-base"
                ) from error


def _another_base(port: int) -> int:
    return port // 100 * 100 + 100 if port < 65_000 else PORTS["executor"]


def _profile_name(wanted: str, plan: Plan) -> str:
    """Returns the profile to write: a remote suite's profile is never overwritten by one on this machine."""
    stored = load_profiles(config_path()).get(wanted)
    if stored is None or not stored.address or is_local(stored.address) or stored.address == plan.addresses["executor"]:
        return wanted
    return "local"


def _write_profile(plan: Plan, name: str) -> Path:
    path = config_path()
    key = plan.key_file.read_text(encoding="utf-8").strip()
    reachable = {service: _reachable(address) for service, address in plan.addresses.items()}
    save_profile(
        path,
        name,
        Profile(
            address=reachable["executor"],
            auth_address=reachable["auth"],
            trace_address=reachable["trace"],
            api_key=key,
            workspace=WORKSPACE,
        ),
    )
    return path


def _reachable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + f":{port}"


class _Screen:
    """What a person sees."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose

    def begin(self, plan: Plan) -> None:
        out().print(Text(f"Holdfast {__version__}: starting executor, state, auth and trace in {plan.data}"))

    def log(self, service: str, line: dict[str, Any] | str) -> None:
        console = out()
        if isinstance(line, str):
            console.print(Text.assemble(self._prefix("", service), line))
            return
        level = str(line.get("level", "info"))
        if self._quiet and level not in ("warning", "error", "critical"):
            return
        if level == "info" and line.get("event") == "rpc" and not self._verbose:
            # A line for each call drowns what a person looks for.
            return
        style = _LEVEL_STYLES.get(level, "")
        text = Text.assemble(
            self._prefix(_clock(line.get("time")), service),
            (f"{level} " if style and level != "debug" else "", style),
            (str(line.get("event", "")), style),
        )
        fields = extra_fields(line)
        if fields:
            text.append(f"  {fields}", style="dim")
        console.print(text)
        for row in str(line.get("exception", "")).splitlines():
            console.print(Text.assemble(self._prefix("", service), (row, "dim red")))

    def remark(self, service: str, text: str) -> None:
        now = datetime.now().strftime("%H:%M:%S")
        out().print(Text.assemble(self._prefix(now, service or "up"), (text, "yellow" if service else "bold")))

    @staticmethod
    def _prefix(clock: str, service: str) -> Text:
        return Text.assemble((f"{clock:8} ", "dim"), (f"{service:8} ", _COLOURS.get(service, "bold")))

    def up(self, plan: Plan, seconds: float, config: Path | None, profile: str | None) -> None:
        console = out()
        addresses = {service: _reachable(address) for service, address in plan.addresses.items()}
        console.print()
        console.print(Text(f"Holdfast is up after {seconds:.1f} s.", style="bold green"))
        self._row(console, "addresses", "  ".join(f"{name} {address}" for name, address in addresses.items()))
        self._row(console, "data", str(plan.data))
        if config is not None:
            self._row(console, "key", f"written to the profile {profile!r} of {config} (mode 0600)")
        else:
            self._row(console, "key", f"in {plan.key_file}")
        self._row(console, "for", "one machine: SQLite, plain text on loopback. See docs/operations.md for more.")
        select = "" if profile in (None, DEFAULT_PROFILE) else f"HOLDFAST_PROFILE={profile} "
        console.print()
        self._row(console, "try", f"{select}holdfast apply -f agent.yaml")
        self._row(console, "", f'{select}holdfast run AGENT "Hello"')
        self._row(console, "", grpcurl_line(plan.key_file, addresses["executor"]))
        console.print()
        console.print(Text("Ctrl-C drains and stops it.", style="dim"))
        console.print()

    @staticmethod
    def _row(console: Console, name: str, text: str) -> None:
        console.print(Text.assemble((f"  {name:10} ", "bold"), text))


class _JsonScreen(_Screen):
    """What a program sees: one JSON object a line."""

    def begin(self, plan: Plan) -> None:
        print_json({"event": "starting", "service": "up", "data": str(plan.data), "process_id": os.getpid()})

    def log(self, service: str, line: dict[str, Any] | str) -> None:
        print_json({"service": service, "event": line} if isinstance(line, str) else line)

    def remark(self, service: str, text: str) -> None:
        print_json({"service": service or "up", "event": text})

    def up(self, plan: Plan, seconds: float, config: Path | None, profile: str | None) -> None:
        print_json(
            {
                "event": "up",
                "service": "up",
                "seconds": round(seconds, 3),
                "addresses": dict(plan.addresses),
                "data": str(plan.data),
                "key_file": str(plan.key_file),
                "config": str(config) if config is not None else None,
                "profile": profile,
            }
        )


def grpcurl_line(key_file: Path, address: str) -> str:
    """Returns a command that lists the agents with grpcurl."""
    return (
        f'grpcurl -plaintext -H "authorization: Bearer $(cat {shlex.quote(str(key_file))})" '
        f"{address} holdfast.api.executor.v1.AgentService/ListAgents"
    )


def _clock(time_text: Any) -> str:
    try:
        return datetime.fromisoformat(str(time_text)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return ""
