"""Every RPC of the four services, called with a key of every role: the answer is the one of docs/security.md."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.errors import Reason, Unauthenticated, from_rpc_error
from scripts.access_table import DOCUMENT, TABLES, document
from services.auth.api_keys import OWN_WORKSPACE
from services.auth.roles import ROLES
from services.shared.access import Access
from services.shared.identity import Identity, current_identity
from services.shared.server import Server
from services.shared.settings import CommonSettings
from services.shared.telemetry import build_telemetry
from tests.shared.conftest import TOKEN


class RoleKeys:
    """An authenticator whose keys are called as their roles."""

    async def verify(self, api_key: str) -> Identity:
        if api_key not in ROLES:
            raise Unauthenticated("unknown")
        scopes = frozenset({*ROLES[api_key], OWN_WORKSPACE})
        return Identity("api_key", workspace_id="w", key_id=api_key, scopes=scopes)


class Everything:
    """Has every method of a table; each answers with the name of its caller."""

    def __init__(self, table: Mapping[str, Access]) -> None:
        self._table = table

    def add(self, _servicer: object, server: Any) -> None:
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in self._table:
            service, name = method[1:].split("/")
            handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(self._answer)
            services.setdefault(service, {})[name] = handler
        for service, handlers in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
            server.add_registered_method_handlers(service, handlers)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        return current_identity().name.encode()


async def outcome(channel: grpc.aio.Channel, method: str, authorization: str | None) -> str:
    metadata = () if authorization is None else (("authorization", authorization),)
    try:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return (await call(b"", metadata=metadata, timeout=20)).decode()
    except grpc.aio.AioRpcError as error:
        return str(from_rpc_error(error).reason)


@pytest.mark.parametrize("service", TABLES)
async def test_every_method_answers_every_role_and_service_as_documented(service: str) -> None:
    table = TABLES[service]
    settings = CommonSettings(listen="127.0.0.1:0", service_token=TOKEN, drain_seconds=0, auth_failures_per_minute=0)
    server = Server(
        settings, service=service, access=table, telemetry=build_telemetry("test"), authenticator=RoleKeys()
    )
    everything = Everything(table)
    server.add(everything.add, everything)
    documented = {
        cells[1].strip().strip("`"): [cell.strip() == "✓" for cell in cells[3:-1]]
        for cells in (line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines())
        if len(cells) > 4 and "." in cells[1]
    }
    async with asyncio.timeout(50), server, grpc.aio.insecure_channel(server.address) as channel:
        for method, access in table.items():
            row = documented[method.rpartition(".")[2].replace("/", ".")]
            for role, allowed in zip(ROLES, row, strict=True):
                refusal = Reason.METHOD_NOT_ALLOWED if access.scope is None else Reason.SCOPE_MISSING
                found = await outcome(channel, method, f"Bearer {role}")
                assert found == (f"key:{role}" if allowed else refusal), (method, role)
            for name in ("executor", "state", "auth", "trace", "operator", "stranger"):
                found = await outcome(channel, method, f"Service {name}:{TOKEN}")
                expected = f"service:{name}" if name in access.services else Reason.METHOD_NOT_ALLOWED
                assert found == expected, (method, name)
            missing = Reason.SERVICE_TOKEN_INVALID if access.scope is None else Reason.API_KEY_MISSING
            assert await outcome(channel, method, None) == missing, method


def test_the_documented_table_is_current() -> None:
    assert document() == DOCUMENT.read_text(encoding="utf-8"), "run python scripts/access_table.py"
