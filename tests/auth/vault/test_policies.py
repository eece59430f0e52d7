"""The shipped policies: each allows what its holder needs, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.auth.secrets import Secret
from services.auth.vault.client import VaultClient, Wire
from services.auth.vault.failures import PolicyDenied, Refused
from services.auth.vault.login import TokenLogin
from services.auth.vault.session import Session
from services.auth.vault.setup import Role, Setup, policy_text
from services.shared.clock import SystemClock
from tests.auth.vault.support import Server, approle, as_root, opened, set_up

WS = "ws/0198/shared/c/1"

# What each may not do; {conn}, {app}, {lease} and {transit} are the mounts.
RUNTIME_MAY_NOT = [
    ("list", "{conn}/metadata/ws/0198"),
    ("get", "{conn}/metadata/ws/0198/shared/c/1"),
    ("get", "{conn}/data/elsewhere"),
    ("get", "{conn}/config"),
    ("post", "{conn}/config"),
    ("get", "{app}/data/ws/0198/elsewhere"),
    ("list", "{lease}/metadata/c"),
    ("get", "{transit}/keys/ws-0198"),
    ("get", "{transit}/export/encryption-key/ws-0198"),
    ("get", "{transit}/backup/ws-0198"),
    ("post", "{transit}/encrypt/ws-0198"),
    ("post", "{transit}/keys/system"),
    ("post", "{transit}/keys/system/config"),
    ("delete", "{transit}/keys/system"),
    ("get", "sys/mounts"),
    ("get", "sys/policies/acl/holdfast-runtime"),
    ("put", "sys/policies/acl/holdfast-runtime"),
    ("post", "auth/token/create"),
]
INSPECTION_MAY_NOT = [
    ("get", "{conn}/data/ws/0198/shared/c/1"),
    ("delete", "{conn}/metadata/ws/0198/shared/c/1"),
    ("post", "{transit}/decrypt/system"),
    ("get", "sys/mounts"),
]


async def client_with(server: Server, policy: str) -> tuple[Wire, VaultClient]:
    async with as_root(server) as root:
        name = f"{policy}-{server.role.name}"
        text = policy_text(policy, server.mounts, server.role)
        await root.write(lambda adapter: adapter.put(f"/v1/sys/policies/acl/{name}", json={"policy": text}))
        made: Any = await root.write(
            lambda adapter: adapter.post("/v1/auth/token/create", json={"policies": [name], "ttl": "5m"})
        )
    wire = Wire(server.address(), SystemClock())
    return wire, VaultClient(wire, Session(wire, TokenLogin(Secret(made["auth"]["client_token"]))))


def path_of(server: Server, path: str) -> str:
    mounts = server.mounts
    return path.format(conn=mounts.connections, app=mounts.apps, lease=mounts.leases, transit=mounts.transit)


async def refused(client: VaultClient, method: str, path: str, body: Any = None) -> bool:
    try:
        await client.read(lambda adapter: adapter.request(method, f"/v1/{path}", json={} if body is None else body))
    except PolicyDenied:
        return True
    except Refused:
        return False
    return False


async def test_the_runtime_does_its_work_under_its_policies(server: Server, tmp_path: Path) -> None:
    async with opened(server, await approle(server, tmp_path)) as vault:
        for path in (WS, "ws/0198/u/abc/c/2", "app/ws/0198/i/3", "lease/c/4"):
            assert await vault.secrets.put(path, Secret("one"), expected_version=0) == 1
            assert await vault.secrets.put(path, Secret("two"), expected_version=1) == 2
            assert await vault.secrets.version(path) == 2
            await vault.secrets.delete(path)
        made = await vault.envelopes.data_key("0198")
        await vault.envelopes.rotate("0198")
        await vault.envelopes.rewrap("0198", made.wrapped)
        sealed = await vault.envelopes.seal(Secret("x"), context="c")
        assert (await vault.envelopes.open(sealed, context="c")).reveal() == "x"
        await vault.envelopes.destroy("0198")


async def test_the_runtime_may_do_nothing_else(server: Server) -> None:
    await set_up(server)
    wire, client = await client_with(server, "holdfast-runtime")
    try:
        allowed = [
            (method, path)
            for method, path in RUNTIME_MAY_NOT
            if not await refused(client, method, path_of(server, path))
        ]
        assert allowed == []
        # Neither of these, by which a key would become readable or deletable.
        key = path_of(server, "{transit}/keys/ws-0198")
        for body in ({"exportable": True}, {"allow_plaintext_backup": True}, {"deletion_allowed": True}):
            assert await refused(client, "post", f"{key}/config", body)
            assert await refused(client, "post", key, body)
        assert await refused(client, "delete", key)
    finally:
        wire.close()


async def test_with_shredding_keys_are_deletable_and_still_not_exportable(server: Server) -> None:
    await set_up(server)
    wire, client = await client_with(server, "holdfast-shredding")
    try:
        key = path_of(server, "{transit}/keys/ws-0198")
        await client.write(lambda adapter: adapter.post(f"/v1/{key}", json={"type": "aes256-gcm96"}))
        for body in ({"exportable": True}, {"allow_plaintext_backup": True}):
            assert await refused(client, "post", f"{key}/config", body)
        await client.write(lambda adapter: adapter.post(f"/v1/{key}/config", json={"deletion_allowed": True}))
        await client.write(lambda adapter: adapter.delete(f"/v1/{key}"))
    finally:
        wire.close()


async def test_inspection_sees_names_and_no_secret(server: Server, tmp_path: Path) -> None:
    async with opened(server, await approle(server, tmp_path)) as vault:
        await vault.secrets.put(WS, Secret("one"), expected_version=0)
    wire, client = await client_with(server, "holdfast-inspection")
    try:
        mount = server.mounts.connections
        listed: Any = await client.read(lambda adapter: adapter.list(f"/v1/{mount}/metadata/ws"))
        assert listed["data"]["keys"] == ["0198/"]
        allowed = [
            (method, path)
            for method, path in INSPECTION_MAY_NOT
            if not await refused(client, method, path_of(server, path))
        ]
        assert allowed == []
    finally:
        wire.close()


async def test_the_provisioner_sets_up_and_reads_no_secret(server: Server) -> None:
    wire, client = await client_with(server, "holdfast-provisioner")
    try:
        lines: list[str] = []
        await Setup(client, server.mounts, server.role, lines.append).apply()
        assert any("made" in line for line in lines)
        assert await refused(client, "get", path_of(server, "{conn}/data/ws/0198/shared/c/1"))
    finally:
        wire.close()


async def test_a_second_setup_finds_everything_and_changes_nothing(server: Server) -> None:
    server = replace(server, role=replace(server.role, bound_cidrs=("127.0.0.1/32", "10.0.0.0/8")))
    _, _, first = await set_up(server)
    _, _, second = await set_up(server)
    assert any("made" in line for line in first)
    assert second and all("found" in line for line in second)


async def test_a_setup_mends_what_was_changed_by_hand(server: Server) -> None:
    await set_up(server)
    async with as_root(server) as root:
        mount = server.mounts.connections
        await root.write(lambda adapter: adapter.post(f"/v1/{mount}/config", json={"cas_required": False}))
        await root.write(
            lambda adapter: adapter.post(
                f"/v1/auth/approle/role/{server.role.name}", json={"token_policies": ["default"]}
            )
        )
    _, _, lines = await set_up(server)
    mended = [line for line in lines if "found" not in line]
    assert len(mended) == 2 and mount in mended[0] and "written anew" in mended[1]


@pytest.mark.parametrize("name", ["holdfast-runtime", "holdfast-shredding", "holdfast-provisioner"])
def test_policies_name_the_mounts_and_roles_of_the_settings(name: str) -> None:
    from services.auth.vault.secret_store import Mounts

    text = policy_text(name, Mounts("a-conn", "a-app", "a-lease", "a-transit"), Role("other", "approle2"))
    for shipped in ("holdfast-conn/", "holdfast-app/", "holdfast-lease/", "holdfast-transit/", "role/holdfast"):
        assert f'"{shipped}' not in text and f"/{shipped}" not in text
