"""How auth gets its token of Vault: as AppRole, by Kubernetes' service account, or as a token that somebody else keeps.

A method reads its credentials anew at each login, so that what was rotated on the disk is used without a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from hvac.api.auth_methods import AppRole, Kubernetes, Token

from services.auth.secrets import Opaque, Secret
from services.auth.vault.client import Operation, Wire
from services.auth.vault.failures import LoginRefused, Redirected, Refused, VaultFailure

_MAX_FILE_BYTES: Final = 64 * 1024
_ATTEMPTS: Final = 4


class Login(Opaque):
    """A token and what Vault says of its life."""

    __slots__ = ("is_renewable", "token", "ttl_seconds")

    def __init__(self, token: Secret, ttl_seconds: float, is_renewable: bool) -> None:
        self.token = token
        self.ttl_seconds = ttl_seconds
        """0 for a token that never ends."""
        self.is_renewable = is_renewable


class LoginMethod(Protocol):
    """A way to a token."""

    async def login(self, wire: Wire) -> Login:
        """Returns a token that was not used before, or the one that somebody else keeps.

        Raises:
            LoginRefused: Vault does not take the credentials; a person must act.
            VaultFailure: It cannot be told now.
        """


@dataclass(frozen=True, slots=True)
class TokenLogin:
    """A token from the settings, or from a file such as the sink of Vault's agent."""

    fixed: Secret | None = None
    file: Path | None = None

    async def login(self, wire: Wire) -> Login:
        """See `LoginMethod.login`."""
        token = self.fixed if self.file is None else await _read(self.file)
        assert token is not None  # refused by the settings
        try:
            answer: Any = await ask(wire, _look_up_self, token=token)
        except Refused as failure:
            raise LoginRefused("Vault does not take the token of the settings") from failure
        data = answer.get("data") or {}
        return Login(token, float(data.get("ttl") or 0), bool(data.get("renewable")))


@dataclass(slots=True)
class AppRoleLogin:
    """A role id, and a secret id from a file: as it is, or as a wrapping token that is good for one unwrapping.

    A wrapping token that was made for anything else than a secret id of this role was swapped on its way; one that
    somebody has unwrapped already was stolen. Both are refused in words that say so.
    """

    role_id: str
    secret_id_file: Path
    role: str
    is_wrapped: bool = False
    mount: str = "approle"
    _unwrapped: Secret | None = None
    _unwrapped_from: str = ""

    async def login(self, wire: Wire) -> Login:
        """See `LoginMethod.login`."""
        secret_id = await _read(self.secret_id_file)
        if self.is_wrapped:
            secret_id = await self._unwrap(wire, secret_id)

        def call(adapter: Any) -> Any:
            return AppRole(adapter).login(self.role_id, secret_id.reveal(), use_token=False, mount_point=self.mount)

        return _login(await _credentials_checked(wire, call, "Vault does not take the role id and secret id"))

    async def _unwrap(self, wire: Wire, wrapping_token: Secret) -> Secret:
        digest = hashlib.sha256(wrapping_token.reveal().encode()).hexdigest()
        if self._unwrapped is not None and digest == self._unwrapped_from:
            return self._unwrapped
        spent = (
            "the wrapping token of the secret id is not valid (any more): it was unwrapped before or is too old. If "
            "nobody of yours did that, somebody else has the secret id: revoke it, and deliver a new one"
        )
        token = {"token": wrapping_token.reveal()}

        def look_up(adapter: Any) -> Any:
            return adapter.post("/v1/sys/wrapping/lookup", json=token)

        answer = await _credentials_checked(wire, look_up, spent)
        path = str((answer.get("data") or {}).get("creation_path") or "")
        pattern = rf"auth/{re.escape(self.mount)}/role/{re.escape(self.role)}/secret-id"
        if re.fullmatch(pattern, path) is None:
            raise LoginRefused(
                "the wrapping token was not made for a secret id of this role: it may have been swapped on its way"
            )
        # The token authorizes its own unwrapping, and is not repeated in the body.
        answer = await _credentials_checked(
            wire, lambda adapter: adapter.post("/v1/sys/wrapping/unwrap"), spent, token=wrapping_token
        )
        secret_id = (answer.get("data") or {}).get("secret_id")
        if not isinstance(secret_id, str) or not secret_id:
            raise LoginRefused("what was wrapped is no secret id")
        self._unwrapped, self._unwrapped_from = Secret(secret_id), digest
        return self._unwrapped


@dataclass(frozen=True, slots=True)
class KubernetesLogin:
    """The token of the pod's service account, which Kubernetes replaces on the disk now and then."""

    role: str
    jwt_file: Path
    mount: str = "kubernetes"

    async def login(self, wire: Wire) -> Login:
        """See `LoginMethod.login`."""
        jwt = await _read(self.jwt_file)

        def call(adapter: Any) -> Any:
            return Kubernetes(adapter).login(self.role, jwt.reveal(), use_token=False, mount_point=self.mount)

        return _login(await _credentials_checked(wire, call, "Vault does not take this service account for the role"))


async def renew(wire: Wire, login: Login) -> Login:
    """Renews a token.

    Raises:
        Refused: It cannot be renewed (any more).
        VaultFailure: It cannot be told now.
    """
    answer = await ask(wire, _renew_self, token=login.token, is_write=True)
    return _login(answer, token=login.token)


async def is_good(wire: Wire, token: Secret) -> bool:
    """Tells whether Vault knows the token.

    Raises:
        VaultFailure: It cannot be told now.
    """
    try:
        await ask(wire, _look_up_self, token=token)
    except Refused as failure:
        if failure.status == 403:
            return False
        raise
    return True


async def ask(wire: Wire, operation: Operation[Any], *, token: Secret | None = None, is_write: bool = False) -> Any:
    """Makes one call, on another node when the first one cannot be reached. Not for what must not happen twice."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await wire.once(operation, node=wire.nodes.best(), token=token, is_write=is_write)
        except VaultFailure as failure:
            is_lost = not isinstance(failure, Refused | Redirected) and failure.may_be_applied
            is_elsewhere = not isinstance(failure, Refused) or failure.is_failover
            # A wrapping token is spent by its first use, so an answer that got lost is not asked for again.
            if attempt == _ATTEMPTS or is_lost or not is_elsewhere:
                raise
        if len(wire.nodes.all) > 1:
            await wire.probe()
    raise AssertionError("the last attempt returns or raises")


def _look_up_self(adapter: Any) -> Any:
    return Token(adapter).lookup_self()  # type: ignore[no-untyped-call]


def _renew_self(adapter: Any) -> Any:
    return Token(adapter).renew_self()  # type: ignore[no-untyped-call]


async def _credentials_checked(
    wire: Wire, operation: Operation[Any], message: str, *, token: Secret | None = None
) -> Any:
    try:
        return await ask(wire, operation, token=token, is_write=True)
    except Refused as failure:
        if failure.status in (400, 403, 404):
            raise LoginRefused(message) from failure
        raise


def _login(answer: Any, *, token: Secret | None = None) -> Login:
    auth = answer.get("auth") if isinstance(answer, dict) else None
    if not isinstance(auth, dict) or (token is None and not auth.get("client_token")):
        raise LoginRefused("Vault's answer to the login has no token")
    found = Secret(str(auth["client_token"])) if token is None else token
    return Login(found, float(auth.get("lease_duration") or 0), bool(auth.get("renewable")))


async def _read(path: Path) -> Secret:
    def read() -> str:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode("ascii").strip()

    try:
        text = await asyncio.to_thread(read)
    except (OSError, UnicodeDecodeError):
        raise LoginRefused(f"the file {path} cannot be read") from None
    if not text:
        raise LoginRefused(f"the file {path} is empty")
    return Secret(text)
