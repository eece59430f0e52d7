"""The connect flow over a real database and real HTTP, with a provider on a socket and browsers that behave."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import sqlalchemy as sa

from holdfast.errors import NotFound, Reason
from holdfast.ids import new_uuid7
from services.auth.app import MIGRATIONS
from services.auth.callers import ADMIN, Caller
from services.auth.connect.background import ConnectBackground
from services.auth.connect.browser import ConnectBrowser
from services.auth.connect.keys import ConnectKeys
from services.auth.connect.landing import Landing
from services.auth.connect.pages import MAX_HEAD_BYTES, ConnectPages
from services.auth.connect.return_urls import ReturnUrls
from services.auth.connect.sessions import ConnectSessions, SessionView
from services.auth.connect.store import ConnectSession
from services.auth.connect.store_sql import SqlConnectStore
from services.auth.connect.targets import Target
from services.auth.connection_store_sql import SqlConnectionStore
from services.auth.envelopes_embedded import EmbeddedEnvelopes
from services.auth.keyring import Keyring, open_keyring
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.tokens import OAuthApp
from services.auth.sealing import MasterKey
from services.auth.secrets import SecretStore
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.store_sql import SqlAuthStore
from services.auth.tables import integrations, secrets
from services.shared.clock import Clock, SystemClock
from services.shared.database import Database
from services.shared.http_listener import listen, serving
from services.shared.migrations import upgrade
from tests.fakes.oauth_provider import FakeOAuthProvider

ALICE = "key:alice0000001"
LISTED = "https://app.example.com/connected"


class FakeTargets:
    """Integrations in a dictionary."""

    def __init__(self) -> None:
        self.by_name: dict[tuple[str, str], Target] = {}
        self.reports: list[tuple[str, str]] = []

    async def named(self, workspace_id: str, name: str) -> Target:
        """See `Targets.named`."""
        found = self.by_name.get((workspace_id, name))
        if found is None:
            raise NotFound("there is no such integration", reason=Reason.INTEGRATION_NOT_FOUND)
        return found

    async def with_id(self, workspace_id: str, integration_id: str) -> Target:
        """See `Targets.with_id`."""
        for (workspace, _), target in self.by_name.items():
            if workspace == workspace_id and target.integration_id == integration_id:
                return target
        raise NotFound("there is no such integration", reason=Reason.INTEGRATION_NOT_FOUND)

    async def report(self, target: Target, workspace_id: str, error: str) -> None:
        """See `Targets.report`."""
        self.reports.append((target.name, error))

    async def accept(self, target: Target, workspace_id: str) -> None:
        """See `Targets.accept`."""


@dataclass
class Stage:
    """One replica of the connect flow, and what it stands on."""

    db: Database
    keyring: Keyring
    provider: FakeOAuthProvider
    clock: Clock
    workspace_id: str
    targets: FakeTargets
    store: SqlConnectStore
    connections: SqlConnectionStore
    secrets: SecretStore
    sessions: ConnectSessions
    browser: ConnectBrowser
    background: ConnectBackground
    landing: Landing
    url: str
    changes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def alice(self) -> Caller:
        """Who begins sessions."""
        return Caller(self.workspace_id, ALICE, frozenset({ADMIN}))

    def caller(self, actor: str, *scopes: str) -> Caller:
        """Somebody else of the workspace."""
        return Caller(self.workspace_id, actor, frozenset(scopes or {"connections:write"}))

    async def integration(
        self, name: str = "fake", app: OAuthApp | None = None, *, integration_id: str = "", **fields: Any
    ) -> Target:
        """Sets an integration up."""
        integration_id = integration_id or new_uuid7()
        made = Target(
            integration_id=integration_id, name=name, app=self.provider.app() if app is None else app, **fields
        )
        self.targets.by_name[self.workspace_id, name] = made
        await self.db.write(_insert_integration, self.workspace_id, integration_id, name)
        return made

    async def start(self, integration: str = "fake", **fields: Any) -> SessionView:
        """Begins a session as Alice."""
        return await self.sessions.start(self.alice, integration=integration, **fields)

    async def session(self, session_id: str) -> ConnectSession:
        """Returns the row as it is."""
        found = await self.store.find_session(session_id)
        assert found is not None
        return found

    async def stored_paths(self) -> list[str]:
        """Returns every path at which a secret lies."""

        def read(connection: sa.Connection) -> list[str]:
            return list(connection.execute(sa.select(secrets.c.path)).scalars())

        return await self.db.read(read)


class Browser:
    """Keeps cookies, follows no redirect by itself, and fills in forms."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.AsyncClient(base_url=url, trust_env=False, timeout=10)

    async def open(self, url: str) -> httpx2.Response:
        """Gets a page."""
        return await self.http.get(url)

    async def to_provider(self, connect_url: str) -> str:
        """Opens the link and continues; returns the address at the provider."""
        page = await self.open(connect_url)
        assert page.status_code == 200, page.text
        answer = await self.submit(page)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def submit(self, page: httpx2.Response) -> httpx2.Response:
        """Sends the page's form."""
        token = re.search(r'name="form_token" value="([^"]+)"', page.text)
        assert token is not None, page.text
        return await self.http.post(str(page.url), data={"form_token": unescape(token[1])})

    async def consent(self, authorize_url: str) -> str:
        """Agrees at the provider; returns where it sends the browser."""
        async with httpx2.AsyncClient(trust_env=False) as elsewhere:
            answer = await elsewhere.get(authorize_url)
        assert answer.status_code == 302
        return answer.headers["location"]

    async def complete(self, connect_url: str) -> httpx2.Response:
        """Goes the whole way to the last page."""
        callback = await self.consent(await self.to_provider(connect_url))
        answer = await self.open(callback)
        assert answer.status_code == 303, answer.text
        return await self.open(answer.headers["location"])

    async def close(self) -> None:
        """Closes the window."""
        await self.http.aclose()


def code_on(page: httpx2.Response) -> str:
    """Returns the confirm code of the last page."""
    found = re.search(r"<output[^>]*>([^<]+)</output>", page.text)
    assert found is not None, page.text
    return found[1]


def query_of(url: str) -> dict[str, str]:
    """Returns the query of an address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, keep_blank_values=True).items()}


@asynccontextmanager
async def staged(
    database_url: str,
    provider: FakeOAuthProvider,
    *,
    clock: Clock | None = None,
    master: MasterKey | None = None,
    public_url: str = "",
) -> AsyncIterator[Stage]:
    """One replica."""
    clock = SystemClock() if clock is None else clock
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(Database(database_url, schema="auth", clock=clock))
        await upgrade(db, MIGRATIONS)
        keyring = await open_keyring(db, MasterKey.generate() if master is None else master)
        workspace = await SqlAuthStore(db).ensure_workspace("acme", workspace_id=new_uuid7(), actor="test")
        listener = stack.enter_context(listen("127.0.0.1:0", "HOLDFAST_AUTH_HTTP_LISTEN"))
        url = public_url or f"http://{listener.address}"
        store, connections, targets = SqlConnectStore(db), SqlConnectionStore(db), FakeTargets()
        secret_store = EmbeddedSecretStore(db, keyring)
        egress = provider.egress()
        stack.push_async_callback(egress.close)
        oauth = OAuthClient(egress, clock)
        keys = ConnectKeys(keyring, EmbeddedEnvelopes(db, keyring))
        changes: list[tuple[str, str]] = []
        landing = Landing(
            store,
            connections,
            secret_store,
            targets,
            oauth,
            keyring,
            clock,
            public_url=url,
            on_change=lambda connection: changes.append((connection.user_id, connection.name)),
        )
        browser = ConnectBrowser(store, targets, oauth, landing, keys, clock, public_url=url)
        pages = ConnectPages(browser, keys, clock, public_url=url)
        await stack.enter_async_context(serving(pages.app, listener, drain_seconds=2, max_head_bytes=MAX_HEAD_BYTES))
        yield Stage(
            db=db,
            keyring=keyring,
            provider=provider,
            clock=clock,
            workspace_id=workspace.workspace_id,
            targets=targets,
            store=store,
            connections=connections,
            secrets=secret_store,
            sessions=ConnectSessions(
                store,
                connections,
                targets,
                oauth,
                landing,
                keys,
                clock,
                request_key=keyring.request_key,
                public_url=url,
                return_urls=ReturnUrls([LISTED]),
            ),
            browser=browser,
            background=ConnectBackground(store, secret_store, targets, oauth, landing, keys, clock),
            landing=landing,
            url=f"http://{listener.address}",
            changes=changes,
        )


def _insert_integration(connection: sa.Connection, workspace_id: str, integration_id: str, name: str) -> None:
    now = datetime.now(UTC)
    values = {"integration_id": integration_id, "name": name, "provider": "fake", "kind": "OAUTH2"}
    texts = ("client_id", "variables", "scopes", "agents", "server_url", "discovered", "state_reason")
    connection.execute(
        integrations.insert().values(
            workspace_id=workspace_id,
            **values,
            **dict.fromkeys(texts, ""),
            state="ACTIVE",
            client_secret_count=1,
            version=1,
            create_time=now,
            update_time=now,
        )
    )
