"""How a credential stands in a request and where it may be sent, from provider data alone.

Neither a tool nor a model has a say in it: whoever controls how a secret is formatted can get it out piece by piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from services.auth.connection_store import Connection, CredentialKind
from services.auth.providers import Provider
from services.auth.providers.schema import Injection, RenderedCredential
from services.auth.secrets import Secret
from services.shared.egress import EgressRule

Injected = RenderedCredential

_BEARER: Final = Injection("Authorization", "Bearer {api_key}")
_BASIC: Final = Injection("Authorization", "{username}:{password}", is_basic=True)


def injected_fields(
    provider: Provider | None, connection: Connection, values: Mapping[str, str | Secret]
) -> Sequence[Injected]:
    """Returns the headers and query parameters of a credential; a server that wants none gets none."""
    if connection.kind is CredentialKind.API_KEY and connection.fingerprint == "":
        return ()
    rules: Sequence[Injection]
    if provider is not None and provider.inject:
        rules = provider.inject
    else:
        rules = (_BASIC,) if connection.kind is CredentialKind.BASIC else (_BEARER,)
    return [rule.render(values) for rule in rules]


def targets_of(
    provider: Provider | None, connection: Connection, values: Mapping[str, str | Secret]
) -> Sequence[EgressRule]:
    """Returns where a connection's credential may be sent: to its own address alone where it has one."""
    if connection.base_url:
        parts = urlsplit(connection.base_url)
        host = parts.hostname or ""
        return [
            EgressRule(
                f"[{host}]" if ":" in host else host,
                scheme=parts.scheme,
                port=parts.port,
                path_prefix=parts.path.rstrip("/") or "/",
            )
        ]
    if provider is None:
        return ()
    plain = {name: value for name, value in values.items() if isinstance(value, str)}
    return [rule for host in provider.hosts if (rule := host.resolve(plain)) is not None]
