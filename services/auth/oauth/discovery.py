"""Finds out how to sign in at a server that nobody has described: its metadata, and an app of ours there.

Everything that is fetched is named by somebody else, so every request goes through the egress policy, documents are
small, and nothing is believed that another server could have said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.auth.oauth.answers import parse_document
from services.auth.oauth.client import refused_by_network
from services.auth.oauth.expiry import expire_time
from services.auth.oauth.metadata import (
    Challenge,
    ClientRegistration,
    RegistrationSource,
    ServerMetadata,
    misconfigured,
    scopes_of,
)
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers.schema import ClientAuth, ExpiryUnit
from services.auth.secrets import Secret
from services.shared.clock import Clock
from services.shared.egress import Destination, EgressClient, EgressFailed, Failure, parse_destination

REQUEST_SECONDS: Final = 10.0

_MAX_SERVERS: Final = 5
_GRANTS: Final = ["authorization_code", "refresh_token"]
_AUTH_METHODS: Final = {
    "client_secret_basic": ClientAuth.BASIC,
    "client_secret_post": ClientAuth.POST,
    "none": ClientAuth.NONE,
}
# Any request without a token will do; this one asks for nothing and begins nothing.
_PROBE: Final = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "ping"}).encode()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AppDescription:
    """What a server is told about this installation."""

    name: str
    redirect_uri: str
    metadata_url: str | None = None
    """Where this installation shows its own metadata document; None when it is not reachable from outside."""
    homepage: str | None = None

    def document(self, client_auth: str = "none") -> dict[str, Any]:
        """Returns the client's metadata (RFC 7591 §2)."""
        found: dict[str, Any] = {
            "client_name": self.name,
            "redirect_uris": [self.redirect_uri],
            "grant_types": _GRANTS,
            "response_types": ["code"],
            "token_endpoint_auth_method": client_auth,
            "application_type": "web",
        }
        return found if self.homepage is None else found | {"client_uri": self.homepage}

    def metadata_document(self) -> dict[str, Any]:
        """Returns what is shown at `metadata_url`; its `client_id` is that very address."""
        return {"client_id": self.metadata_url, **self.document()}


class Discovery:
    """Reads metadata and registers apps.

    Args:
        egress: Through which every request goes.
        clock: Where time comes from.
    """

    def __init__(self, egress: EgressClient, clock: Clock) -> None:
        self._egress = egress
        self._clock = clock

    async def mcp_server(self, url: str, *, known_issuers: tuple[str, ...] = ()) -> ServerMetadata:
        """Returns the authorization server of an MCP server.

        Args:
            url: The MCP server.
            known_issuers: Where the workspace has an app already: such a server is taken before others.

        Raises:
            TokenRefused: INTEGRATION: it cannot be used, and why. TRANSIENT: it does not answer now.
        """
        to = _address(url)
        challenge = await self._challenge(to)
        resource, document = await self._protected_resource(to, challenge)
        issuers = [to.origin]
        scopes = challenge.scopes
        if document is not None:
            listed = document.get("authorization_servers")
            if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed) or not listed:
                raise misconfigured("the server's resource metadata names no authorization server")
            issuers = listed[:_MAX_SERVERS]
            scopes = scopes or scopes_of(document.get("scopes_supported"))
        issuer = next((item for item in issuers if item in known_issuers), issuers[0])
        metadata = await self.authorization_server(issuer)
        if metadata.authorize_url is None:
            raise misconfigured("the server's metadata names no authorization endpoint")
        # Without it an intercepted code is a grant; a server that does not say so is not asked to try.
        if "S256" not in metadata.challenge_methods:
            raise misconfigured("the server does not offer PKCE with S256")
        return metadata.for_resource(resource, scopes)

    async def authorization_server(self, issuer: str) -> ServerMetadata:
        """Returns the metadata of an issuer: RFC 8414, then OpenID Connect Discovery.

        Raises:
            TokenRefused: INTEGRATION: there is none, or it cannot be used. TRANSIENT: it does not answer now.
        """
        to = _address(issuer)
        if to.query:
            raise misconfigured("an issuer has no query", was_sent=False)
        path = to.path.rstrip("/")
        places = [
            f"{to.origin}/.well-known/oauth-authorization-server{path}",
            f"{to.origin}/.well-known/openid-configuration{path}",
        ]
        if path:
            places.append(f"{to.origin}{path}/.well-known/openid-configuration")
        for place in places:
            document = await self._document(place)
            if document is not None:
                return ServerMetadata.read(document, issuer)
        raise misconfigured("the server shows no metadata")

    async def openid_server(self, issuer: str) -> ServerMetadata:
        """Returns the metadata of an OpenID provider, by its own discovery alone.

        Raises:
            TokenRefused: INTEGRATION: there is none, or it cannot be used. TRANSIENT: it does not answer now.
        """
        to = _address(issuer)
        document = await self._document(f"{to.origin}{to.path.rstrip('/')}/.well-known/openid-configuration")
        if document is None:
            raise misconfigured("the server shows no metadata")
        return ServerMetadata.read(document, issuer)

    async def register(
        self,
        metadata: ServerMetadata,
        app: AppDescription,
        *,
        pre_registered: ClientRegistration | None = None,
    ) -> ClientRegistration:
        """Returns an app at a server: the one that is there, else by a metadata document, else by registering one.

        Args:
            metadata: The server.
            app: What it is told.
            pre_registered: What an administrator has set up; it counts only at the issuer it is for.

        Raises:
            TokenRefused: INTEGRATION: no way is open, so an administrator has to set up an app there.
        """
        if pre_registered is not None and pre_registered.issuer == metadata.issuer:
            return pre_registered
        if app.metadata_url is not None and metadata.takes_metadata_documents:
            return ClientRegistration(
                source=RegistrationSource.METADATA_DOCUMENT, issuer=metadata.issuer, client_id=app.metadata_url
            )
        if metadata.registration_url is None:
            raise misconfigured("the server takes no new apps: set one up there and enter its client id")
        return await self._register(metadata, metadata.registration_url, app)

    async def _register(self, metadata: ServerMetadata, url: str, app: AppDescription) -> ClientRegistration:
        method = next((name for name in _AUTH_METHODS if name in metadata.auth_methods), "client_secret_basic")
        start = self._clock.now()
        answer = await self._request("POST", _address(url), json.dumps(app.document(method)).encode())
        document = parse_document(answer.body)
        if answer.status not in (200, 201):
            kind = RefusalKind.TRANSIENT if answer.status >= 500 or answer.status == 429 else RefusalKind.INTEGRATION
            raise TokenRefused(kind, f"the server answered {answer.status} to a registration", status=answer.status)
        client_id = None if document is None else document.get("client_id")
        if document is None or not isinstance(client_id, str) or not client_id.isascii() or not client_id.isprintable():
            raise TokenRefused(RefusalKind.MALFORMED, "the server registered an app without an id")
        secret = document.get("client_secret")
        chosen = document.get("token_endpoint_auth_method", method)
        if not isinstance(secret, str) or not secret:
            secret = None
        return ClientRegistration(
            source=RegistrationSource.DYNAMIC,
            issuer=metadata.issuer,
            client_id=client_id,
            client_secret=None if secret is None else Secret(secret),
            client_auth=ClientAuth.NONE if secret is None else _AUTH_METHODS.get(chosen, ClientAuth.BASIC),
            # Zero means that it does not end (RFC 7591 §3.2.1).
            secret_expire_time=expire_time(
                document.get("client_secret_expires_at"),
                ExpiryUnit.EPOCH_SECONDS,
                start=start,
                skew=start - start,
            ),
        )

    async def _challenge(self, to: Destination) -> Challenge:
        """Asks the resource itself where it is described."""
        headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        try:
            answer = await self._egress.request(
                "POST", to, headers=headers, body=_PROBE, timeout_seconds=REQUEST_SECONDS
            )
        except EgressFailed as failed:
            if failed.kind in (Failure.REFUSED, Failure.UNREACHABLE):
                raise refused_by_network(to.host, failed) from failed
            return Challenge()
        return Challenge.read(answer.headers.get("www-authenticate")) if answer.status == 401 else Challenge()

    async def _protected_resource(self, to: Destination, challenge: Challenge) -> tuple[str, Mapping[str, Any] | None]:
        """Returns the resource's identifier and its metadata; without metadata, the server speaks for itself."""
        path = to.path.rstrip("/")
        places = [f"{to.origin}/.well-known/oauth-protected-resource{path}"]
        if path:
            places.append(f"{to.origin}/.well-known/oauth-protected-resource")
        if challenge.resource_metadata is not None:
            places = [challenge.resource_metadata]
        for place in places:
            document = await self._document(place)
            if document is None:
                continue
            resource = document.get("resource")
            # RFC 9728 §3.3: whoever describes another resource could send its tokens to himself.
            if not isinstance(resource, str) or not _is_resource_of(resource, to):
                raise misconfigured("the server's resource metadata is about another resource")
            return resource, document
        if challenge.resource_metadata is not None:
            raise misconfigured("the server's resource metadata is not where the server says")
        return to.url, None

    async def _document(self, url: str) -> Mapping[str, Any] | None:
        """Returns a JSON object; None when there is none at the address.

        Raises:
            TokenRefused: The server does not answer now, or the address may not be called.
        """
        answer = await self._request("GET", _address(url))
        if answer.status == 429 or answer.status >= 500:
            raise TokenRefused(
                RefusalKind.TRANSIENT, f"the server answered {answer.status} for its metadata", status=answer.status
            )
        return parse_document(answer.body) if answer.status == 200 else None

    async def _request(self, method: str, to: Destination, body: bytes = b"") -> Any:
        headers = {"accept": "application/json"} | ({"content-type": "application/json"} if body else {})
        try:
            return await self._egress.request(method, to, headers=headers, body=body, timeout_seconds=REQUEST_SECONDS)
        except EgressFailed as failed:
            refused = refused_by_network(to.host, failed)
            # Nothing is spent by reading, or by one app too many.
            if refused.kind is RefusalKind.UNKNOWN_OUTCOME:
                refused.kind = RefusalKind.TRANSIENT
            raise refused from failed


def _address(url: str) -> Destination:
    try:
        if "{" in url or "}" in url:
            raise ValueError
        to = parse_destination(url)
    except (TypeError, ValueError):
        raise misconfigured("the server names an address that cannot be used", was_sent=False) from None
    if to.scheme != "https" and to.host not in ("127.0.0.1", "::1", "localhost"):
        raise misconfigured("the server names an address without https", was_sent=False)
    return to


def _is_resource_of(resource: str, to: Destination) -> bool:
    """Tells whether an identifier is the server's own: the same origin, and its path or one above it."""
    try:
        named = parse_destination(resource)
    except ValueError:
        return False
    path = named.path.rstrip("/")
    # Braces would be taken for the places of a template.
    return (
        named.origin == to.origin
        and not named.query
        and "{" not in resource
        and (to.path == path or to.path.startswith(f"{path}/"))
    )
