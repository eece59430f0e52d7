"""The double: nodes on ports of their own over one storage; what they answer and what a test may do to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tests.fakes.vault.faults import Faults
from tests.fakes.vault.kv import KvEngine
from tests.fakes.vault.node import NodeServer
from tests.fakes.vault.tokens import ROOT, Tokens
from tests.fakes.vault.transit import TransitEngine
from tests.fakes.vault.wire import Answer, Refusal, Request, data, denied, not_found, nothing

ENGINES: dict[str, type[KvEngine] | type[TransitEngine]] = {"kv": KvEngine, "transit": TransitEngine}

# Open to everybody.
_WITHOUT_TOKEN = ("auth/approle/login", "auth/kubernetes/login", "sys/wrapping/lookup", "sys/wrapping/unwrap")


class Cluster:
    """A Vault of one or more nodes.

    Use it as a context manager. Requests are kept in `requests` as they came.

    Args:
        nodes: How many.
        standby: What a standby does with a call: pass it on, answer 307 to the active node, or say that it has not
            seen the last write yet.
    """

    def __init__(self, *, nodes: int = 1, standby: Literal["forward", "redirect", "behind"] = "forward") -> None:
        self.standby = standby
        self.active: int | None = 0
        self.sealed = False
        self.faults = Faults()
        self.tokens = Tokens()
        self.mounts: dict[str, KvEngine | TransitEngine] = {}
        self.auth_methods: dict[str, str] = {"token": "token"}
        self.requests: list[Request] = []
        self.index = 0
        self._lock = threading.RLock()
        self.nodes = [NodeServer(self.answer, self.faults, number) for number in range(nodes)]

    def __enter__(self) -> Cluster:
        for node in self.nodes:
            node.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        for node in self.nodes:
            node.stop()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the nodes are."""
        return tuple(node.address for node in self.nodes)

    @property
    def root_token(self) -> str:
        """A token that may do everything."""
        return ROOT

    def advance(self, seconds: float) -> None:
        """Moves the cluster's time."""
        with self._lock:
            self.tokens.now += seconds

    def revoke(self, token: str) -> None:
        """Ends a token."""
        with self._lock:
            self.tokens.alive.pop(token, None)

    def paths(self, method: str = "") -> list[str]:
        """Returns the paths that were asked for, without the looks at health."""
        with self._lock:
            return [
                request.path
                for request in self.requests
                if request.path != "sys/health" and (not method or request.method == method)
            ]

    @contextmanager
    def stopped(self, node: int) -> Iterator[None]:
        """Nobody listens at a node's address inside."""
        self.nodes[node].stop()
        try:
            yield
        finally:
            self.nodes[node].start()

    def answer(self, request: Request) -> Answer:
        """Answers one call."""
        with self._lock:
            self.requests.append(request)
            try:
                answer = self._answer(request)
            except Refusal as refusal:
                answer = refusal.answer
            if request.method != "GET" and answer.status < 300:
                self.index += 1
                answer.headers["X-Vault-Index"] = f"v1:{self.index}"
            return answer

    def _answer(self, request: Request) -> Answer:
        if request.path == "sys/health":
            return self._health(request.node)
        if self.sealed:
            raise Refusal(503, "Vault is sealed")
        if request.node != self.active:
            if self.active is None:
                raise Refusal(500, "local node not active but active cluster node not found")
            is_forced = request.headers.get("x-vault-inconsistent") == "forward-active-node"
            if self.standby == "redirect":
                return Answer(307, None, {"Location": f"{self.nodes[self.active].address}/v1/{request.path}"})
            if self.standby == "behind" and request.headers.get("x-vault-index") and not is_forced:
                raise Refusal(412, "required index state not present")
        return self._authorised(request)

    def _health(self, node: int) -> Answer:
        status = 503 if self.sealed else 200 if node == self.active else 429
        return Answer(status, {"initialized": True, "sealed": self.sealed, "standby": node != self.active})

    def _authorised(self, request: Request) -> Answer:
        path = request.path
        if path in _WITHOUT_TOKEN:
            return self._dispatch(request, None)
        token = self.tokens.find(request.token)
        if token is None:
            raise Refusal(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
        if not self.tokens.allows(token, path, self._capability(request), request.body):
            raise denied()
        answer = self._dispatch(request, token)
        if answer.status == 200 and request.headers.get("x-vault-wrap-ttl"):
            return self.tokens.wrap(path, answer)
        return answer

    def _capability(self, request: Request) -> str:
        if request.method not in ("POST", "PUT"):
            return {"GET": "read", "LIST": "list", "DELETE": "delete"}[request.method]
        mount, engine, rest = self._engine(request.path)
        return "create" if mount and engine is not None and not engine.exists(rest) else "update"

    def _engine(self, path: str) -> tuple[str, KvEngine | TransitEngine | None, str]:
        for mount, engine in self.mounts.items():
            if path.startswith(f"{mount}/"):
                return mount, engine, path.removeprefix(f"{mount}/")
        return "", None, path

    def _dispatch(self, request: Request, token: Any) -> Answer:
        path = request.path
        if path.startswith("auth/token/"):
            return self.tokens.handle_token(request, path.removeprefix("auth/token/"), token)
        if path.startswith("auth/"):
            mount, _, rest = path.removeprefix("auth/").partition("/")
            kind = self.auth_methods.get(mount)
            if kind == "approle":
                return self.tokens.handle_approle(request, rest)
            if kind == "kubernetes":
                return self.tokens.handle_kubernetes(request, rest)
            raise not_found()
        if path.startswith("sys/wrapping/"):
            return self.tokens.handle_wrapping(request, path.removeprefix("sys/wrapping/"))
        if path.startswith("sys/"):
            return self._system(request, path.removeprefix("sys/"))
        _, engine, rest = self._engine(path)
        if engine is None:
            raise Refusal(404, f'no handler for route "{path}". route entry not found.')
        return engine.handle(request, rest)

    def _system(self, request: Request, path: str) -> Answer:
        kind, _, name = path.partition("/")
        is_write = request.method in ("POST", "PUT")
        match kind:
            case "mounts" if not name:
                return data({f"{mount}/": _described(engine) for mount, engine in self.mounts.items()})
            case "mounts" if is_write:
                if name in self.mounts:
                    raise Refusal(400, f"path is already in use at {name}/")
                self.mounts[name] = ENGINES[request.body["type"]]()
                return nothing()
            case "auth" if not name:
                return data({f"{mount}/": {"type": kind} for mount, kind in self.auth_methods.items()})
            case "auth" if is_write:
                if name in self.auth_methods:
                    raise Refusal(400, f"path is already in use at {name}/")
                self.auth_methods[name] = request.body["type"]
                return nothing()
            case "policy" | "policies" if is_write:
                self.tokens.policies[name.removeprefix("acl/")] = request.body["policy"]
                return nothing()
            case "policy" | "policies":
                text = self.tokens.policies.get(name.removeprefix("acl/"))
                if text is None:
                    raise not_found()
                return data({"name": name, "rules": text, "policy": text})
            case "seal":
                self.sealed = True
                return nothing()
        raise not_found()


def _described(engine: KvEngine | TransitEngine) -> dict[str, Any]:
    if isinstance(engine, TransitEngine):
        return {"type": "transit", "options": None}
    return {"type": "kv", "options": {"version": "2"}}
