"""Reads a provider's file: either the whole file is understood, or the error says which line of it is wrong and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import yaml

from services.auth.oauth.refusals import VERDICTS, ReauthReason
from services.auth.providers.reading import PARAM, POINTER, Reader, StrictLoader, Wrong
from services.auth.providers.schema import (
    DEFAULT_FIELD_PATTERN,
    DEFAULT_VARIABLE_PATTERN,
    AccountRule,
    AccountSource,
    AnswerRule,
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
from services.shared.auth_failure_signals import AuthFailureSignal
from services.shared.egress import EgressRule, parse_destination
from services.shared.egress.rules import METHODS

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
_SLUG: Final = re.compile(r"[a-z][a-z0-9-]{0,40}")
_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,60}")
_HEADER_OR_PLACE: Final = re.compile(rf"{_HEADER.pattern}|\{{{_NAME.pattern}\}}")
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
        document = yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise ProviderFileError(f"{name}.yaml{where}: {problem}") from None
    try:
        provider = _provider(Reader(document, ""))
        if provider.slug != name:
            raise Wrong("slug", f"expected the name of the file, {name!r}")
        _check_places(provider)
        return provider
    except Wrong as wrong:
        raise ProviderFileError(f"{name}.yaml: {wrong}") from None


# ------------------------------------------------------------------------------------------------- the parts of a file


def _provider(reader: Reader) -> Provider:
    kind = reader.choice("kind", AuthKind, AuthKind.OAUTH2)
    oauth = reader.part("oauth")
    if (oauth is None) is (kind is AuthKind.OAUTH2):
        raise Wrong("oauth", "belongs to the kind oauth2, and only to that")
    documentation_url = reader.text("documentation_url")
    try:
        parse_destination(documentation_url)
    except ValueError as error:
        raise Wrong("documentation_url", str(error)) from None
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
        raise Wrong("fields", "are what a connection of the kind api_key or basic is made of, and only of those")
    server = provider.variables.get("server_url")
    if provider.oauth is not None and provider.oauth.discovery is not None and (server is None or not server.is_url):
        raise Wrong("variables.server_url", "is required, with is_url: it is where discovery begins")
    if not provider.inject:
        raise Wrong("inject", "is required")
    if not provider.hosts:
        raise Wrong("hosts", "is required")
    return provider


def _variable(name: str, reader: Reader) -> Variable:
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
        raise Wrong(reader.at("hosts"), "belongs to a variable with is_url")
    if variable.default is not None:
        try:
            variable.check(variable.default)
        except ValueError as error:
            raise Wrong(reader.at("default"), str(error)) from None
    return variable


def _injection(reader: Reader) -> Injection:
    header, query = reader.optional_text("header", _HEADER_OR_PLACE), reader.optional_text("query", PARAM)
    basic = reader.optional_text("basic")
    value = reader.optional_text("value")
    reader.finish()
    if basic is not None:
        if header or query or value:
            raise Wrong(reader.where, "expected basic alone")
        return Injection("Authorization", basic, is_basic=True)
    if (header is None) is (query is None) or value is None:
        raise Wrong(reader.where, "expected a value with a header or a query, or basic")
    return Injection(header or query or "", value, in_query=query is not None)


def _host(reader: Reader) -> HostRule:
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
        raise Wrong(reader.at("host"), str(error)) from None
    return rule


def _scope(name: str, reader: Reader) -> Scope:
    if re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}", name) is None:
        raise Wrong(reader.where, "expected a scope as RFC 6749 has it")
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


def _field(name: str, reader: Reader) -> CredentialField:
    pattern = reader.text("pattern", DEFAULT_FIELD_PATTERN)
    _compile(reader.at("pattern"), pattern)
    made = CredentialField(name, reader.text("words"), reader.flag("secret", True), pattern)
    reader.finish()
    return made


def _account(reader: Reader | None) -> AccountRule | None:
    if reader is None:
        return None
    source = reader.choice("from", AccountSource, AccountSource.WHOAMI)
    pattern = _NAME if source is AccountSource.EXTRA else POINTER
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
        raise Wrong(reader.at("id"), "is required")
    if (rule.url is None) is (source is AccountSource.WHOAMI):
        raise Wrong(reader.at("url"), "belongs to an account from whoami, and only to that")
    if rule.method not in METHODS:
        raise Wrong(reader.at("method"), f"expected one of {', '.join(sorted(METHODS))}")
    return rule


def _signal(reader: Reader) -> AuthFailureSignal:
    status = reader.number("status")
    header = reader.optional_text("header", _HEADER)
    signal = AuthFailureSignal(
        status=int(status or 0),
        pointer=reader.optional_text("pointer", POINTER),
        equals=reader.optional_text("equals"),
        header=None if header is None else header.lower(),
        contains=reader.optional_text("contains"),
    )
    reader.finish()
    if not 100 <= signal.status <= 599:
        raise Wrong(reader.at("status"), "expected a status of HTTP")
    if (signal.pointer is None) is not (signal.equals is None):
        raise Wrong(reader.where, "expected pointer and equals together")
    if (signal.header is None) is not (signal.contains is None):
        raise Wrong(reader.where, "expected header and contains together")
    return signal


def _oauth(reader: Reader) -> OAuthSpec:
    answer = reader.part("answer")
    spec = OAuthSpec(
        authorize_url=reader.url("authorize_url"),
        token_url=reader.url("token_url"),
        refresh_url=reader.url("refresh_url"),
        device_url=reader.url("device_url"),
        revoke_url=reader.url("revoke_url"),
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
        revoke_access_token=reader.flag("revoke_access_token"),
    )
    reader.finish()
    if spec.discovery is None:
        if spec.token_url is None:
            raise Wrong(reader.at("token_url"), "is required")
        if (spec.authorize_url is None) is (Flow.AUTHORIZATION_CODE in spec.flows):
            raise Wrong(reader.at("authorize_url"), "belongs to the flow authorization_code, and only to that")
        if (spec.device_url is None) is (Flow.DEVICE in spec.flows):
            raise Wrong(reader.at("device_url"), "belongs to the flow device, and only to that")
    if (spec.rotation_grace_seconds > 0) is not (spec.rotation is Rotation.GRACE):
        raise Wrong(reader.at("rotation_grace_seconds"), "belongs to the rotation grace, and only to that")
    if (spec.issuer is None) is not (spec.jwks_url is None) and spec.discovery is None:
        raise Wrong(reader.at("jwks_url"), "belongs to an issuer")
    return spec


def _answer(reader: Reader) -> AnswerRule:
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
        success=None if success is None else (success.text("pointer", pattern=POINTER), success.text("equals")),
        errors=_errors(reader.part("errors")),
    )
    if success is not None:
        success.finish()
    reader.finish()
    return rule


def _errors(reader: Reader | None) -> Mapping[str, ErrorRule]:
    """Reads `their_code: our_code`, or `their_code: {as: our_code, reason: …}`."""
    if reader is None:
        return {}
    rules = {}
    for code in reader.keys():
        value = reader.take(code)
        part = Reader({"as": value} if isinstance(value, str) else value, reader.at(code))
        error = part.text("as")
        reason = part.optional_choice("reason", ReauthReason)
        part.finish()
        if error not in VERDICTS:
            raise Wrong(part.at("as"), f"{error!r} is no code of the OAuth registry")
        rules[code] = ErrorRule(error, reason)
    return rules


def _capture(name: str, reader: Reader) -> Capture:
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
    expected = POINTER if capture.source is CaptureSource.TOKEN else PARAM
    if expected.fullmatch(capture.at) is None:
        raise Wrong(reader.at("at"), f"{capture.at!r} does not match {expected.pattern}")
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
        fields = ("authorize_url", "token_url", "refresh_url", "device_url", "revoke_url", "jwks_url")
        urls = {f"oauth.{name}": getattr(spec, name) for name in fields}
    if provider.account is not None:
        urls["account.url"] = provider.account.url
        if provider.account.source is AccountSource.EXTRA:
            for name in (*provider.account.id, *provider.account.label):
                if name not in known:
                    raise Wrong("account", f"{name} is neither a variable nor a capture")
    for where, template in urls.items():
        if template is None:
            continue
        for name in template.names:
            if name not in known:
                raise Wrong(where, f"{{{name}}} is neither a variable nor a capture")
        leading = template.leading_name
        if leading is not None and leading not in addresses:
            raise Wrong(where, f"{{{leading}}} begins an address and is none")
        if any(name in addresses and name != leading for name in template.names):
            raise Wrong(where, "an address stands in the middle of another")
    for index, rule in enumerate(provider.hosts):
        if rule.from_value is not None and rule.from_value not in addresses:
            raise Wrong(f"hosts[{index}].from", f"{rule.from_value} is no variable or capture with an address")
        for name in places(rule.host):
            if name not in known - addresses:
                raise Wrong(f"hosts[{index}].host", f"{{{name}}} is neither a variable nor a capture")
    given = {*known, *provider.fields} | (_TOKEN_PLACES if spec is not None else set())
    for index, injection in enumerate(provider.inject):
        for name in places(injection.value):
            if name not in given:
                raise Wrong(f"inject[{index}]", f"{{{name}}} has no value")
        for name in places(injection.name):
            if name not in provider.variables or provider.variables[name].owner is not VariableOwner.INTEGRATION:
                raise Wrong(f"inject[{index}]", f"{{{name}}} is no variable of the integration")


def _compile(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise Wrong(where, f"is no regular expression: {error}") from None
