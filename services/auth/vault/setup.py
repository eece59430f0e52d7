"""What Vault needs before auth can use it: mounts, the key of the system, policies, an AppRole. May be applied again.

Every step looks first and says what it found or did, so that a second run changes nothing and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from hvac.api.auth_methods import AppRole
from hvac.api.secrets_engines import Transit
from hvac.api.system_backend import SystemBackend

from services.auth.secrets import Secret
from services.auth.vault.client import VaultClient
from services.auth.vault.failures import Refused
from services.auth.vault.secret_store import Mounts
from services.auth.vault.transit import KEY_TYPE, ROTATE_EVERY, SYSTEM_KEY

RUNTIME_POLICY: Final = "holdfast-runtime"
SHREDDING_POLICY: Final = "holdfast-shredding"
POLICIES: Final = (RUNTIME_POLICY, SHREDDING_POLICY, "holdfast-provisioner", "holdfast-inspection")

TOKEN_TTL_SECONDS: Final = 3600
TOKEN_MAX_TTL_SECONDS: Final = 86_400
WRAP_TTL: Final = "10m"

Report = Callable[[str], None]
"""Takes one line for the operator."""


@dataclass(frozen=True, slots=True)
class Role:
    """The AppRole of auth.

    Attributes:
        name: Its name.
        mount: Where AppRole is.
        policies: What its tokens may do.
        bound_cidrs: From where its tokens may be used; anywhere when empty.
    """

    name: str = "holdfast"
    mount: str = "approle"
    policies: tuple[str, ...] = (RUNTIME_POLICY, SHREDDING_POLICY)
    bound_cidrs: tuple[str, ...] = ()


def policy_text(name: str, mounts: Mounts, role: Role) -> str:
    """Returns a shipped policy, for the mounts and the role as they are named here."""
    text = (files("services.auth.vault") / "policies" / f"{name}.hcl").read_text(encoding="utf-8")
    for shipped, own in (
        ("holdfast-conn", mounts.connections),
        ("holdfast-app", mounts.apps),
        ("holdfast-lease", mounts.leases),
        ("holdfast-transit", mounts.transit),
    ):
        text = text.replace(f'path "{shipped}/', f'path "{own}/')
        if own != shipped:
            text += f'\npath "sys/mounts/{own}" {{\n  capabilities = ["create", "read", "update"]\n}}\n' * (
                name == "holdfast-provisioner"
            )
    return text.replace("auth/approle/role/holdfast", f"auth/{role.mount}/role/{role.name}").replace(
        'path "sys/auth/approle"', f'path "sys/auth/{role.mount}"'
    )


class Setup:
    """Applies it.

    Args:
        client: Calls with a token that may do all this.
        mounts: Names of the mounts.
        role: The AppRole.
        report: Told what was done and found.
    """

    def __init__(self, client: VaultClient, mounts: Mounts, role: Role, report: Report) -> None:
        self._client = client
        self._mounts = mounts
        self._role = role
        self._report = report

    async def apply(self) -> None:
        """Applies everything that is missing or different.

        Raises:
            VaultFailure: Vault does not do it; what was done before stays, and the next run goes on from there.
        """
        listed = await self._read(lambda adapter: _any(SystemBackend(adapter)).list_mounted_secrets_engines())
        for mount, versions in ((self._mounts.connections, 3), (self._mounts.apps, 5), (self._mounts.leases, 1)):
            await self._kv(listed["data"], mount, versions)
        await self._transit(listed["data"], self._mounts.transit)
        for name in POLICIES:
            await self._policy(name)
        await self._approle()

    async def secret_id(self, *, is_wrapped: bool) -> Secret:
        """Returns a new secret id of the role, or a wrapping token that is good for one unwrapping."""
        role = self._role

        def call(adapter: Any) -> Any:
            return _any(AppRole(adapter)).generate_secret_id(
                role.name, mount_point=role.mount, wrap_ttl=WRAP_TTL if is_wrapped else None
            )

        answer = await self._client.write(call)
        return Secret(str(answer["wrap_info"]["token"] if is_wrapped else answer["data"]["secret_id"]))

    async def role_id(self) -> str:
        """Returns the id of the role, which is no secret."""
        role = self._role
        answer = await self._read(
            lambda adapter: _any(AppRole(adapter)).read_role_id(role.name, mount_point=role.mount)
        )
        return str(answer["data"]["role_id"])

    async def _kv(self, listed: Mapping[str, Any], mount: str, max_versions: int) -> None:
        if await self._mount(listed, mount, "kv", {"version": "2"}):
            self._report(f"mount {mount}: made (KV version 2)")
        wanted = {"cas_required": True, "max_versions": max_versions}
        answer = await self._read(lambda adapter: adapter.get(f"/v1/{mount}/config"))
        if _has(answer["data"], wanted):
            self._report(f"mount {mount}: found as it should be")
            return
        await self._write(lambda adapter: adapter.post(f"/v1/{mount}/config", json=wanted))
        self._report(f"mount {mount}: every write needs check-and-set, {max_versions} versions are kept")

    async def _transit(self, listed: Mapping[str, Any], mount: str) -> None:
        is_made = await self._mount(listed, mount, "transit", None)
        self._report(f"mount {mount}: {'made (transit)' if is_made else 'found as it should be'}")
        try:
            await self._read(lambda adapter: _any(Transit(adapter)).read_key(SYSTEM_KEY, mount_point=mount))
        except Refused as failure:
            if failure.status != 404:
                raise
        else:
            self._report(f"key {mount}/{SYSTEM_KEY}: found")
            return

        def make(adapter: Any) -> Any:
            return _any(Transit(adapter)).create_key(
                SYSTEM_KEY, key_type=KEY_TYPE, auto_rotate_period=ROTATE_EVERY, mount_point=mount
            )

        await self._write(make)
        self._report(f"key {mount}/{SYSTEM_KEY}: made ({KEY_TYPE}, rotates every {ROTATE_EVERY})")

    async def _mount(self, listed: Mapping[str, Any], mount: str, kind: str, options: Mapping[str, str] | None) -> bool:
        found = listed.get(f"{mount}/")
        if found is None:
            body = {"type": kind, "description": "Holdfast", "options": options}
            await self._write(lambda adapter: adapter.post(f"/v1/sys/mounts/{mount}", json=body))
            return True
        version = (found.get("options") or {}).get("version")
        if found.get("type") != kind or (options is not None and version != options["version"]):
            raise SetupError(f"{mount} is mounted already, and is not {kind}{' version 2' if options else ''}")
        return False

    async def _policy(self, name: str) -> None:
        wanted = policy_text(name, self._mounts, self._role)
        found: str | None = None
        try:
            answer = await self._read(lambda adapter: adapter.get(f"/v1/sys/policies/acl/{name}"))
            found = answer["data"]["policy"]
        except Refused as failure:
            if failure.status != 404:
                raise
        if found == wanted:
            self._report(f"policy {name}: found as it should be")
            return
        await self._write(lambda adapter: adapter.put(f"/v1/sys/policies/acl/{name}", json={"policy": wanted}))
        self._report(f"policy {name}: {'made' if found is None else 'was different, written anew'}")

    async def _approle(self) -> None:
        role = self._role
        methods = await self._read(lambda adapter: _any(SystemBackend(adapter)).list_auth_methods())
        if f"{role.mount}/" not in methods["data"]:
            await self._write(lambda adapter: adapter.post(f"/v1/sys/auth/{role.mount}", json={"type": "approle"}))
            self._report(f"auth method {role.mount}: made")
        wanted: dict[str, Any] = {
            "token_policies": list(role.policies),
            "token_ttl": TOKEN_TTL_SECONDS,
            "token_max_ttl": TOKEN_MAX_TTL_SECONDS,
        }
        if role.bound_cidrs:
            # As Vault gives them back, which writes the network of a single address without its length.
            wanted["token_bound_cidrs"] = [
                cidr.removesuffix("/32" if "." in cidr else "/128") for cidr in role.bound_cidrs
            ]
        path = f"/v1/auth/{role.mount}/role/{role.name}"
        is_new = False
        try:
            answer = await self._read(lambda adapter: adapter.get(path))
            if _has(answer["data"], wanted):
                self._report(f"role {role.name}: found as it should be")
                return
        except Refused as failure:
            if failure.status != 404:
                raise
            is_new = True
        await self._write(lambda adapter: adapter.post(path, json=wanted))
        self._report(f"role {role.name}: {'made' if is_new else 'was different, written anew'}")

    async def _read(self, operation: Callable[[Any], Any]) -> Any:
        return await self._client.read(operation)

    async def _write(self, operation: Callable[[Any], Any]) -> Any:
        return await self._client.write(operation, may_repeat=True)


class SetupError(Exception):
    """Vault holds something else under one of our names; the text says what."""


def _has(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_plain(found.get(name)) == _plain(value) for name, value in wanted.items())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _any(value: Any) -> Any:
    # Untyped in the stubs.
    return value
