"""Tokens with their lives on the double's own clock, and the ways to get one."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.vault import policy
from tests.fakes.vault.wire import Answer, Refusal, Request, data, denied, not_found, nothing

ROOT = "root-of-the-double"


@dataclass(slots=True)
class Token:
    """A token."""

    value: str
    policies: tuple[str, ...]
    expire: float | None
    ttl: float
    last: float | None
    """When it ends whatever is renewed."""
    is_renewable: bool


@dataclass(slots=True)
class Wrapped:
    """An answer that lies under a wrapping token."""

    creation_path: str
    body: dict[str, Any]


@dataclass(slots=True)
class Tokens:
    """The token store, AppRole, Kubernetes and response wrapping."""

    now: float = 0.0
    policies: dict[str, str] = field(default_factory=lambda: {"default": policy.DEFAULT})
    alive: dict[str, Token] = field(default_factory=dict)
    wrapped: dict[str, Wrapped] = field(default_factory=dict)
    roles: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    secret_ids: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Role and uses that are left (0 for any number) by secret id."""
    service_accounts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name and namespace by the JWT of a pod."""
    logins: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def find(self, value: str) -> Token | None:
        """Returns a living token."""
        if value == ROOT:
            return Token(ROOT, ("root",), None, 0, None, False)
        token = self.alive.get(value)
        if token is not None and token.expire is not None and token.expire <= self.now:
            del self.alive[value]
            return None
        return token

    def allows(self, token: Token, path: str, capability: str, parameters: Iterable[str] = ()) -> bool:
        """Tells whether the token's policies allow it."""
        if "root" in token.policies:
            return True
        rules = [policy.parse(self.policies[name]) for name in token.policies if name in self.policies]
        return policy.is_allowed(rules, path, capability, parameters)

    def make(
        self, policies: tuple[str, ...], *, ttl: float = 3600, max_ttl: float = 86_400, is_renewable: bool = True
    ) -> Token:
        """Makes a token."""
        value = f"hvs.double-{next(self._numbers)}-{secrets.token_hex(8)}"
        expire, last = (self.now + ttl, self.now + max_ttl) if ttl else (None, None)
        self.alive[value] = Token(value, ("default", *policies), expire, ttl, last, is_renewable)
        return self.alive[value]

    def wrap(self, path: str, answer: Answer) -> Answer:
        """Puts an answer under a wrapping token."""
        assert answer.body is not None
        value = f"hvs.wrap-{next(self._numbers)}-{secrets.token_hex(8)}"
        self.wrapped[value] = Wrapped(path, answer.body)
        info = {"token": value, "ttl": 300, "creation_time": "2026-01-01T00:00:00Z", "creation_path": path}
        return data(None, wrap_info=info)

    def handle_token(self, request: Request, path: str, token: Token) -> Answer:
        """Answers `auth/token/…`."""
        match path:
            case "lookup-self":
                left = 0 if token.expire is None else int(token.expire - self.now)
                return data({"ttl": left, "renewable": token.is_renewable, "policies": list(token.policies)})
            case "renew-self":
                if not token.is_renewable or token.last is None:
                    raise Refusal(400, "lease is not renewable")
                token.expire = min(self.now + token.ttl, token.last)
                return self._auth(token)
            case "revoke-self":
                self.alive.pop(token.value, None)
                return nothing()
            case "create":
                ttl = _seconds(request.body.get("ttl", 3600))
                made = self.make(tuple(request.body.get("policies", ())), ttl=ttl)
                return self._auth(made)
        raise not_found()

    def handle_approle(self, request: Request, path: str) -> Answer:
        """Answers `auth/approle/…`."""
        match path.split("/"):
            case ["login"]:
                return self._login_approle(request.body)
            case ["role", name] if request.method in ("POST", "PUT"):
                old = self.roles.get(("approle", name), {"role_id": f"role-{name}-{next(self._numbers)}"})
                self.roles["approle", name] = old | request.body
                cidrs = self.roles["approle", name].get("token_bound_cidrs", [])
                self.roles["approle", name]["token_bound_cidrs"] = [str(cidr).removesuffix("/32") for cidr in cidrs]
                return nothing()
            case ["role", name] if request.method == "GET":
                return data(dict(self._role("approle", name)))
            case ["role", name, "role-id"]:
                return data({"role_id": self._role("approle", name)["role_id"]})
            case ["role", name, "secret-id"]:
                role = self._role("approle", name)
                value = f"secret-{secrets.token_hex(8)}"
                self.secret_ids[value] = (name, int(role.get("secret_id_num_uses") or 0))
                return data({"secret_id": value, "secret_id_accessor": f"accessor-{next(self._numbers)}"})
        raise not_found()

    def _login_approle(self, body: dict[str, Any]) -> Answer:
        self.logins += 1
        name, uses = self.secret_ids.get(str(body.get("secret_id")), ("", 0))
        role = self.roles.get(("approle", name))
        if role is None or role["role_id"] != body.get("role_id"):
            raise Refusal(400, "invalid role or secret ID")
        if uses == 1:
            del self.secret_ids[body["secret_id"]]
        elif uses:
            self.secret_ids[body["secret_id"]] = (name, uses - 1)
        return self._auth(self._token_of(role))

    def handle_kubernetes(self, request: Request, path: str) -> Answer:
        """Answers `auth/kubernetes/…`."""
        match path.split("/"):
            case ["login"]:
                self.logins += 1
                role = self.roles.get(("kubernetes", str(request.body.get("role"))))
                account = self.service_accounts.get(str(request.body.get("jwt")))
                if role is None:
                    raise Refusal(400, f'invalid role name "{request.body.get("role")}"')
                if account is None:
                    raise denied()
                names = role["bound_service_account_names"]
                if account[0] not in names or account[1] not in role["bound_service_account_namespaces"]:
                    raise Refusal(403, "service account name not authorized")
                return self._auth(self._token_of(role))
            case ["role", name] if request.method in ("POST", "PUT"):
                self.roles["kubernetes", name] = dict(request.body)
                return nothing()
            case ["config"]:
                return nothing()
        raise not_found()

    def handle_wrapping(self, request: Request, path: str) -> Answer:
        """Answers `sys/wrapping/…`."""
        value = str(request.body.get("token") or request.token)
        found = self.wrapped.get(value)
        if found is None:
            raise Refusal(400, "wrapping token is not valid or does not exist")
        if path == "lookup":
            return data({"creation_path": found.creation_path, "creation_ttl": 300})
        del self.wrapped[value]
        return Answer(200, found.body)

    def _role(self, method: str, name: str) -> dict[str, Any]:
        if (method, name) not in self.roles:
            raise not_found()
        return self.roles[method, name]

    def _token_of(self, role: dict[str, Any]) -> Token:
        policies = role.get("token_policies") or ()
        names = policies.split(",") if isinstance(policies, str) else policies
        ttl, longest = _seconds(role.get("token_ttl") or 3600), _seconds(role.get("token_max_ttl") or 86_400)
        return self.make(tuple(names), ttl=ttl, max_ttl=longest, is_renewable=role.get("token_type") != "batch")

    def _auth(self, token: Token) -> Answer:
        auth = {
            "client_token": token.value,
            "accessor": "accessor",
            "policies": list(token.policies),
            "token_policies": list(token.policies),
            "lease_duration": 0 if token.expire is None else int(token.expire - self.now),
            "renewable": token.is_renewable,
            "token_type": "service",
        }
        return data(None, auth=auth)


def _seconds(value: Any) -> float:
    text = str(value)
    units = {"s": 1, "m": 60, "h": 3600}
    return float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
