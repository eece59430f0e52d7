"""The parts of the connect flow, put together in their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.auth.connect.background import ConnectBackground
from services.auth.connect.browser import ConnectBrowser
from services.auth.connect.keys import ConnectKeys, Seals
from services.auth.connect.landing import Landing, Listener
from services.auth.connect.pages import ConnectPages
from services.auth.connect.return_urls import ReturnUrls
from services.auth.connect.sessions import ConnectSessions
from services.auth.connect.store_sql import SqlConnectStore
from services.auth.connect.targets import IntegrationTargets
from services.auth.connection_store import ConnectionStore
from services.auth.integration_store import IntegrationStore
from services.auth.keyring import Keyring
from services.auth.oauth.client import OAuthClient
from services.auth.oauth_apps import OAuthApps
from services.auth.secrets import SecretStore
from services.shared.clock import Clock
from services.shared.database import Database


@dataclass(frozen=True, slots=True)
class Connect:
    """What the rest of the service uses of it."""

    sessions: ConnectSessions
    pages: ConnectPages
    background: ConnectBackground


def compose_connect(
    *,
    db: Database,
    connections: ConnectionStore,
    integrations: IntegrationStore,
    apps: OAuthApps,
    secrets: SecretStore,
    envelopes: Seals,
    oauth: OAuthClient,
    keyring: Keyring,
    clock: Clock,
    public_url: str,
    return_urls: Iterable[str],
    on_change: Listener,
) -> Connect:
    """Builds the parts.

    Args:
        db: Keeps the sessions.
        connections: What is made and renewed.
        integrations: To which accounts are connected.
        apps: Their applications.
        secrets: Keeps tokens.
        envelopes: Seals what a session keeps for some minutes.
        oauth: Speaks with providers.
        keyring: Keys of hashes and fingerprints.
        clock: Where time comes from.
        public_url: Where browsers reach the pages.
        return_urls: Addresses of the operator's applications.
        on_change: Is told of each connection that is made or renewed.
    """
    store = SqlConnectStore(db)
    targets = IntegrationTargets(integrations, apps)
    keys = ConnectKeys(keyring, envelopes)
    landing = Landing(
        store, connections, secrets, targets, oauth, keyring, clock, public_url=public_url, on_change=on_change
    )
    browser = ConnectBrowser(store, targets, oauth, landing, keys, clock, public_url=public_url)
    return Connect(
        sessions=ConnectSessions(
            store,
            connections,
            targets,
            oauth,
            landing,
            keys,
            clock,
            request_key=keyring.request_key,
            public_url=public_url,
            return_urls=ReturnUrls(return_urls),
        ),
        pages=ConnectPages(browser, keys, clock, public_url=public_url),
        background=ConnectBackground(store, secrets, targets, oauth, landing, keys, clock),
    )
