"""What a server says about itself, checked before it is believed: addresses, methods, and whose tokens it gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Self

from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers.schema import (
    ClientAuth,
    Flow,
    OAuthSpec,
    Pkce,
    Provider,
    Rotation,
    Scope,
    Sensitivity,
)
from services.auth.providers.templates import UrlTemplate
from services.auth.secrets import Secret
from services.shared.egress import parse_destination

DOCUMENT_SCHEMA: Final = 1

_MAX_ITEMS: Final = 200
_MAX_CHARACTERS: Final = 2_048
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}")
_ENDPOINTS: Final = {
    "authorize_url": "authorization_endpoint",
    "token_url": "token_endpoint",
    "revoke_url": "revocation_endpoint",
    "device_url": "device_authorization_endpoint",
    "jwks_url": "jwks_uri",
    "registration_url": "registration_endpoint",
}
_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"


class RegistrationSource(StrEnum):
    """How this app came to be known at a server, in the order in which the ways are tried."""

    PRE_REGISTERED = "pre_registered"
    METADATA_DOCUMENT = "metadata_document"
    DYNAMIC = "dynamic"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClientRegistration:
    """An app at one server. It is never used at another: `issuer` says at which one."""

    source: RegistrationSource
    issuer: str
    client_id: str
    client_secret: Secret | None = None
    client_auth: ClientAuth = ClientAuth.NONE
    secret_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata:
    """An authorization server (RFC 8414), and the protected resource that led to it (RFC 9728)."""

    issuer: str
    authorize_url: str | None = None
    token_url: str
    revoke_url: str | None = None
    device_url: str | None = None
    jwks_url: str | None = None
    registration_url: str | None = None
    grant_types: tuple[str, ...] = ("authorization_code",)
    auth_methods: tuple[str, ...] = ("client_secret_basic",)
    challenge_methods: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    """All that the server knows; not what to ask for."""
    iss_in_callback: bool = False
    takes_metadata_documents: bool = False
    resource: str | None = None
    """Whom the tokens are for (RFC 8707)."""
    resource_scopes: tuple[str, ...] = ()
    """What the resource asks for."""

    @classmethod
    def read(cls, document: Mapping[str, Any], issuer: str) -> Self:
        """Returns the metadata of a document that was fetched for `issuer`.

        Raises:
            TokenRefused: It is not about this issuer, or misses what it has to say.
        """
        # RFC 8414 §3.3: identical, so that no server can speak for another one.
        if document.get("issuer") != issuer:
            raise misconfigured("the server's metadata is about another issuer")
        urls: dict[str, Any] = {name: _url(document.get(key)) for name, key in _ENDPOINTS.items()}
        token_url = urls.pop("token_url")
        if token_url is None:
            raise misconfigured("the server's metadata names no token endpoint")
        return cls(
            issuer=issuer,
            token_url=token_url,
            grant_types=_texts(document.get("grant_types_supported")) or ("authorization_code",),
            auth_methods=_texts(document.get("token_endpoint_auth_methods_supported")) or ("client_secret_basic",),
            challenge_methods=_texts(document.get("code_challenge_methods_supported")),
            scopes=scopes_of(document.get("scopes_supported")),
            iss_in_callback=document.get("authorization_response_iss_parameter_supported") is True,
            takes_metadata_documents=document.get("client_id_metadata_document_supported") is True,
            **urls,
        )

    def for_resource(self, resource: str, scopes: tuple[str, ...]) -> ServerMetadata:
        """Returns the metadata with the resource that led to it."""
        return replace(self, resource=resource, resource_scopes=scopes)

    @property
    def client_auth(self) -> ClientAuth:
        """How an app with a secret proves itself here."""
        if "client_secret_basic" in self.auth_methods:
            return ClientAuth.BASIC
        if "client_secret_post" in self.auth_methods:
            return ClientAuth.POST
        return ClientAuth.PRIVATE_KEY_JWT if "private_key_jwt" in self.auth_methods else ClientAuth.NONE

    def to_document(self) -> dict[str, Any]:
        """Returns it as JSON has it, to be kept with an integration; nothing of it is secret."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"schema": DOCUMENT_SCHEMA} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Returns what `to_document` returned.

        Raises:
            ValueError: It is no such document.
        """
        if document.get("schema") != DOCUMENT_SCHEMA:
            raise ValueError("expected the document of a discovered server")
        known = cls.__dataclass_fields__
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in document.items()
            if name in known
        }
        try:
            return cls(**values)
        except TypeError:
            raise ValueError("expected the document of a discovered server") from None


def discovered_provider(
    template: Provider, metadata: ServerMetadata, registration: ClientRegistration | None = None
) -> Provider:
    """Returns a provider whose endpoints are those of a discovered server.

    Args:
        template: The data that the integration names, such as `mcp`.
        metadata: What the server said.
        registration: How the app is known there, when that is settled.
    """
    spec = template.oauth or OAuthSpec()
    flows = []
    if metadata.authorize_url is not None and "authorization_code" in metadata.grant_types:
        flows.append(Flow.AUTHORIZATION_CODE)
    if metadata.device_url is not None and _DEVICE_GRANT in metadata.grant_types:
        flows.append(Flow.DEVICE)
    if "client_credentials" in metadata.grant_types:
        flows.append(Flow.CLIENT_CREDENTIALS)
    scopes = {
        name: template.scopes.get(name) or Scope(name, name, Sensitivity.WRITE, is_default=True)
        for name in metadata.resource_scopes
    }
    # Without it many servers give no refresh token; where it is not known, asking for it is an error.
    if "offline_access" in metadata.scopes:
        scopes["offline_access"] = Scope("offline_access", "stay signed in", Sensitivity.READ, is_mandatory=True)
    return replace(
        template,
        scopes={**template.scopes, **scopes},
        oauth=replace(
            spec,
            authorize_url=_template(metadata.authorize_url),
            token_url=_template(metadata.token_url),
            revoke_url=_template(metadata.revoke_url),
            device_url=_template(metadata.device_url),
            jwks_url=_template(metadata.jwks_url),
            issuer=metadata.issuer,
            discovery=None,
            flows=tuple(flows),
            iss_in_callback=metadata.iss_in_callback,
            client_auth=metadata.client_auth if registration is None else registration.client_auth,
            pkce=Pkce.S256,
            resource=metadata.resource,
            # Nothing is promised, so the careful reading: refresh tokens are single use.
            rotation=Rotation.STRICT,
        ),
    )


def scopes_of(value: Any) -> tuple[str, ...]:
    """Returns the scopes of a list or of a text with spaces; what is no scope is left out."""
    names = value.split() if isinstance(value, str) else value
    return tuple(name for name in _texts(names) if _SCOPE.fullmatch(name))


def misconfigured(message: str, *, was_sent: bool = True) -> TokenRefused:
    """Returns the refusal of a server that cannot be used as it is."""
    return TokenRefused(RefusalKind.INTEGRATION, message, was_sent=was_sent)


def _url(value: Any) -> str | None:
    """Returns an endpoint's address.

    Raises:
        TokenRefused: There is something, and it is no address that may be used.
    """
    if value is None:
        return None
    try:
        if not isinstance(value, str) or len(value) > _MAX_CHARACTERS or re.search(r"[{}]", value):
            raise ValueError
        to = parse_destination(value)
    except ValueError:
        raise misconfigured("the server's metadata holds an address that cannot be used") from None
    if to.scheme != "https" and to.host not in ("127.0.0.1", "::1", "localhost"):
        raise misconfigured("the server's metadata holds an address without https")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(item for item in value[:_MAX_ITEMS] if isinstance(item, str) and 0 < len(item) <= _MAX_CHARACTERS)


def _template(url: str | None) -> UrlTemplate | None:
    return None if url is None else UrlTemplate.literal(url)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a resource says when it refuses a request without a good token (RFC 9728 §5.1, RFC 6750 §3)."""

    resource_metadata: str | None = None
    scopes: tuple[str, ...] = ()
    error: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, header: str | None) -> Self:
        """Returns the challenge of a `WWW-Authenticate` header; empty when there is none for bearer tokens."""
        found = re.search(r"\bbearer\b(?P<params>[^\r\n]{0,4000})", header or "", re.I)
        if found is None:
            return cls()
        params = {
            name.lower(): (quoted or plain).replace('\\"', '"')
            for name, quoted, plain in re.findall(
                r'([A-Za-z_]{1,40})\s*=\s*(?:"((?:[^"\\]|\\.){0,2048})"|([^\s,"]{1,2048}))', found["params"]
            )
        }
        metadata, error = params.pop("resource_metadata", None), params.pop("error", None)
        known = error if error in ("invalid_token", "insufficient_scope", "invalid_request") else None
        return cls(metadata, scopes_of(params.pop("scope", "")), known, params)
