"""A provider as data: where it is, how it speaks OAuth, what differs from the standard, and where its tokens may go."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from services.auth.oauth.refusals import ReauthReason
from services.auth.providers.templates import UrlTemplate, VariableMissing, fill
from services.auth.secrets import Secret
from services.shared.auth_failure_signals import AuthFailureSignal
from services.shared.egress import EgressRule, host_matches, parse_destination

DEFAULT_VARIABLE_PATTERN: Final = r"[A-Za-z0-9._-]{1,128}"
DEFAULT_FIELD_PATTERN: Final = r"[\x21-\x7e]{1,8192}"


class AuthKind(StrEnum):
    """What a connection to the provider consists of."""

    OAUTH2 = "oauth2"
    API_KEY = "api_key"
    BASIC = "basic"


class Flow(StrEnum):
    """A way to tokens that the provider offers."""

    AUTHORIZATION_CODE = "authorization_code"
    DEVICE = "device"
    CLIENT_CREDENTIALS = "client_credentials"


class DiscoveryKind(StrEnum):
    """Where the endpoints come from, if they are not in the data."""

    OIDC = "oidc"
    MCP = "mcp"


class ClientAuth(StrEnum):
    """How the app proves itself at the token endpoint."""

    BASIC = "basic"
    POST = "post"
    PRIVATE_KEY_JWT = "private_key_jwt"
    NONE = "none"


class BodyFormat(StrEnum):
    """How a request to the token endpoint is written."""

    FORM = "form"
    JSON = "json"


class Pkce(StrEnum):
    """Which code challenge the provider takes."""

    S256 = "S256"
    NONE = "none"


class Rotation(StrEnum):
    """What a refresh does to the refresh token that it used."""

    NONE = "none"
    """It stays valid; the answer holds none, or the same."""
    OPTIONAL = "optional"
    """A new one may come; the old one stays valid."""
    GRACE = "grace"
    """A new one comes; the old one works for `rotation_grace_seconds` more."""
    STRICT = "strict"
    """A new one comes; the old one is spent, and using it again may end the grant."""


class RevokeScope(StrEnum):
    """What revoking one token ends."""

    TOKEN = "token"
    GRANT = "grant"


class ExpiryUnit(StrEnum):
    """How the answer says when the access token ends."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    CLOCK = "d:hh:mm"
    EPOCH_SECONDS = "epoch"
    EPOCH_MILLISECONDS = "epoch_ms"
    RFC3339 = "rfc3339"


class Sensitivity(StrEnum):
    """What a scope lets an agent do, at worst."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"
    MONEY = "money"
    SEND_AS_USER = "send_as_user"


class VariableOwner(StrEnum):
    """Who gives a variable its value."""

    INTEGRATION = "integration"
    """The administrator who sets up the app."""
    CONNECTION = "connection"
    """The user who connects an account."""


class CaptureSource(StrEnum):
    """Which answer holds a value that is kept beside the tokens."""

    TOKEN = "token"
    CALLBACK = "callback"


class AccountSource(StrEnum):
    """Where the account's id comes from."""

    ID_TOKEN = "id_token"
    WHOAMI = "whoami"
    EXTRA = "extra"
    """From what the token answer held, as captured."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A value that differs between installations of a provider, such as a tenant."""

    name: str
    words: str
    """What to enter, for people."""
    owner: VariableOwner = VariableOwner.INTEGRATION
    pattern: str = DEFAULT_VARIABLE_PATTERN
    """The whole value matches it."""
    default: str | None = None
    is_url: bool = False
    """It is an https address, and takes the beginning of a template."""
    hosts: tuple[str, ...] = ()
    """For an address: patterns its host has to match; empty means that the administrator decides."""

    def check(self, value: str) -> str:
        """Returns `value`.

        Raises:
            ValueError: It is none for this variable; the text says what was expected.
        """
        if self.is_url:
            _check_url(value, self.hosts)
        elif re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"expected {self.words}")
        return value


@dataclass(frozen=True, slots=True)
class Capture:
    """A value of an answer that is kept in `TokenSet.extra`: only what is listed here is kept, and only if it fits."""

    name: str
    source: CaptureSource
    at: str
    """A JSON pointer into the token answer, or the name of a parameter of the callback."""
    pattern: str | None = None
    hosts: tuple[str, ...] = ()
    """The value is an https address at one of these; a token answer cannot widen where tokens go."""

    def accepts(self, value: str) -> bool:
        """Tells whether the value is one that may be kept."""
        if self.hosts:
            try:
                _check_url(value, self.hosts)
            except ValueError:
                return False
            return True
        return re.fullmatch(self.pattern or r"[\x21-\x7e]{1,512}", value) is not None


@dataclass(frozen=True, slots=True)
class Injection:
    """How a credential stands in a request. This is the only place that formats one."""

    name: str
    """Of a header, or of a parameter of the query; a place in it is filled by the administrator's variable alone."""
    value: str
    """A text with places: `{access_token}`, `{api_key}`, `{client_id}`, fields, variables and captures."""
    in_query: bool = False
    is_basic: bool = False
    """The value is `user:password`, sent as HTTP Basic."""

    def render(self, values: Mapping[str, str | Secret]) -> RenderedCredential:
        """Returns the credential as it is sent.

        Raises:
            VariableMissing: A place has no value.
        """
        plain = {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()}
        text = fill(self.value, plain)
        if self.is_basic:
            text = f"Basic {base64.b64encode(text.encode()).decode()}"
        return RenderedCredential(fill(self.name, plain), Secret(text), self.in_query)


@dataclass(frozen=True, slots=True, eq=False)
class RenderedCredential:
    """A header, or a parameter of the query, with its value."""

    name: str
    value: Secret
    in_query: bool


@dataclass(frozen=True, slots=True)
class HostRule:
    """Where the provider's credentials may be sent, as its data says it."""

    host: str
    """A host or `*.suffix`, with places for variables; for a captured address the pattern it has to match."""
    path_prefix: str = "/"
    methods: frozenset[str] = frozenset()
    from_value: str | None = None
    """The variable or capture that holds the address; its host alone is allowed, and none while it has no value."""

    def resolve(self, values: Mapping[str, str]) -> EgressRule | None:
        """Returns the rule for one connection; None while what it depends on has no value."""
        try:
            pattern = fill(self.host, values)
        except VariableMissing:
            return None
        if self.from_value is None:
            return EgressRule(pattern, path_prefix=self.path_prefix, methods=self.methods)
        try:
            to = parse_destination(values.get(self.from_value, ""))
        except ValueError:
            return None
        if pattern != "*" and not host_matches(pattern, to.host):
            return None
        try:
            return EgressRule(
                f"[{to.host}]" if ":" in to.host else to.host,
                scheme=to.scheme,
                port=to.port,
                # Below the address itself: two servers on one host are two.
                path_prefix=f"{to.path.rstrip('/')}{self.path_prefix}".rstrip("/") or "/",
                methods=self.methods,
            )
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Scope:
    """A permission that can be asked for."""

    name: str
    words: str
    """What it allows, for people."""
    sensitivity: Sensitivity
    is_default: bool = False
    """Asked for when nobody chose."""
    is_mandatory: bool = False
    """Always asked for: without it tokens cannot be refreshed, or the account cannot be told."""
    is_user: bool = False
    """Sent in the parameter for the user's scopes, at providers that have two."""


@dataclass(frozen=True, slots=True)
class AccountRule:
    """How to tell whose account a token is for."""

    source: AccountSource
    id: tuple[str, ...]
    """JSON pointers, or names of captures; several are joined by a colon."""
    label: tuple[str, ...] = ()
    """The first that is there."""
    url: UrlTemplate | None = None
    method: str = "GET"
    body: str | None = None
    """JSON text, for a provider whose API is GraphQL."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """With places; one called Authorization replaces what `inject` says."""


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """What one of the provider's own error codes means, as a code of the OAuth registry."""

    error: str
    reauth_reason: ReauthReason | None = None


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """How the answer of the token endpoint is read. Paths are JSON pointers, tried in order."""

    access_token: tuple[str, ...] = ("/access_token",)
    refresh_token: tuple[str, ...] = ("/refresh_token",)
    id_token: tuple[str, ...] = ("/id_token",)
    token_type: tuple[str, ...] = ("/token_type",)
    scope: tuple[str, ...] = ("/scope",)
    scope_separator: str | None = None
    """Between scopes in the answer; spaces and commas when not given."""
    expires: tuple[str, ...] = ("/expires_in",)
    expires_unit: ExpiryUnit = ExpiryUnit.SECONDS
    default_ttl_seconds: float | None = None
    """How long a token lives whose answer does not say."""
    jwt_exp_hint: bool = False
    """The access token is a JWT whose `exp` says it."""
    refresh_expires: tuple[str, ...] = ("/refresh_token_expires_in", "/refresh_expires_in")
    refresh_expires_unit: ExpiryUnit = ExpiryUnit.SECONDS
    error: tuple[str, ...] = ("/error",)
    """Where error codes are; `*` in a pointer means each item. The first code that has a meaning decides."""
    success: tuple[str, str] | None = None
    """A pointer and what it holds in an answer that is a success, for providers that say 200 to everything."""
    errors: Mapping[str, ErrorRule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OAuthSpec:
    """The provider's OAuth, with what differs from the standard."""

    authorize_url: UrlTemplate | None = None
    token_url: UrlTemplate | None = None
    refresh_url: UrlTemplate | None = None
    """Where refreshes go, when not to `token_url`."""
    device_url: UrlTemplate | None = None
    revoke_url: UrlTemplate | None = None
    jwks_url: UrlTemplate | None = None
    issuer: str | None = None
    """Expected `iss` of ID tokens, and of the callback; `{claim.tid}` takes a claim's value."""
    resource: str | None = None
    """Whom the tokens are for (RFC 8707), sent with every request; with places for variables."""
    discovery: DiscoveryKind | None = None
    flows: tuple[Flow, ...] = (Flow.AUTHORIZATION_CODE,)
    iss_in_callback: bool = False
    """The server promises an `iss` in the callback (RFC 9207), so that one without it is refused."""

    client_auth: ClientAuth = ClientAuth.POST
    body: BodyFormat = BodyFormat.FORM
    pkce: Pkce = Pkce.S256
    param_names: Mapping[str, str] = field(default_factory=dict)
    """Names of parameters, where the provider has its own: `client_id: client_key`."""
    callback_code_param: str = "code"
    callback_code_is_encoded: bool = False
    """The code has to be URL-decoded once more than usual."""
    extra_authorize_params: Mapping[str, str] = field(default_factory=dict)
    extra_token_params: Mapping[str, str] = field(default_factory=dict)
    extra_refresh_params: Mapping[str, str] = field(default_factory=dict)
    force_consent_params: Mapping[str, str] = field(default_factory=dict)
    """Added when the last sign-in brought no refresh token."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of requests to the token endpoint."""
    scope_separator: str = " "
    user_scope_param: str | None = None
    resend_scope: bool = False
    """A refresh repeats the scopes."""
    resend_redirect_uri: bool = False
    """A refresh repeats the redirect URI."""
    send_redirect_uri: bool = True
    """The exchange of a code repeats the redirect URI, as RFC 6749 §4.1.3 has it."""
    callback_hmac_param: str | None = None
    """The callback is signed with the client secret, and its signature is in this parameter."""

    answer: AnswerRule = field(default_factory=AnswerRule)
    captures: tuple[Capture, ...] = ()
    rotation: Rotation = Rotation.OPTIONAL
    rotation_grace_seconds: float = 0.0
    refresh_ttl_seconds: float | None = None
    """A refresh token ends after this time, however often it is used."""
    refresh_idle_seconds: float | None = None
    """A refresh token ends when it was not used for this time."""
    early_refresh_seconds: float | None = None
    """The provider refuses a refresh earlier than this before the end of the access token."""
    max_grants_per_account: int | None = None
    """One more sign-in of the same account silently ends the oldest."""
    revoke_scope: RevokeScope = RevokeScope.TOKEN
    revoke_with_auth: bool = True
    """Whether the app proves itself when it revokes."""
    revoke_access_token: bool = False
    """The access token is what is revoked, where the endpoint does not know refresh tokens."""


@dataclass(frozen=True, slots=True)
class CredentialField:
    """One text that makes up a connection that is no OAuth grant."""

    name: str
    words: str
    is_secret: bool = True
    pattern: str = DEFAULT_FIELD_PATTERN

    def check(self, value: str) -> str:
        """Returns `value`.

        Raises:
            ValueError: It does not look like one; the text repeats nothing of it.
        """
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"expected {self.words}")
        return value


@dataclass(frozen=True, slots=True)
class Provider:
    """One third party, or one kind of them."""

    slug: str
    display_name: str
    kind: AuthKind
    documentation_url: str
    inject: tuple[Injection, ...]
    hosts: tuple[HostRule, ...]
    variables: Mapping[str, Variable] = field(default_factory=dict)
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    accepts_other_scopes: bool = True
    """Whether scopes that are not listed may be asked for."""
    oauth: OAuthSpec | None = None
    fields: Mapping[str, CredentialField] = field(default_factory=dict)
    account: AccountRule | None = None
    auth_failure_signals: tuple[AuthFailureSignal, ...] = ()
    note: str = ""
    """What an administrator has to know to set up an app, in one or two sentences."""

    @property
    def default_scopes(self) -> tuple[str, ...]:
        """Scopes that are asked for when nobody chose."""
        return tuple(scope.name for scope in self.scopes.values() if scope.is_default or scope.is_mandatory)

    def with_mandatory_scopes(self, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the scopes and those without which the connection would not last."""
        mandatory = (scope.name for scope in self.scopes.values() if scope.is_mandatory)
        return tuple(dict.fromkeys((*mandatory, *scopes)))

    def check_variables(self, values: Mapping[str, str], owner: VariableOwner | None = None) -> dict[str, str]:
        """Returns the values with the defaults of those that are absent.

        Args:
            values: As entered.
            owner: Whose variables are checked and required; everybody's when not given.

        Raises:
            ValueError: One is unknown, missing or wrong; the text names it.
        """
        mine = {name: item for name, item in self.variables.items() if owner is None or item.owner is owner}
        unknown = sorted(set(values) - set(mine))
        if unknown:
            raise ValueError(f"{self.slug} has no variable {unknown[0]}")
        checked = {}
        for name, variable in mine.items():
            value = values.get(name) or variable.default
            if value is None:
                raise ValueError(f"{name} is required: {variable.words}")
            try:
                checked[name] = variable.check(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return checked

    def egress_rules(
        self, variables: Mapping[str, str], extra: Mapping[str, str] | None = None
    ) -> tuple[EgressRule, ...]:
        """Returns where a connection's credential may be sent.

        Args:
            variables: The checked variables of integration and connection.
            extra: `TokenSet.extra`.
        """
        values = {**self._defaults(), **variables, **(extra or {})}
        resolved = (rule.resolve(values) for rule in self.hosts)
        return tuple(rule for rule in resolved if rule is not None)

    def render(
        self, values: Mapping[str, str | Secret], variables: Mapping[str, str] | None = None
    ) -> tuple[RenderedCredential, ...]:
        """Returns what a request of a connection carries.

        Args:
            values: `access_token`, or the fields of the connection; `client_id` where the data asks for it.
            variables: The checked variables and captures.

        Raises:
            VariableMissing: The data asks for a value that is not given.
        """
        merged = {**self._defaults(), **(variables or {}), **values}
        return tuple(item.render(merged) for item in self.inject)

    def _defaults(self) -> dict[str, str]:
        return {name: item.default for name, item in self.variables.items() if item.default is not None}


def _check_url(value: str, hosts: tuple[str, ...]) -> None:
    to = parse_destination(value)
    if to.query:
        raise ValueError("expected an address without a query")
    if to.scheme != "https" and not _is_loopback(to.host):
        raise ValueError("expected an https address")
    if hosts and (to.scheme != "https" or not any(host_matches(pattern, to.host) for pattern in hosts)):
        raise ValueError(f"expected an address at {', '.join(hosts)}")


def _is_loopback(host: str) -> bool:
    # Whether it may be called at all is decided by the operator's allow-list, when it is called.
    return host in ("localhost", "127.0.0.1", "::1")
