"""Reads a provider's file: either the whole file is understood, or the error says which line of it is wrong and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

import yaml

from services.auth.oauth.refusals import VERDICTS, ReauthReason
from services.auth.providers.schema import (
    DEFAULT_FIELD_PATTERN,
    DEFAULT_VARIABLE_PATTERN,
    AccountRule,
    AccountSource,
    AnswerRule,
    AuthFailureSignal,
    AuthKind,
    BodyFormat,
    Capture,
    CaptureSource,
    ClientAuth,
    CredentialField,
    DiscoveryKind,
    ErrorRule,
    ExpiryUnit,
    Flow,
    HostRule,
    Injection,
    OAuthSpec,
    Pkce,
    Provider,
    RevokeScope,
    Rotation,
    Scope,
    Sensitivity,
    Variable,
    VariableOwner,
)
from services.auth.providers.templates import UrlTemplate, places
from services.shared.egress import EgressRule, parse_destination
from services.shared.egress.rules import METHODS, check_host_pattern

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
_SLUG: Final = re.compile(r"[a-z][a-z0-9-]{0,40}")
_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,60}")
_PARAM: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,60}")
_POINTER: Final = re.compile(r"(/[^/]+)+")
# What a place may hold without being declared: the parts of an OAuth credential.
_TOKEN_PLACES: Final = frozenset({"access_token", "client_id"})


class ProviderFileError(ValueError):
    """A provider's file cannot be used; the text names the file, the place in it, and what was expected."""


def load_provider(text: str, name: str) -> Provider:
    """Returns the provider of a file.

    Args:
        text: The YAML.
        name: The file's name without its suffix; the provider's slug is the same.

    Raises:
        ProviderFileError: The file is wrong.
    """
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise ProviderFileError(f"{name}.yaml{where}: {problem}") from None
    try:
        provider = _provider(_Reader(document, ""))
        if provider.slug != name:
            raise _Wrong("slug", f"expected the name of the file, {name!r}")
        _check_places(provider)
        return provider
    except _Wrong as wrong:
        raise ProviderFileError(f"{name}.yaml: {wrong}") from None


class _StrictLoader(yaml.SafeLoader):
    """Takes no key twice, of which YAML would silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Wrong(Exception):
    """Where in the file, and what was expected there."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)


class _Reader:
    """One mapping of the file; every key is taken once, and one that nobody takes is an error."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _Wrong(where, "expected a mapping with texts as keys")
        self._left = dict(value)
        self.where = where

    def at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str) -> Any:
        return self._left.pop(key, None)

    def text(self, key: str, default: str | None = None, pattern: re.Pattern[str] | None = None) -> str:
        value = self.optional_text(key, pattern)
        if value is None:
            if default is None:
                raise _Wrong(self.at(key), "is required")
            return default
        return value

    def optional_text(self, key: str, pattern: re.Pattern[str] | None = None) -> str | None:
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise _Wrong(self.at(key), f"expected a text, not {value!r}")
        if pattern is not None and pattern.fullmatch(value) is None:
            raise _Wrong(self.at(key), f"{value!r} does not match {pattern.pattern}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _Wrong(self.at(key), f"expected true or false, not {value!r}")
        return value

    def number(self, key: str) -> float | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
            raise _Wrong(self.at(key), f"expected a positive number, not {value!r}")
        return float(value)

    def choice(self, key: str, options: type[E], default: E) -> E:
        value = self.take(key)
        if value is None:
            return default
        return self._one_of(key, options, value)

    def optional_choice(self, key: str, options: type[E]) -> E | None:
        value = self.take(key)
        return None if value is None else self._one_of(key, options, value)

    def choices(self, key: str, options: type[E], default: tuple[E, ...]) -> tuple[E, ...]:
        values = self._list(key)
        return tuple(self._one_of(key, options, value) for value in values) if values else default

    def texts(self, key: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        values = self._list(key)
        for value in values:
            if not isinstance(value, str) or not value:
                raise _Wrong(self.at(key), f"expected texts, not {value!r}")
            if pattern is not None and pattern.fullmatch(value) is None:
                raise _Wrong(self.at(key), f"{value!r} does not match {pattern.pattern}")
        return tuple(values)

    def pointers(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        return self.texts(key, _POINTER) or default

    def mapping(self, key: str, pattern: re.Pattern[str] = _PARAM) -> dict[str, str]:
        value = self.take(key)
        if value is None:
            return {}
        reader = _Reader(value, self.at(key))
        for name in list(reader._left):
            if pattern.fullmatch(name) is None:
                raise _Wrong(reader.at(name), f"does not match {pattern.pattern}")
        return {name: reader.text(name) for name in list(reader._left)}

    def url(self, key: str) -> UrlTemplate | None:
        text = self.optional_text(key)
        return None if text is None else self._checked(key, text, UrlTemplate.parse)

    def hosts(self, key: str) -> tuple[str, ...]:
        hosts = self.texts(key)
        for host in hosts:
            self._checked(key, host, check_host_pattern)
        return hosts

    def part(self, key: str) -> _Reader | None:
        value = self.take(key)
        return None if value is None else _Reader(value, self.at(key))

    def parts(self, key: str) -> list[_Reader]:
        return [_Reader(value, f"{self.at(key)}[{index}]") for index, value in enumerate(self._list(key))]

    def named_parts(self, key: str, pattern: re.Pattern[str] | None) -> list[tuple[str, _Reader]]:
        reader = self.part(key)
        if reader is None:
            return []
        for name in reader._left:
            if pattern is not None and pattern.fullmatch(name) is None:
                raise _Wrong(reader.at(name), f"does not match {pattern.pattern}")
        return [(name, _Reader(reader.take(name), reader.at(name))) for name in list(reader._left)]

    def finish(self) -> None:
        if self._left:
            raise _Wrong(self.at(next(iter(self._left))), "is not known")

    def keys(self) -> Iterable[str]:
        return list(self._left)

    def _checked(self, key: str, value: str, check: Callable[[str], T]) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise _Wrong(self.at(key), f"{value!r}: {error}") from None

    def _one_of(self, key: str, options: type[E], value: Any) -> E:
        # YAML reads some words as something else: `none` stays a text, `off` would not.
        try:
            return options(value)
        except ValueError:
            known = ", ".join(option.value for option in options)
            raise _Wrong(self.at(key), f"expected one of {known}, not {value!r}") from None

    def _list(self, key: str) -> list[Any]:
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list) or not value:
            raise _Wrong(self.at(key), "expected a list that is not empty")
        return value


# ------------------------------------------------------------------------------------------------- the parts of a file


def _provider(reader: _Reader) -> Provider:
    kind = reader.choice("kind", AuthKind, AuthKind.OAUTH2)
    oauth = reader.part("oauth")
    if (oauth is None) is (kind is AuthKind.OAUTH2):
        raise _Wrong("oauth", "belongs to the kind oauth2, and only to that")
    documentation_url = reader.text("documentation_url")
    try:
        parse_destination(documentation_url)
    except ValueError as error:
        raise _Wrong("documentation_url", str(error)) from None
    provider = Provider(
        slug=reader.text("slug", pattern=_SLUG),
        display_name=reader.text("display_name"),
        kind=kind,
        documentation_url=documentation_url,
        note=reader.text("note", ""),
        variables={name: _variable(name, part) for name, part in reader.named_parts("variables", _NAME)},
        inject=tuple(_injection(part) for part in reader.parts("inject")),
        hosts=tuple(_host(part) for part in reader.parts("hosts")),
        scopes={name: _scope(name, part) for name, part in reader.named_parts("scopes", None)},
        accepts_other_scopes=reader.flag("accepts_other_scopes", True),
        oauth=None if oauth is None else _oauth(oauth),
        fields={name: _field(name, part) for name, part in reader.named_parts("fields", _NAME)},
        account=_account(reader.part("account")),
        auth_failure_signals=tuple(_signal(part) for part in reader.parts("auth_failure_signals")),
    )
    reader.finish()
    if (not provider.fields) is (kind is not AuthKind.OAUTH2):
        raise _Wrong("fields", "are what a connection of the kind api_key or basic is made of, and only of those")
    if not provider.inject:
        raise _Wrong("inject", "is required")
    if not provider.hosts:
        raise _Wrong("hosts", "is required")
    return provider


def _variable(name: str, reader: _Reader) -> Variable:
    pattern = reader.text("pattern", DEFAULT_VARIABLE_PATTERN)
    _compile(reader.at("pattern"), pattern)
    variable = Variable(
        name=name,
        words=reader.text("words"),
        owner=reader.choice("owner", VariableOwner, VariableOwner.INTEGRATION),
        pattern=pattern,
        default=reader.optional_text("default"),
        is_url=reader.flag("is_url"),
        hosts=reader.hosts("hosts"),
    )
    reader.finish()
    if variable.hosts and not variable.is_url:
        raise _Wrong(reader.at("hosts"), "belongs to a variable with is_url")
    if variable.default is not None:
        try:
            variable.check(variable.default)
        except ValueError as error:
            raise _Wrong(reader.at("default"), str(error)) from None
    return variable


def _injection(reader: _Reader) -> Injection:
    header, query = reader.optional_text("header", _HEADER), reader.optional_text("query", _PARAM)
    basic = reader.optional_text("basic")
    value = reader.optional_text("value")
    reader.finish()
    if basic is not None:
        if header or query or value:
            raise _Wrong(reader.where, "expected basic alone")
        return Injection("Authorization", basic, is_basic=True)
    if (header is None) is (query is None) or value is None:
        raise _Wrong(reader.where, "expected a value with a header or a query, or basic")
    return Injection(header or query or "", value, in_query=query is not None)


def _host(reader: _Reader) -> HostRule:
    host = reader.text("host")
    from_value = reader.optional_text("from", _NAME)
    rule = HostRule(
        host=host,
        path_prefix=reader.text("path_prefix", "/"),
        methods=frozenset(reader.texts("methods")),
        from_value=from_value,
    )
    reader.finish()
    if host == "*" and from_value is not None:
        return rule
    try:
        example = re.sub(r"\{[a-z0-9_]+\}", "example", host)
        EgressRule(example, path_prefix=rule.path_prefix, methods=rule.methods)
    except ValueError as error:
        raise _Wrong(reader.at("host"), str(error)) from None
    return rule


def _scope(name: str, reader: _Reader) -> Scope:
    if re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}", name) is None:
        raise _Wrong(reader.where, "expected a scope as RFC 6749 has it")
    scope = Scope(
        name=name,
        words=reader.text("words"),
        sensitivity=reader.choice("sensitivity", Sensitivity, Sensitivity.READ),
        is_default=reader.flag("default"),
        is_mandatory=reader.flag("mandatory"),
        is_user=reader.flag("user"),
    )
    reader.finish()
    return scope


def _field(name: str, reader: _Reader) -> CredentialField:
    pattern = reader.text("pattern", DEFAULT_FIELD_PATTERN)
    _compile(reader.at("pattern"), pattern)
    made = CredentialField(name, reader.text("words"), reader.flag("secret", True), pattern)
    reader.finish()
    return made


def _account(reader: _Reader | None) -> AccountRule | None:
    if reader is None:
        return None
    source = reader.choice("from", AccountSource, AccountSource.WHOAMI)
    pattern = _NAME if source is AccountSource.EXTRA else _POINTER
    rule = AccountRule(
        source=source,
        id=reader.texts("id", pattern),
        label=reader.texts("label", pattern),
        url=reader.url("url"),
        method=reader.text("method", "GET"),
        body=reader.optional_text("body"),
        headers=reader.mapping("headers", _HEADER),
    )
    reader.finish()
    if not rule.id:
        raise _Wrong(reader.at("id"), "is required")
    if (rule.url is None) is (source is AccountSource.WHOAMI):
        raise _Wrong(reader.at("url"), "belongs to an account from whoami, and only to that")
    if rule.method not in METHODS:
        raise _Wrong(reader.at("method"), f"expected one of {', '.join(sorted(METHODS))}")
    return rule


def _signal(reader: _Reader) -> AuthFailureSignal:
    status = reader.number("status")
    header = reader.optional_text("header", _HEADER)
    signal = AuthFailureSignal(
        status=int(status or 0),
        pointer=reader.optional_text("pointer", _POINTER),
        equals=reader.optional_text("equals"),
        header=None if header is None else header.lower(),
        contains=reader.optional_text("contains"),
    )
    reader.finish()
    if not 100 <= signal.status <= 599:
        raise _Wrong(reader.at("status"), "expected a status of HTTP")
    if (signal.pointer is None) is not (signal.equals is None):
        raise _Wrong(reader.where, "expected pointer and equals together")
    if (signal.header is None) is not (signal.contains is None):
        raise _Wrong(reader.where, "expected header and contains together")
    return signal


def _oauth(reader: _Reader) -> OAuthSpec:
    answer = reader.part("answer")
    spec = OAuthSpec(
        authorize_url=reader.url("authorize_url"),
        token_url=reader.url("token_url"),
        refresh_url=reader.url("refresh_url"),
        device_url=reader.url("device_url"),
        revoke_url=reader.url("revoke_url"),
        introspect_url=reader.url("introspect_url"),
        jwks_url=reader.url("jwks_url"),
        issuer=reader.optional_text("issuer"),
        resource=reader.optional_text("resource"),
        discovery=reader.optional_choice("discovery", DiscoveryKind),
        flows=reader.choices("flows", Flow, (Flow.AUTHORIZATION_CODE,)),
        iss_in_callback=reader.flag("iss_in_callback"),
        client_auth=reader.choice("client_auth", ClientAuth, ClientAuth.POST),
        body=reader.choice("body", BodyFormat, BodyFormat.FORM),
        pkce=reader.choice("pkce", Pkce, Pkce.S256),
        param_names=reader.mapping("param_names"),
        callback_code_param=reader.text("callback_code_param", "code"),
        callback_code_is_encoded=reader.flag("callback_code_is_encoded"),
        extra_authorize_params=reader.mapping("extra_authorize_params"),
        extra_token_params=reader.mapping("extra_token_params"),
        extra_refresh_params=reader.mapping("extra_refresh_params"),
        force_consent_params=reader.mapping("force_consent_params"),
        headers=reader.mapping("headers", _HEADER),
        scope_separator=reader.text("scope_separator", " "),
        user_scope_param=reader.optional_text("user_scope_param"),
        resend_scope=reader.flag("resend_scope"),
        resend_redirect_uri=reader.flag("resend_redirect_uri"),
        send_redirect_uri=reader.flag("send_redirect_uri", True),
        callback_hmac_param=reader.optional_text("callback_hmac_param"),
        answer=AnswerRule() if answer is None else _answer(answer),
        captures=tuple(_capture(name, part) for name, part in reader.named_parts("captures", _NAME)),
        rotation=reader.choice("rotation", Rotation, Rotation.OPTIONAL),
        rotation_grace_seconds=reader.number("rotation_grace_seconds") or 0.0,
        refresh_ttl_seconds=reader.number("refresh_ttl_seconds"),
        refresh_idle_seconds=reader.number("refresh_idle_seconds"),
        early_refresh_seconds=reader.number("early_refresh_seconds"),
        max_grants_per_account=int(reader.number("max_grants_per_account") or 0) or None,
        revoke_scope=reader.choice("revoke_scope", RevokeScope, RevokeScope.TOKEN),
        revoke_with_auth=reader.flag("revoke_with_auth", True),
    )
    reader.finish()
    if spec.discovery is None:
        if spec.token_url is None:
            raise _Wrong(reader.at("token_url"), "is required")
        if (spec.authorize_url is None) is (Flow.AUTHORIZATION_CODE in spec.flows):
            raise _Wrong(reader.at("authorize_url"), "belongs to the flow authorization_code, and only to that")
        if (spec.device_url is None) is (Flow.DEVICE in spec.flows):
            raise _Wrong(reader.at("device_url"), "belongs to the flow device, and only to that")
    if (spec.rotation_grace_seconds > 0) is not (spec.rotation is Rotation.GRACE):
        raise _Wrong(reader.at("rotation_grace_seconds"), "belongs to the rotation grace, and only to that")
    if (spec.issuer is None) is not (spec.jwks_url is None) and spec.discovery is None:
        raise _Wrong(reader.at("jwks_url"), "belongs to an issuer")
    return spec


def _answer(reader: _Reader) -> AnswerRule:
    standard = AnswerRule()
    success = reader.part("success")
    rule = AnswerRule(
        access_token=reader.pointers("access_token", standard.access_token),
        refresh_token=reader.pointers("refresh_token", standard.refresh_token),
        id_token=reader.pointers("id_token", standard.id_token),
        token_type=reader.pointers("token_type", standard.token_type),
        scope=reader.pointers("scope", standard.scope),
        scope_separator=reader.optional_text("scope_separator"),
        expires=reader.pointers("expires", standard.expires),
        expires_unit=reader.choice("expires_unit", ExpiryUnit, ExpiryUnit.SECONDS),
        default_ttl_seconds=reader.number("default_ttl_seconds"),
        jwt_exp_hint=reader.flag("jwt_exp_hint"),
        refresh_expires=reader.pointers("refresh_expires", standard.refresh_expires),
        refresh_expires_unit=reader.choice("refresh_expires_unit", ExpiryUnit, ExpiryUnit.SECONDS),
        error=reader.pointers("error", standard.error),
        success=None if success is None else (success.text("pointer", pattern=_POINTER), success.text("equals")),
        errors=_errors(reader.part("errors")),
    )
    if success is not None:
        success.finish()
    reader.finish()
    return rule


def _errors(reader: _Reader | None) -> Mapping[str, ErrorRule]:
    """Reads `their_code: our_code`, or `their_code: {as: our_code, reason: …}`."""
    if reader is None:
        return {}
    rules = {}
    for code in reader.keys():
        value = reader.take(code)
        part = _Reader({"as": value} if isinstance(value, str) else value, reader.at(code))
        error = part.text("as")
        reason = part.optional_choice("reason", ReauthReason)
        part.finish()
        if error not in VERDICTS:
            raise _Wrong(part.at("as"), f"{error!r} is no code of the OAuth registry")
        rules[code] = ErrorRule(error, reason)
    return rules


def _capture(name: str, reader: _Reader) -> Capture:
    pattern = reader.optional_text("pattern")
    if pattern is not None:
        _compile(reader.at("pattern"), pattern)
    capture = Capture(
        name=name,
        source=reader.choice("from", CaptureSource, CaptureSource.TOKEN),
        at=reader.text("at"),
        pattern=pattern,
        hosts=reader.hosts("hosts"),
    )
    reader.finish()
    expected = _POINTER if capture.source is CaptureSource.TOKEN else _PARAM
    if expected.fullmatch(capture.at) is None:
        raise _Wrong(reader.at("at"), f"{capture.at!r} does not match {expected.pattern}")
    return capture


def _check_places(provider: Provider) -> None:
    """Checks that every place of the file is filled by something that the file declares."""
    spec = provider.oauth
    captures = {} if spec is None else {item.name: item for item in spec.captures}
    known = {*provider.variables, *captures}
    addresses = {name for name, item in provider.variables.items() if item.is_url}
    addresses |= {name for name, item in captures.items() if item.hosts}
    urls: dict[str, UrlTemplate | None] = {}
    if spec is not None:
        fields = ("authorize_url", "token_url", "refresh_url", "device_url", "revoke_url", "introspect_url", "jwks_url")
        urls = {f"oauth.{name}": getattr(spec, name) for name in fields}
    if provider.account is not None:
        urls["account.url"] = provider.account.url
        if provider.account.source is AccountSource.EXTRA:
            for name in (*provider.account.id, *provider.account.label):
                if name not in known:
                    raise _Wrong("account", f"{name} is neither a variable nor a capture")
    for where, template in urls.items():
        if template is None:
            continue
        for name in template.names:
            if name not in known:
                raise _Wrong(where, f"{{{name}}} is neither a variable nor a capture")
        leading = template.leading_name
        if leading is not None and leading not in addresses:
            raise _Wrong(where, f"{{{leading}}} begins an address and is none")
        if any(name in addresses and name != leading for name in template.names):
            raise _Wrong(where, "an address stands in the middle of another")
    for index, rule in enumerate(provider.hosts):
        if rule.from_value is not None and rule.from_value not in addresses:
            raise _Wrong(f"hosts[{index}].from", f"{rule.from_value} is no variable or capture with an address")
        for name in places(rule.host):
            if name not in known - addresses:
                raise _Wrong(f"hosts[{index}].host", f"{{{name}}} is neither a variable nor a capture")
    given = {*known, *provider.fields} | (_TOKEN_PLACES if spec is not None else set())
    for index, injection in enumerate(provider.inject):
        for name in places(injection.value):
            if name not in given:
                raise _Wrong(f"inject[{index}]", f"{{{name}}} has no value")


def _compile(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise _Wrong(where, f"is no regular expression: {error}") from None
