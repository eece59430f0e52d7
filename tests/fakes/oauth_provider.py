"""An OAuth provider on a real socket with the quirks of real ones: rotation, reuse detection, faults, gates, counters.

It runs in the test's event loop and counts what it is asked. Clients in other processes reach it as well.

    async with FakeOAuthProvider(Profile.strict()) as provider:
        app, tokens = provider.app(), provider.grant("ada").tokens()
        with provider.gate() as gate:            # the next token call waits
            call = asyncio.create_task(client.refresh(app, tokens))
            await gate.arrived.wait()
            gate.release()
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from services.auth.oauth.tokens import OAuthApp, TokenSet
from services.auth.providers import load_provider
from services.auth.providers.schema import OAuthSpec, Provider
from services.auth.secrets import Secret
from services.shared.clock import Clock, SystemClock
from services.shared.egress import EgressClient, TargetPolicy

CLIENT_ID: Final = "holdfast-app"
CLIENT_SECRET: Final = "client-secret-canary-5f1c"

_HTML: Final = b"<!doctype html><title>Attention required</title><p>error=invalid_grant</p>"

# The addresses are the test's own, so they come from a variable; all else is as a file of a real provider says it.
DATA: Final = """
slug: fake
display_name: Fake
documentation_url: https://example.com/docs
variables:
  base: {words: the address of the provider, is_url: true}
oauth:
  authorize_url: "{base}/authorize"
  token_url: "{base}/token"
  device_url: "{base}/device"
  revoke_url: "{base}/revoke"
  flows: [authorization_code, device, client_credentials]
account:
  from: whoami
  url: "{base}/whoami"
  id: [/id]
  label: [/name]
inject:
  - {header: Authorization, value: "Bearer {access_token}"}
hosts:
  - {host: "*", from: base}
scopes:
  read: {words: read things, default: true}
  write: {words: change things, sensitivity: write}
"""


@dataclass(slots=True)
class Grant:
    """One user's consent, with every token that came of it."""

    id: str
    account: str
    scopes: tuple[str, ...]
    provider: FakeOAuthProvider
    access_token: str = ""
    refresh_token: str | None = None
    spent: dict[str, float] = field(default_factory=dict)
    """Refresh tokens that were used, and when."""
    is_alive: bool = True
    token_calls: int = 0
    """Token calls that named this grant, whatever became of them."""
    refreshes: int = 0
    """Token calls that brought new tokens."""
    use_time: float = 0.0
    """When its refresh token was made, which for a provider with an idle limit is when the grant was last used."""

    def tokens(self, *, expires_in: float | None = None) -> TokenSet:
        """Returns the live tokens as the client would hold them."""
        now = self.provider.clock.now()
        seconds = self.provider.profile.expires_in if expires_in is None else expires_in
        return TokenSet(
            access_token=Secret(self.access_token),
            refresh_token=None if self.refresh_token is None else Secret(self.refresh_token),
            obtain_time=now,
            expire_time=None if seconds is None else now + timedelta(seconds=seconds),
            scopes=self.scopes,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """How the provider behaves. `oauth` is laid over the provider's data, so that client and server agree."""

    rotation: str = "strict"
    """none, optional, grace or strict, as in the data."""
    grace_seconds: float = 0.0
    expires_in: float | None = 3600.0
    with_refresh_token: bool = True
    idle_seconds: float | None = None
    """After so long without a refresh a grant is over."""
    shape: Callable[[dict[str, Any]], Any] | None = None
    """Turns the standard answer into the provider's."""
    error_status: int = 400
    error_shape: Callable[[str], Any] | None = None
    """Turns a standard error code into the provider's body."""
    oauth: str = ""
    """Lines of YAML below `oauth:`."""

    @classmethod
    def strict(cls) -> Profile:
        """Refresh tokens are single use; using one again ends the grant."""
        return cls()

    @classmethod
    def grace(cls, seconds: float = 60.0) -> Profile:
        """The old refresh token works for a while, and gives the same successor."""
        return cls(rotation="grace", grace_seconds=seconds, oauth=f"rotation_grace_seconds: {seconds}")

    @classmethod
    def idle(cls, seconds: float, *, documented: float) -> Profile:
        """Strict, and a grant whose refresh token nobody uses for so long is over; its documents say less."""
        return cls(idle_seconds=seconds, oauth=f"refresh_idle_seconds: {documented}")

    @classmethod
    def steady(cls) -> Profile:
        """Refresh tokens stay, and answers to a refresh hold none."""
        return cls(rotation="none")

    @classmethod
    def github(cls) -> Profile:
        """Errors come with status 200 and codes of the provider's own."""
        codes = {"invalid_grant": "bad_refresh_token", "invalid_client": "incorrect_client_credentials"}
        return cls(
            error_status=200,
            error_shape=lambda error: {"error": codes.get(error, error), "error_description": "canary-text-9b2e"},
            oauth="answer: {errors: {bad_refresh_token: invalid_grant, incorrect_client_credentials: invalid_client}}",
        )

    @classmethod
    def slack(cls) -> Profile:
        """Everything is a 200, success is `ok`, and the user's token is nested."""
        names = ("access_token", "refresh_token", "expires_in", "token_type")
        return cls(
            error_status=200,
            shape=lambda answer: {
                "ok": True,
                "team": {"id": "T1"},
                "authed_user": {"id": "U1", "scope": answer["scope"].replace(" ", ",")}
                | {name: answer[name] for name in names if name in answer},
            },
            error_shape=lambda error: {
                "ok": False,
                "error": {"invalid_grant": "invalid_refresh_token", "invalid_client": "bad_client_secret"}.get(
                    error, error
                ),
            },
            oauth="""answer:
    success: {pointer: /ok, equals: "true"}
    access_token: [/authed_user/access_token]
    refresh_token: [/authed_user/refresh_token]
    expires: [/authed_user/expires_in]
    scope: [/authed_user/scope]
    errors: {invalid_refresh_token: invalid_grant, bad_client_secret: invalid_client}
  captures:
    team: {at: /team/id}
    user: {at: /authed_user/id}""",
        )

    @classmethod
    def salesforce(cls) -> Profile:
        """Says nothing of an end, and names the host to call."""
        return cls(
            rotation="none",
            expires_in=None,
            shape=lambda answer: answer | {"instance_url": "https://acme.my.salesforce.com"},
            oauth='captures: {instance_url: {at: /instance_url, hosts: ["*.my.salesforce.com"]}}',
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one token call instead of, or after, what should."""

    status: int = 0
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_applied: bool = False
    """The call takes effect before it goes wrong: the answer is lost, the rotation is not."""
    is_dropped: bool = False
    """The connection is closed without an answer."""
    is_silent: bool = False
    """No answer comes until the client goes away."""

    @classmethod
    def html(cls, status: int = 403) -> Fault:
        """A page of a firewall."""
        return cls(status, _HTML, {"content-type": "text/html"})

    @classmethod
    def too_many(cls, retry_after: str = "7") -> Fault:
        """A rate limit."""
        return cls(429, b'{"error": "rate_limited"}', {"retry-after": retry_after})

    @classmethod
    def unavailable(cls, status: int = 503) -> Fault:
        """The server's own trouble."""
        return cls(status, b"upstream connect error")

    @classmethod
    def error(cls, code: str, status: int = 400) -> Fault:
        """An OAuth error."""
        return cls(status, json.dumps({"error": code, "error_description": "canary-text-9b2e"}).encode())

    @classmethod
    def answer(cls, body: bytes, **headers: str) -> Fault:
        """A success with this body."""
        return cls(200, body, {name.replace("_", "-"): value for name, value in headers.items()})

    @classmethod
    def huge(cls, size: int = 5 * 1024 * 1024) -> Fault:
        """A success with a body that nobody should read to its end."""
        return cls(200, b'{"access_token": "' + b"x" * size + b'"}')

    @classmethod
    def redirect(cls, to: str, status: int = 307) -> Fault:
        """Sends the client, and what it carries, elsewhere."""
        return cls(status, b"", {"location": to})

    @classmethod
    def dropped(cls) -> Fault:
        """The connection breaks before the call takes effect."""
        return cls(is_dropped=True)

    @classmethod
    def lost_answer(cls) -> Fault:
        """The call takes effect and the connection breaks: what no client can see."""
        return cls(is_dropped=True, is_applied=True)

    @classmethod
    def silent(cls, *, is_applied: bool = False) -> Fault:
        """No answer at all."""
        return cls(is_silent=True, is_applied=is_applied)


class Gate:
    """Holds token calls: each that arrives waits until it is released."""

    def __init__(self, *, after: bool) -> None:
        self.after = after
        """Held between taking effect and the answer, instead of before."""
        self.arrived = asyncio.Event()
        self.waiting = 0
        self._open = asyncio.Event()
        self._changed = asyncio.Event()

    def release(self) -> None:
        """Lets the held calls, and all later ones, pass."""
        self._open.set()

    async def wait_for(self, count: int) -> None:
        """Returns when so many calls are held at once."""
        while self.waiting < count:
            self._changed.clear()
            await self._changed.wait()

    async def passed(self) -> None:
        """Returns when the gate is open."""
        self.waiting += 1
        self.arrived.set()
        self._changed.set()
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived; header names are lower-case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def params(self) -> dict[str, str]:
        """The body's parameters, of a form or of JSON."""
        if "json" in self.headers.get("content-type", ""):
            document = json.loads(self.body or b"{}")
            return {name: str(value) for name, value in document.items()} if isinstance(document, dict) else {}
        return dict(parse_qsl(self.body.decode("latin-1"), keep_blank_values=True))


class FakeOAuthProvider:
    """The provider. Use it as an async context manager; `url` is its address.

    Args:
        profile: How it behaves.
        client_secrets: Those that it takes.
        clock: For grace windows and ID tokens.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        client_secrets: tuple[str, ...] = (CLIENT_SECRET,),
        clock: Clock | None = None,
    ) -> None:
        self.profile = Profile() if profile is None else profile
        self.client_secrets = client_secrets
        self.clock: Clock = SystemClock() if clock is None else clock
        self.requests: list[Request] = []
        self.token_calls = 0
        self.grants: list[Grant] = []
        self.faults: deque[Fault] = deque()
        """Taken in order, one for each token call."""
        self.max_concurrent_token_calls = 0
        self.reuses_detected = 0
        self.signing_in = "ada"
        """Whose browser comes to the provider."""
        self.registrations: list[dict[str, Any]] = []
        self.documents: dict[str, Any] = {}
        """Further JSON documents, by path."""
        self.id_token_changes: dict[str, Any] | None = None
        """When set, an exchange brings an ID token with these claims changed."""
        self._in_token_call = 0
        self._gates: list[Gate] = []
        self._codes: dict[str, tuple[Grant, dict[str, str]]] = {}
        self._devices: dict[str, tuple[Grant, str]] = {}
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._key_number = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        for gate in self._gates:
            gate.release()
        self._server.close()
        # A task of a connection accepted just now has not begun: cancelled, it would never close what it was given.
        await asyncio.sleep(0)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------ for the test

    @property
    def text(self) -> str:
        """The provider's file, for a folder of providers."""
        extra = f"  rotation: {self.profile.rotation}\n" + (f"  {self.profile.oauth}\n" if self.profile.oauth else "")
        return DATA.replace("account:\n", extra + "account:\n", 1)

    @property
    def data(self) -> Provider:
        """The provider as data."""
        return load_provider(self.text, "fake")

    def app(self, *client_secrets: str, **changes: Any) -> OAuthApp:
        """Returns an app at this provider, with its OAuth data changed as given."""
        data = self.data
        return OAuthApp(
            with_oauth(data, **changes),
            CLIENT_ID,
            tuple(Secret(text) for text in client_secrets or self.client_secrets),
            {"base": self.url},
        )

    @staticmethod
    def egress() -> EgressClient:
        """Returns a client that may call this machine, and trusts no certificate: reading the usual ones takes long."""
        return EgressClient(TargetPolicy(("127.0.0.0/8",)), ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def grant(self, account: str = "ada", scopes: tuple[str, ...] = ("read",)) -> Grant:
        """Makes a grant with live tokens, as if the user had signed in."""
        made = Grant(f"g{next(self._numbers)}", account, scopes, self)
        self._mint(made)
        self.grants.append(made)
        return made

    def decide_device(self, user_code: str, decision: str = "approved") -> None:
        """Decides a sign-in on another device: approved, access_denied, expired_token, slow_down."""
        for code, (grant, _) in self._devices.items():
            if code.endswith(user_code.lower()):
                self._devices[code] = (grant, decision)

    @contextmanager
    def gate(self, *, after: bool = False) -> Iterator[Gate]:
        """Holds the token calls that arrive in the block."""
        made = Gate(after=after)
        self._gates.append(made)
        try:
            yield made
        finally:
            made.release()
            self._gates.remove(made)

    def revoke_grant(self, grant: Grant) -> None:
        """Ends a grant, as its user does in the provider's settings."""
        grant.is_alive = False

    def grant_of(self, token: str) -> Grant | None:
        """Returns the grant that a token belongs to, spent ones included."""
        return next(
            (item for item in self.grants if token in (item.access_token, item.refresh_token) or token in item.spent),
            None,
        )

    # ------------------------------------------------------------------------------------------------------- tokens

    def _mint(self, grant: Grant) -> None:
        number = next(self._numbers)
        grant.access_token = f"at-canary-{grant.id}-{number}"
        grant.use_time = self.clock.monotonic()
        if self.profile.with_refresh_token and (grant.refresh_token is None or self.profile.rotation != "none"):
            grant.refresh_token = f"rt-canary-{grant.id}-{number}"

    def _answer(self, grant: Grant, *, with_refresh_token: bool = True) -> tuple[int, Any]:
        answer: dict[str, Any] = {
            "access_token": grant.access_token,
            "token_type": "bearer",
            "scope": " ".join(grant.scopes),
        }
        if self.profile.expires_in is not None:
            answer["expires_in"] = int(self.profile.expires_in)
        if with_refresh_token and grant.refresh_token is not None:
            answer["refresh_token"] = grant.refresh_token
        return 200, answer if self.profile.shape is None else self.profile.shape(answer)

    def _error(self, error: str) -> tuple[int, Any]:
        shape = self.profile.error_shape
        body = {"error": error, "error_description": "canary-text-9b2e"} if shape is None else shape(error)
        return self.profile.error_status, body

    def _token(self, request: Request) -> tuple[int, Any]:
        params = request.params
        if not self._is_client(request, params):
            return self._error("invalid_client")
        match params.get("grant_type"):
            case "refresh_token":
                return self._refresh(params.get("refresh_token", ""))
            case "authorization_code":
                return self._exchange(params)
            case "client_credentials":
                made = Grant(f"g{next(self._numbers)}", "app", tuple(params.get("scope", "").split()), self)
                self._mint(made)
                self.grants.append(made)
                return self._answer(made, with_refresh_token=False)
            case "urn:ietf:params:oauth:grant-type:device_code":
                grant, decision = self._devices.get(params.get("device_code", ""), (None, "invalid_grant"))
                if grant is None or decision != "approved":
                    return self._error(decision)
                self.grants.append(grant)
                return self._answer(grant)
            case _:
                return self._error("unsupported_grant_type")

    def _refresh(self, token: str) -> tuple[int, Any]:
        grant = self.grant_of(token)
        if grant is None or token == grant.access_token:
            return self._error("invalid_grant")
        grant.token_calls += 1
        idle = self.profile.idle_seconds
        if idle is not None and self.clock.monotonic() - grant.use_time > idle:
            grant.is_alive = False
        if not grant.is_alive:
            return self._error("invalid_grant")
        if token in grant.spent:
            age = self.clock.monotonic() - grant.spent[token]
            if self.profile.rotation == "grace" and age <= self.profile.grace_seconds:
                return self._answer(grant)
            if self.profile.rotation == "strict":
                # The defence that makes a lost race deadly: whoever holds the other copy loses it too.
                self.reuses_detected += 1
                grant.is_alive = False
            if self.profile.rotation != "optional":
                return self._error("invalid_grant")
        if self.profile.rotation != "none":
            grant.spent[token] = self.clock.monotonic()
        self._mint(grant)
        grant.refreshes += 1
        return self._answer(grant, with_refresh_token=self.profile.rotation != "none")

    def _exchange(self, params: dict[str, str]) -> tuple[int, Any]:
        grant, asked = self._codes.pop(params.get("code", ""), (None, {}))
        if grant is None or params.get("redirect_uri", asked.get("redirect_uri")) != asked.get("redirect_uri"):
            return self._error("invalid_grant")
        digest = hashlib.sha256(params.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if "code_challenge" in asked and asked["code_challenge"] != challenge:
            return self._error("invalid_grant")
        self.grants.append(grant)
        status, answer = self._answer(grant)
        if self.id_token_changes is not None:
            answer["id_token"] = self.id_token(grant, asked.get("nonce"), **self.id_token_changes)
        return status, answer

    def _is_client(self, request: Request, params: Mapping[str, str]) -> bool:
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            client_id, _, secret = base64.b64decode(value).decode().partition(":")
            return (unquote(client_id), unquote(secret)) in [(CLIENT_ID, known) for known in self.client_secrets]
        if not self.client_secrets:
            return params.get("client_id") is not None
        return params.get("client_id") == CLIENT_ID and params.get("client_secret") in self.client_secrets

    # ----------------------------------------------------------------------------------------------------- OpenID

    @property
    def key(self) -> RSAKey:
        """The key that signs ID tokens."""
        return _signing_key(self._key_number)

    def rotate_key(self) -> None:
        """Replaces the key that signs ID tokens; the old one is shown no more."""
        self._key_number += 1

    def id_token(self, grant: Grant, nonce: str | None, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """Returns an ID token; a change to None leaves the claim out."""
        now = int(self.clock.now().timestamp())
        claims = {"iss": self.url, "sub": grant.account, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce}
        claims |= {"email": f"{grant.account}@example.com", **changes}
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": self.key.kid, **(header or {})}, kept, self.key)

    def with_openid(self) -> OAuthApp:
        """Returns an app whose accounts come from ID tokens; exchanges bring them from now on."""
        from services.auth.providers.schema import AccountRule, AccountSource
        from services.auth.providers.templates import UrlTemplate

        self.id_token_changes = {}
        app = self.app(jwks_url=UrlTemplate.parse("{base}/jwks"), issuer=self.url)
        rule = AccountRule(AccountSource.ID_TOKEN, ("/sub",), ("/email",))
        return replace(app, provider=replace(app.provider, account=rule))

    # ------------------------------------------------------------------------------------------------------- HTTP

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._serve(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        to = urlsplit(target)
        request = Request(method, to.path, dict(parse_qsl(to.query, keep_blank_values=True)), headers, body)
        self.requests.append(request)
        if request.path == "/token":
            return await self._serve_token(request, reader, writer)
        status, answer, more = self._page(request)
        return await _write(writer, status, answer, more)

    async def _serve_token(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.token_calls += 1
        self._in_token_call += 1
        self.max_concurrent_token_calls = max(self.max_concurrent_token_calls, self._in_token_call)
        try:
            for gate in [gate for gate in self._gates if not gate.after]:
                await gate.passed()
            fault = self.faults.popleft() if self.faults else None
            status, answer = self._token(request) if fault is None or fault.is_applied else (0, None)
            for gate in [gate for gate in self._gates if gate.after]:
                await gate.passed()
        finally:
            self._in_token_call -= 1
        if fault is None:
            return await _write(writer, status, answer, {})
        if fault.is_silent:
            # Ends when the client goes away.
            await reader.read()
            return False
        if fault.is_dropped:
            return False
        return await _write(writer, fault.status, fault.body, fault.headers)

    def _page(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        params = request.params if request.method == "POST" else {}
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        match request.path:
            case "/authorize":
                code = f"code-canary-{next(self._numbers)}"
                made = Grant(
                    f"g{next(self._numbers)}", self.signing_in, tuple(request.query.get("scope", "").split()), self
                )
                self._mint(made)
                self._codes[code] = (made, dict(request.query))
                back = urlencode({"code": code, "state": request.query.get("state", "")})
                return 302, b"", {"location": f"{request.query['redirect_uri']}?{back}"}
            case "/device":
                number = next(self._numbers)
                made = Grant(f"g{number}", self.signing_in, tuple(params.get("scope", "").split()), self)
                self._mint(made)
                self._devices[f"device-canary-wxyz-{number}"] = (made, "authorization_pending")
                answer = {
                    "device_code": f"device-canary-wxyz-{number}",
                    "user_code": f"WXYZ-{number}",
                    "verification_uri": f"{self.url}/activate",
                    "expires_in": 600,
                    "interval": 5,
                }
                return 200, answer, {}
            case "/revoke":
                found = self.grant_of(params.get("token", ""))
                if found is not None:
                    found.is_alive = False
                return 200, b"", {}
            case "/whoami":
                found = self.grant_of(bearer)
                if found is None or not found.is_alive or found.access_token != bearer:
                    return 401, {"message": "bad credentials"}, {}
                return 200, {"id": found.account, "name": found.account.title()}, {}
            case "/api.test":
                # As Slack's: whatever is wrong, it is a 200.
                found = self.grant_of(bearer)
                if found is None or not found.is_alive or found.access_token != bearer:
                    return 200, {"ok": False, "error": "invalid_auth"}, {}
                return 200, {"ok": True, "user": found.account.title()}, {}
            case "/jwks":
                return 200, {"keys": [self.key.as_dict(private=False)]}, {}
            case "/register":
                said = json.loads(request.body)
                self.registrations.append(said)
                return 201, {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **said}, {}
            case path if path in self.documents:
                document = self.documents[path]
                if isinstance(document, Fault):
                    return document.status, document.body, dict(document.headers)
                return 200, document, {}
            case _:
                return 404, {"error": "not found"}, {}


def with_oauth(provider: Provider, **changes: Any) -> Provider:
    """Returns a provider with parts of its OAuth data replaced."""
    return replace(provider, oauth=replace(provider.oauth or OAuthSpec(), **changes))


@cache
def _signing_key(number: int) -> RSAKey:
    # Making one takes longer than most tests.
    return RSAKey.generate_key(2048, parameters={"kid": f"key-{number}"})


async def _write(writer: asyncio.StreamWriter, status: int, answer: Any, headers: Mapping[str, str]) -> bool:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)
    await writer.drain()
    return True
