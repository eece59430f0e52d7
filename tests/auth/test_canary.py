"""A key that went in is found nowhere but in the answer to the executor: not on disk, in logs or in errors."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.message import Message

from holdfast.api.auth.v1 import api_key_service_pb2, audit_service_pb2, connection_service_pb2, workspace_service_pb2
from services.auth import housekeeping
from services.auth.settings import AuthSettings
from services.auth.tables import secrets
from services.shared.database import Database
from services.shared.telemetry import JsonFormatter
from tests.auth.support import failure, make_key, new_connection, running, settings_for, sqlite_url, use_of

pytestmark = pytest.mark.promise("P8")

CANARY = "sk-CANARY/4711+feather?=beak~0123456789"


def forms(secret: str) -> set[bytes]:
    """The ways in which a secret may have been written, without the ends that depend on what stands beside it."""
    raw = secret.encode()
    encoded = {raw, raw.hex().encode(), raw.hex().upper().encode(), quote(secret, safe="").encode(), raw[::-1]}
    encoded.add(raw.decode().encode("utf-16-le"))
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded.add(encode(b"x" * offset + raw)[4 if offset else 0 : -4])
    return encoded


def assert_absent(where: str, content: bytes, *found_secrets: str) -> None:
    for secret in found_secrets:
        for form in forms(secret):
            assert form not in content, f"{where} holds a secret as {form!r}"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Every log record of the process, tracebacks included, as the service writes them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("auth"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


def test_the_search_finds_what_it_looks_for() -> None:
    for content in (
        CANARY.encode(),
        base64.b64encode(b"Bearer " + CANARY.encode()),
        CANARY.encode().hex().encode(),
        quote(CANARY, safe="").encode(),
    ):
        with pytest.raises(AssertionError):
            assert_absent("here", b"before" + content + b"after", CANARY)


async def test_a_secret_is_found_in_no_file_log_or_error(tmp_path: Path, logged: io.StringIO) -> None:
    settings = settings_for(sqlite_url(tmp_path))
    workspace_id, admin_key = await make_key(settings, "acme")
    given = [admin_key, CANARY]
    errors = []
    async with running(settings) as auth:
        client, executor = auth.as_bearer(admin_key), auth.as_service("executor")

        async def fail(call) -> None:
            error = await failure(call)
            errors.append(f"{error.message} {error.reason} {error.metadata} {error.field_violations}")

        answers: list[Message] = []
        answers.append(await client.connections.CreateConnection(new_connection(key=CANARY, request_id="r1")))
        answers.append(await client.connections.CreateConnection(new_connection(key=CANARY, request_id="r1")))
        await fail(client.connections.CreateConnection(new_connection(key=CANARY)))
        await fail(client.connections.CreateConnection(new_connection(key=CANARY, request_id="r1", replace=True)))
        for wrong in (f" {CANARY}", f"{CANARY}\n", CANARY * 300):
            await fail(client.connections.CreateConnection(new_connection(name="other", key=wrong)))
        await fail(client.connections.CreateConnection(new_connection(name=CANARY, key=CANARY)))
        await fail(client.connections.CreateConnection(new_connection(provider=CANARY)))
        for url in (f"https://u:{CANARY}@a.example", f"https://a.example/?{CANARY}", f"{CANARY}://a"):
            await fail(client.connections.CreateConnection(new_connection(name="other", key=CANARY, base_url=url)))
        answers.append(
            await client.connections.GetConnection(connection_service_pb2.GetConnectionRequest(name="openai"))
        )
        answers.append(await client.connections.ListConnections(connection_service_pb2.ListConnectionsRequest()))
        answers.append(await client.workspaces.GetWorkspace(workspace_service_pb2.GetWorkspaceRequest()))
        assert (await auth.resolve(workspace_id)).secret == CANARY
        await fail(auth.resolve(workspace_id, "absent"))
        await fail(auth.resolve(workspace_id, run_id=""))
        await fail(auth.as_service("trace").credentials.ResolveCredential(use_of(workspace_id)))

        created = await client.api_keys.CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(scopes=["admin"], request_id="r2")
        )
        given.append(created.secret)
        answers.append(
            await client.api_keys.CreateApiKey(
                api_key_service_pb2.CreateApiKeyRequest(scopes=["admin"], request_id="r2")
            )
        )
        verify = api_key_service_pb2.VerifyApiKeyRequest(secret=created.secret)
        answers.append(await executor.api_keys.VerifyApiKey(verify))
        await fail(client.api_keys.VerifyApiKey(verify))
        revoke = api_key_service_pb2.RevokeApiKeyRequest(api_key_id=created.api_key.api_key_id)
        answers.append(await client.api_keys.RevokeApiKey(revoke))
        await fail(executor.api_keys.VerifyApiKey(verify))
        await fail(auth.as_bearer(created.secret).workspaces.GetWorkspace(workspace_service_pb2.GetWorkspaceRequest()))
        await fail(client.api_keys.RevokeApiKey(api_key_service_pb2.RevokeApiKeyRequest(api_key_id=CANARY)))
        answers.append(await client.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest()))
        answers += [
            piece async for piece in client.audit.ExportAuditRecords(audit_service_pb2.ExportAuditRecordsRequest())
        ]
        answers.append(await client.audit.VerifyAuditTrail(audit_service_pb2.VerifyAuditTrailRequest()))
        answers.append(await client.audit.ListAuditRecords(audit_service_pb2.ListAuditRecordsRequest()))
        filtered = audit_service_pb2.ListAuditRecordsRequest(
            filter=audit_service_pb2.AuditFilter(connection=CANARY * 9)
        )
        await fail(client.audit.ListAuditRecords(filtered))
        # Before the last connection closes, what is in the write-ahead log is there too.
        disk = files_of(tmp_path)
        answers.append(await client.connections.CreateConnection(new_connection(key=f"{CANARY}2", replace=True)))
        answers.append(
            await client.connections.RevokeConnection(connection_service_pb2.RevokeConnectionRequest(name="openai"))
        )
    disk += files_of(tmp_path)
    assert len(disk) > 100_000
    assert "ConnectionService/CreateConnection" in logged.getvalue()
    assert_absent("the disk", disk, *given, settings.master_key.export())  # type: ignore[union-attr]
    assert_absent("the log", logged.getvalue().encode(), *given, settings.service_token)
    assert_absent("an error", " ".join(errors).encode(), *given, settings.service_token)
    assert_absent("an answer", "".join(str(answer) for answer in answers).encode(), *given, settings.service_token)
    # The secret part alone is as good as the key.
    for key in (admin_key, created.secret):
        assert_absent("the disk", disk, key.split("_")[2][:43])


def files_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


async def test_failures_inside_show_no_secret(
    settings: AuthSettings, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is damaged here is found by the calls below, and not by what the service does by itself meanwhile.
    monkeypatch.setattr(housekeeping, "_USES_SECONDS", 600.0)
    async with running(settings) as auth:
        client, workspace_id = await auth.workspace("acme")
        await client.connections.CreateConnection(new_connection(key=CANARY))

        def damage(connection: sa.Connection) -> None:
            connection.execute(secrets.update().values(ciphertext=secrets.c.nonce))

        def vanish(connection: sa.Connection) -> None:
            connection.execute(sa.text("ALTER TABLE connections RENAME TO away"))

        def come_back(connection: sa.Connection) -> None:
            connection.execute(sa.text("ALTER TABLE away RENAME TO connections"))

        errors = []
        async with Database(settings.database_url, schema="auth") as db:
            for act in (damage, vanish):
                await db.write(act)
                for call in (
                    auth.resolve(workspace_id),
                    client.connections.CreateConnection(new_connection(key=f"{CANARY}3", replace=True)),
                ):
                    try:
                        await call
                    except grpc.aio.AioRpcError as error:
                        errors.append(f"{error.details()} {error.trailing_metadata()}")
            # The service writes last uses when it ends.
            await db.write(come_back)
    assert len(errors) >= 2
    assert "internal_error" in logged.getvalue()
    assert_absent("an error", " ".join(errors).encode(), CANARY)
    assert_absent("the log", logged.getvalue().encode(), CANARY)
