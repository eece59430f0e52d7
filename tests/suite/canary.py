"""The canary sweep: unique secrets go into a suite, and are looked for in everything that comes out of it or stays.

A flow is swept by adding its markers: `key = canaries.new("client secret")`, or `canaries.add("access token", token)`
for what another party made; then `await canaries.sweep(stage, seen)` at the end, with every answer in `seen`.
"""

from __future__ import annotations

import base64
import secrets
import sqlite3
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import grpc
import grpc.aio

from holdfast.cli.launch import SERVICES
from tests.suite.stages import Stage

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def forms_of(secret: str) -> Iterator[bytes]:
    """The secret as it might have been written somewhere; not made by the code that is tested."""
    raw = secret.encode()
    yield raw
    yield raw[4:]
    yield raw[::-1]
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    yield quote(secret, safe="").encode()
    yield quote(secret).encode()
    yield quote_plus(secret).encode()
    yield secret.replace("/", "\\/").encode()
    yield secret.encode("utf-16-le")
    for shift in range(3):
        # Base64 has three forms of the same bytes, by where they begin; the edges belong to the neighbours.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * shift + raw)[4 if shift else 0 : -4]


class Canaries:
    """Secrets that exist nowhere else, and the search for them."""

    def __init__(self) -> None:
        self._forms: dict[str, tuple[bytes, ...]] = {}

    def new(self, kind: str, prefix: str = "") -> str:
        """Returns a new secret with letters that every encoding writes differently."""
        secret = f"{prefix}cnry/{secrets.token_hex(6)}+{secrets.token_hex(6)}=Q"
        self.add(kind, secret)
        return secret

    def add(self, kind: str, *values: str) -> None:
        """Adds secrets that another party made."""
        for value in values:
            assert len(value) >= 10, f"the {kind} is too short to be looked for"
            number = sum(name.partition(" #")[0] == kind for name in self._forms)
            self._forms[f"{kind} #{number}" if number else kind] = tuple(set(forms_of(value)))

    @property
    def kinds(self) -> set[str]:
        """What kinds of secrets there are."""
        return {name.partition(" #")[0] for name in self._forms}

    def found_in(self, content: bytes) -> list[str]:
        """The kinds of secrets that the content holds in any form."""
        return [kind for kind, forms in self._forms.items() if any(form in content for form in forms)]

    def assert_absent(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Fails when any of the named contents holds any of the secrets."""
        leaks = [f"{where}: {kind}" for where, content in contents for kind in self.found_in(content)]
        assert not leaks, "\n".join(leaks)

    async def sweep(self, stage: Stage, seen: Iterable[object] = (), spans: Spans | None = None) -> None:
        """Looks everywhere. Ends the suite's services, because some is written only then.

        Args:
            stage: The suite, with SQLite, at the log level `debug`, and not started warm.
            seen: Every answer that clients got: messages, exceptions, texts.
            spans: What the services exported.
        """
        self.assert_absent((f"an answer ({str(answer)[:60]}…)", content_of(answer)) for answer in seen)
        self.assert_absent(await dumps_of(stage))
        for name in SERVICES:
            process = Path(f"/proc/{stage.suite.process_id(name)}")
            assert b"HOLDFAST_LISTEN=" in (process / "environ").read_bytes(), "what it was started with is shown there"
            self.assert_absent((f"{name}'s {part}", (process / part).read_bytes()) for part in ("environ", "cmdline"))
        for name in SERVICES:
            await stage.suite.terminate(name)
        if spans is not None:
            assert spans.received, "the services exported no spans"
            self.assert_absent(("a span", content) for content in spans.received)
        files = [path for path in stage.suite.data.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"state.db", "auth.db", "trace.db", "executor.log", "auth.log"}
        self.assert_absent((path.name, path.read_bytes()) for path in files)
        # Long values lie in pieces on several pages of a file; here they are whole.
        self.assert_absent(row for path in files if path.suffix == ".db" for row in rows_of(path))


def content_of(answer: object) -> bytes:
    """Everything of an answer, as bytes."""
    serialize = getattr(answer, "SerializeToString", None)
    if serialize is not None:
        return bytes(serialize()) + str(answer).encode()
    if isinstance(answer, BaseException):
        details = [getattr(answer, name, "") for name in ("message", "reason", "metadata", "field_violations")]
        return repr([answer, answer.args, details]).encode()
    return answer if isinstance(answer, bytes) else f"{answer}{answer!r}".encode()


async def dumps_of(stage: Stage) -> list[tuple[str, bytes]]:
    """What the suite hands out as a whole: the workspace's data, and its audit."""
    data = [content_of(frame) async for frame in stage.client.housekeeping.export()]
    audit = [line.encode() async for line in stage.client.audit.export()]
    assert data
    assert audit
    return [("the export", b"".join(data)), ("the audit's export", b"\n".join(audit))]


def rows_of(database: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of every table."""
    connection = sqlite3.connect(database)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                values = (value if isinstance(value, bytes) else str(value).encode() for value in row)
                yield f"{database.name}, table {table}", b"\0".join(map(_unpacked, values))
    finally:
        connection.close()


def _unpacked(value: bytes) -> bytes:
    """A value as it is read: what is stored compressed hides nothing from the search."""
    try:
        return value + zlib.decompress(value.removeprefix(b"\x00hf\x02"))
    except zlib.error:
        return value


class Spans:
    """A collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.address = ""

    async def export(self, request: bytes, context: Any) -> bytes:
        """Takes spans."""
        self.received.append(request)
        return b""


@asynccontextmanager
async def collecting() -> AsyncIterator[Spans]:
    """Runs a collector; its address is for HOLDFAST_OTLP_ENDPOINT."""
    spans = Spans()
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(spans.export)
    service, _, method = _EXPORT[1:].rpartition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    spans.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield spans
    finally:
        await server.stop(None)
