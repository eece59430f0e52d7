"""One node's HTTP server: threads, kept-alive connections, and the faults that are on the wire."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.fakes.vault.faults import Fault, Faults, Point
from tests.fakes.vault.wire import Answer, Request

_HOLD_SECONDS = 30


class _Dropped(Exception):
    """The connection ends without an answer."""


class NodeServer:
    """A node at an address that stays the same over stops and starts."""

    def __init__(self, answer: Callable[[Request], Answer], faults: Faults, number: int) -> None:
        self._answer = answer
        self._faults = faults
        self._number = number
        self._port = 0
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """The node's URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens."""
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stops listening and cuts what is connected."""
        if self._server is not None:
            self._server.cut()
            self._server = None

    def reply(self, request: Request) -> Answer:
        """Answers a request, or drops it, as planned."""
        request.node = self._number
        fault = self._faults.take(request)
        if fault is not None and fault.hold is not None:
            fault.hold.wait(_HOLD_SECONDS)
        if fault is not None and fault.point is Point.BEFORE:
            return _spoilt(fault)
        answer = self._answer(request)
        return answer if fault is None else _spoilt(fault)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        node = self

        class Handler(_Handler):
            def reply(self, request: Request) -> Answer:
                return node.reply(request)

        return Handler


def _spoilt(fault: Fault) -> Answer:
    if fault.status == 0:
        raise _Dropped
    return Answer(fault.status, {"errors": [fault.error]}, {"Location": fault.location} if fault.location else {})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._sockets: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A connection that a test has cut.
        return

    def cut(self) -> None:
        self.shutdown()
        for open_socket in list(self._sockets):
            try:
                open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def reply(self, request: Request) -> Answer:
        raise AssertionError("given by the node")

    def handle_one_request(self) -> None:
        # One handler for all methods, LIST included.
        self.raw_requestline = self.rfile.readline(65_537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        query = dict(parse_qsl(url.query))
        method = "LIST" if query.get("list") == "true" else self.command
        try:
            answer = self.reply(
                Request(
                    method=method,
                    path=unquote(url.path).removeprefix("/v1/"),
                    query=query,
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=json.loads(text) if text else {},
                )
            )
        except _Dropped:
            self.close_connection = True
            return
        body = b"" if answer.body is None else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        return
