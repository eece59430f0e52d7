"""What commands print: text for people, JSON for programs; errors as one sentence with a hint; the exit codes."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.errors import (
    DeadlineExceeded,
    HoldfastError,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unavailable,
)


class ExitCode(enum.IntEnum):
    """What `holdfast` ends with; documented in docs/cli.md and in `holdfast --help`."""

    OK = 0
    ERROR = 1
    USAGE = 2
    RUN_FAILED = 3
    RUN_CANCELLED = 4
    RUN_WAITING = 5
    RUN_EXPIRED = 6
    RUN_BUDGET_EXCEEDED = 7
    UNAVAILABLE = 69
    PERMISSION = 77
    INTERRUPTED = 130


EPILOG: Final = (
    "Exit codes: 0 ok, 1 error, 2 usage, 3 run failed, 4 run cancelled, 5 run waits for a person or is paused "
    "(--no-wait), 6 run expired, 7 run stopped by its budget, 69 service unavailable, 77 not permitted, "
    "130 interrupted. Every command takes --json."
)

STATE_STYLES: Final[Mapping[str, str]] = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "WAITING": "magenta",
    "RUNNING": "cyan",
    "QUEUED": "blue",
    "PAUSED": "magenta",
    "PENDING": "magenta",
    "ACTIVE": "green",
    "DEGRADED": "yellow",
    "UNAVAILABLE": "yellow",
    "NEEDS_REAUTH": "magenta",
    "MISCONFIGURED": "red",
    "DISABLED": "dim",
    "REVOKED": "red",
    "EXPIRED": "yellow",
    "BUDGET_EXCEEDED": "yellow",
    "IN_DOUBT": "magenta",
}


def out() -> Console:
    """Returns the console for results. Made anew, because tests and pipes replace the standard streams."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def err() -> Console:
    """Returns the console for everything that is no result."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def say(text: str | Text = "", *, style: str | None = None) -> None:
    """Prints a line as it is: what comes from outside is never read as markup."""
    out().print(text if isinstance(text, Text) else Text(text), style=style)


def note(text: str | Text, *, style: str | None = "dim") -> None:
    """Prints a remark that is no result."""
    err().print(text if isinstance(text, Text) else Text(text), style=style)


def print_json(value: Any) -> None:
    """Prints one JSON value on one line."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """Returns what JSON can say: messages in the contracts' JSON mapping, with the field names of the contracts."""
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
    """Prints a table, or a sentence when it has no rows."""
    entries = list(rows)
    if not entries:
        note(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold" if column in ("id", "run", "session") else "ellipsis", no_wrap=True)
    for row in entries:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    print_wide(table)


def print_wide(table: Table) -> None:
    """Prints a table in the width of the terminal; without one nothing is folded or cut, for other programs' sake."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=1_000)
    console.print(table)


def state_text(name: str) -> Text:
    """Returns a state's name in its colour."""
    return Text(name, style=STATE_STYLES.get(name, ""))


# -------------------------------------------------------------------------------------------------------------- errors


def exit_code_of(error: HoldfastError) -> ExitCode:
    """Returns what a command ends with after an error."""
    if isinstance(error, (Unauthenticated, PermissionDenied)):
        return ExitCode.PERMISSION
    if isinstance(error, (Unavailable, DeadlineExceeded)):
        return ExitCode.UNAVAILABLE
    return ExitCode.ERROR


def report(error: HoldfastError, *, as_json: bool) -> None:
    """Prints an error: one sentence, its reason, and what to do."""
    if as_json:
        sys.stderr.write(json.dumps({"error": error_fields(error)}, ensure_ascii=False) + "\n")
        return
    console = err()
    lines = error.message.splitlines() or [error.reason]
    # A reason that only repeats the kind of error tells nobody anything.
    reason = f" ({error.reason})" if error.reason != error.default_reason else ""
    console.print(Text.assemble(("error: ", "bold red"), lines[0], (reason, "dim")))
    for line in lines[1:]:
        console.print(Text(f"  {line.strip()}"))
    for violation in error.field_violations:
        if violation.description not in error.message:
            console.print(Text(f"  {violation.field}: {violation.description}"))
    hint = hint_for(error)
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), hint))


def error_fields(error: HoldfastError) -> dict[str, Any]:
    """Returns an error for programs."""
    fields: dict[str, Any] = {"code": error.code.name, "reason": error.reason, "message": error.message}
    if error.metadata:
        fields["metadata"] = error.metadata
    if error.field_violations:
        fields["fields"] = [{"field": item.field, "description": item.description} for item in error.field_violations]
    if error.retry_delay_seconds is not None:
        fields["retry_delay_seconds"] = error.retry_delay_seconds
    return fields


_HINTS: Final[Mapping[str, str]] = {
    Reason.API_KEY_MISSING: "set HOLDFAST_API_KEY, or start a suite here with `holdfast up`, which makes a key",
    Reason.API_KEY_INVALID: "the key is not one of this suite: check HOLDFAST_API_KEY and the profile in use",
    Reason.API_KEY_EXPIRED: "make a new key with `holdfast keys create`, using one that is still valid",
    Reason.API_KEY_REVOKED: "make a new key with `holdfast keys create`, using one that is still valid",
    Reason.SCOPE_MISSING: "use a key with that scope; `holdfast keys list` shows what each may do",
    Reason.AGENT_NOT_FOUND: "`holdfast agents` lists those of this workspace; `holdfast apply -f` adds one",
    Reason.LABEL_NOT_FOUND: "`holdfast agents show AGENT` lists its labels",
    Reason.REVISION_NOT_FOUND: "`holdfast agents revisions AGENT` lists its revisions",
    Reason.RUN_NOT_FOUND: "`holdfast runs` lists those of this workspace",
    Reason.SESSION_NOT_FOUND: "`holdfast sessions` lists those of this workspace",
    Reason.APPROVAL_NOT_FOUND: "`holdfast approvals` lists the open questions",
    Reason.CONNECTION_NOT_FOUND: "`holdfast connections` lists them; `holdfast connections create` adds one",
    Reason.CONNECTION_EXISTS: "add --replace to put the new key in its place",
    Reason.INTEGRATION_NOT_FOUND: "`holdfast integrations` lists them; `holdfast integrations create` sets one up",
    Reason.INTEGRATION_EXISTS: "`holdfast integrations update` changes it; --name gives the new one another name",
    Reason.INTEGRATION_DISABLED: "`holdfast integrations show NAME` says why; an admin switches it on or mends it",
    Reason.PROVIDER_UNKNOWN: "`holdfast integrations providers` lists them",
    Reason.API_KEY_NOT_FOUND: "`holdfast keys` lists them",
}


def hint_for(error: HoldfastError) -> str:
    """Returns what somebody who meets the error may do; empty when there is nothing to say."""
    if isinstance(error, Unavailable) and error.origin == "foreign":
        return "is the suite running? `holdfast up` starts one; HOLDFAST_ADDRESS names another"
    if error.origin == "local" and error.reason == Reason.API_KEY_MISSING:
        # It says so itself.
        return ""
    if error.reason in _HINTS:
        return _HINTS[error.reason]
    if isinstance(error, Unavailable):
        return "the same command may be repeated in a moment"
    return ""


# --------------------------------------------------------------------------------------------------------------- times


def moment(timestamp: Timestamp) -> str:
    """Returns a time in the reader's own time zone; empty when it is unset."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    return to_datetime(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def to_datetime(timestamp: Timestamp) -> datetime:
    """Returns a time as an aware datetime."""
    return timestamp.ToDatetime(tzinfo=UTC)


def age(timestamp: Timestamp) -> str:
    """Returns how long ago something was; empty when it is unset."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    seconds = max(int((datetime.now(UTC) - to_datetime(timestamp)).total_seconds()), 0)
    return f"{seconds} s ago" if seconds < 60 else f"{span(timedelta(seconds=seconds))} ago"


def span(duration: timedelta) -> str:
    """Returns a length of time in its two largest units."""
    seconds = duration.total_seconds()
    if seconds < 0.001:
        return "0 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} m"
    return f"{hours // 24} d {hours % 24} h"


def tokens(count: int) -> str:
    """Returns a number of tokens."""
    return f"{count / 1000:.1f}k" if count >= 10_000 else str(count)


def cost(nanos: int | None) -> str:
    """Returns a price; `?` when it is not known, which is not the same as nothing."""
    if nanos is None:
        return "?"
    dollars = nanos / 1e9
    return f"${dollars:.2f}" if dollars >= 1 else f"${dollars:.4f}"
