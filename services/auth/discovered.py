"""Integrations with servers that nobody has described: what they say about themselves is asked once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast.errors import HoldfastError, InvalidArgument, Reason, Unavailable
from services.auth.oauth.discovery import AppDescription, Discovery
from services.auth.oauth.metadata import (
    ClientRegistration,
    RegistrationSource,
    ServerMetadata,
    discovered_provider,
)
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.providers import Provider
from services.auth.providers.schema import ClientAuth, DiscoveryKind
from services.auth.secrets import Secret

CLIENT_NAME: Final = "Holdfast"
"""How this installation introduces itself where it registers."""

SERVER_URL: Final = "server_url"


async def discover(
    discovery: Discovery,
    provider: Provider,
    *,
    server_url: str,
    redirect_uri: str,
    client_id: str,
    client_secret: Secret,
) -> tuple[dict[str, Any], ClientRegistration]:
    """Asks a server about itself, and registers there when no client id is given.

    Returns:
        What is kept with the integration, and the client.

    Raises:
        InvalidArgument: The server cannot be used, and why.
        Unavailable: It does not answer now.
    """
    try:
        if provider.oauth is not None and provider.oauth.discovery is DiscoveryKind.OIDC:
            metadata = await discovery.openid_server(server_url)
        else:
            metadata = await discovery.mcp_server(server_url)
        if client_id:
            secret = None if client_secret.is_empty else client_secret
            registration = ClientRegistration(
                source=RegistrationSource.PRE_REGISTERED,
                issuer=metadata.issuer,
                client_id=client_id,
                client_secret=secret,
                client_auth=ClientAuth.NONE if secret is None else metadata.client_auth,
            )
        else:
            app = described_app(redirect_uri)
            registration = await discovery.register(metadata, app)
    except TokenRefused as refused:
        raise _unusable(refused) from refused
    kept = {
        "metadata": metadata.to_document(),
        "registration": {
            "source": registration.source.value,
            "issuer": registration.issuer,
            "client_id": registration.client_id,
            "client_auth": registration.client_auth.value,
        },
    }
    return kept, registration


def described_app(redirect_uri: str) -> AppDescription:
    """Returns how the application behind a redirect URI introduces itself.

    Its metadata document is beside the redirect URI, and shown by the pages; a server can read it over https only.
    """
    metadata_url = None
    if redirect_uri.startswith("https://"):
        metadata_url = redirect_uri.replace("/oauth/callback/", "/oauth/client/", 1)
    return AppDescription(name=CLIENT_NAME, redirect_uri=redirect_uri, metadata_url=metadata_url)


def described(provider: Provider, discovered: Mapping[str, Any]) -> Provider:
    """Returns a provider with what was discovered for one integration."""
    if not discovered:
        return provider
    stored = discovered["registration"]
    registration = ClientRegistration(
        source=RegistrationSource(stored["source"]),
        issuer=stored["issuer"],
        client_id=stored["client_id"],
        client_auth=ClientAuth(stored["client_auth"]),
    )
    return discovered_provider(provider, ServerMetadata.from_document(discovered["metadata"]), registration)


def is_discovered(provider: Provider) -> bool:
    """Tells whether the provider is known only by what one of its servers says."""
    return provider.oauth is not None and provider.oauth.discovery is not None


def _unusable(refused: TokenRefused) -> HoldfastError:
    if refused.kind in (RefusalKind.TRANSIENT, RefusalKind.UNKNOWN_OUTCOME):
        return Unavailable(str(refused), reason=Reason.CREDENTIAL_UNAVAILABLE, retry_delay_seconds=5.0)
    return InvalidArgument("the server cannot be used", field=SERVER_URL, description=str(refused))
