"""The composition of the auth service: the only place that builds and closes its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from holdfast.api.auth.v1.api_key_service_pb2_grpc import add_ApiKeyServiceServicer_to_server
from holdfast.api.auth.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from holdfast.api.auth.v1.connect_service_pb2_grpc import add_ConnectServiceServicer_to_server
from holdfast.api.auth.v1.connection_feed_service_pb2_grpc import add_ConnectionFeedServiceServicer_to_server
from holdfast.api.auth.v1.connection_service_pb2_grpc import add_ConnectionServiceServicer_to_server
from holdfast.api.auth.v1.credential_service_pb2_grpc import add_CredentialServiceServicer_to_server
from holdfast.api.auth.v1.data_key_service_pb2_grpc import add_DataKeyServiceServicer_to_server
from holdfast.api.auth.v1.grant_service_pb2_grpc import add_GrantServiceServicer_to_server
from holdfast.api.auth.v1.integration_service_pb2_grpc import add_IntegrationServiceServicer_to_server
from holdfast.api.auth.v1.workspace_service_pb2_grpc import add_WorkspaceServiceServicer_to_server
from services.auth.access import ACCESS
from services.auth.api_keys import ApiKeys, LocalAuthenticator
from services.auth.audit import AuditTrail
from services.auth.audit_store_sql import SqlAuditStore
from services.auth.audit_trail import AuditReader
from services.auth.bootstrap import bootstrap
from services.auth.closing import Closing
from services.auth.connect.composition import compose_connect
from services.auth.connect.pages import MAX_HEAD_BYTES
from services.auth.connection_choice import ConnectionChoices
from services.auth.connection_news import ConnectionNews
from services.auth.connection_store import Connection, ConnectionStore
from services.auth.connection_store_sql import SqlConnectionStore
from services.auth.connections import Connections
from services.auth.credentials import Credentials
from services.auth.data_keys import DataKeys
from services.auth.envelopes import Envelopes
from services.auth.fingerprints import fingerprint_of
from services.auth.grants import RunGrants
from services.auth.housekeeping import Housekeeper
from services.auth.integration_store_sql import SqlIntegrationStore
from services.auth.integrations import Integrations
from services.auth.keyring import Keyring
from services.auth.master_key import unlock
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.discovery import Discovery
from services.auth.oauth_apps import OAuthApps
from services.auth.persons import Persons
from services.auth.providers import ProviderCatalog, ProviderFileError
from services.auth.providers.schema import OAuthSpec
from services.auth.refresh.composition import compose_refresh
from services.auth.refresh.escrow import SqlEscrows
from services.auth.refresh.on_request import RefreshOnRequest
from services.auth.refusals import RefusalCounter
from services.auth.revocations import Revocations
from services.auth.secret_backend import READ_HEALTH, WRITE_HEALTH, open_secret_backend
from services.auth.secret_cache import SecretCache
from services.auth.secrets import SecretStore
from services.auth.secrets_embedded import EmbeddedSecretStore
from services.auth.servicers.api_keys import ApiKeyServicer
from services.auth.servicers.audit import AuditServicer
from services.auth.servicers.connect import ConnectServicer
from services.auth.servicers.connection_feed import ConnectionFeedServicer
from services.auth.servicers.connections import ConnectionServicer
from services.auth.servicers.credentials import CredentialServicer
from services.auth.servicers.data_keys import DataKeyServicer
from services.auth.servicers.grants import GrantServicer
from services.auth.servicers.integrations import IntegrationServicer
from services.auth.servicers.workspaces import WorkspaceServicer
from services.auth.settings import AuthSettings, StorageSettings
from services.auth.store import AuthStore
from services.auth.store_sql import SqlAuthStore
from services.auth.strays import StraySecrets
from services.auth.workspaces import Workspaces
from services.shared.background import background
from services.shared.clock import Clock, SystemClock
from services.shared.database import Database
from services.shared.egress import EgressClient, TargetPolicy
from services.shared.http_listener import listen, serving
from services.shared.migrations import make_ready, upgrade, wait_for_database
from services.shared.paging import page_key
from services.shared.server import EXIT_CONFIGURATION, Process, Server, StartupError
from services.shared.telemetry import Telemetry, get_logger

SERVICE: Final = "auth"
MIGRATIONS: Final = Path(__file__).parent / "migrations"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Core:
    """What the server and the commands beside it share: the opened database and the rules that need nothing else."""

    db: Database
    keyring: Keyring
    store: AuthStore
    connection_store: ConnectionStore
    workspaces: Workspaces
    api_keys: ApiKeys
    refusals: RefusalCounter


@asynccontextmanager
async def open_database(settings: StorageSettings, clock: Clock) -> AsyncIterator[Database]:
    """Opens the database of the settings."""
    async with Database(
        settings.database_url, schema=SERVICE, pool_size=settings.database_pool_size, clock=clock
    ) as db:
        yield db


@asynccontextmanager
async def open_core(
    settings: StorageSettings, stop: asyncio.Event, *, clock: Clock, store: AuthStore | None = None
) -> AsyncIterator[Core]:
    """Opens the database and unseals its keys.

    Raises:
        StartupError: The schema is not current, or the master key is not that of the database.
    """
    async with open_database(settings, clock) as db:
        await make_ready(db, MIGRATIONS, migrate_on_start=settings.migrate_on_start, stop=stop)
        keyring = await unlock(db, settings)
        store = SqlAuthStore(db) if store is None else store
        refusals = RefusalCounter(store, clock)
        api_keys = ApiKeys(store, keyring, refusals, clock)
        yield Core(db, keyring, store, SqlConnectionStore(db), Workspaces(store), api_keys, refusals)


@asynccontextmanager
async def auth_server(
    settings: AuthSettings,
    telemetry: Telemetry,
    stop: asyncio.Event,
    *,
    clock: Clock | None = None,
    store: AuthStore | None = None,
    secrets: SecretStore | None = None,
    envelopes: Envelopes | None = None,
    catalog: ProviderCatalog | None = None,
) -> AsyncIterator[Server]:
    """Serves while the context is open.

    Args:
        settings: The service's settings.
        telemetry: The process's telemetry.
        stop: Ends the wait for a database that is away.
        clock: Where time comes from; the machine's when not given.
        store: Auth's data; in the database of the settings when not given.
        secrets: Third parties' secrets; where the settings say when not given.
        envelopes: Keys of workspaces; where the settings say when not given.
        catalog: The providers; those of the release and of the settings' folder when not given.
    """
    clock = SystemClock() if clock is None else clock
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings, stop, clock=clock, store=store))
        if core.db.dialect == "sqlite":
            log.warning("embedded storage: this service can run once, on this machine", database=core.db.location)
        await bootstrap(settings, core.workspaces, core.api_keys, clock)
        backend = await stack.enter_async_context(open_secret_backend(settings, core.db, core.keyring, clock))
        secrets = backend.secrets if secrets is None else secrets
        envelopes = backend.envelopes if envelopes is None else envelopes
        audit = AuditTrail(core.store, clock)
        news = ConnectionNews(core.connection_store, clock)
        listener = stack.enter_context(listen(settings.http_listen, "HOLDFAST_AUTH_HTTP_LISTEN"))
        public_url = settings.public_url or f"http://{listener.address}"
        if catalog is None:
            catalog = await asyncio.to_thread(load_providers, settings.providers_folder)
        egress = EgressClient(TargetPolicy(settings.egress_allow, setting="HOLDFAST_AUTH_EGRESS_ALLOW"))
        stack.push_async_callback(egress.close)
        oauth = OAuthClient(egress, clock)
        integration_store = SqlIntegrationStore(core.db)
        apps = OAuthApps(integration_store, secrets, catalog, clock)
        revocations = Revocations(integration_store, apps, oauth, secrets)
        strays = StraySecrets(core.connection_store, secrets, revocations, clock)
        integrations = Integrations(
            integration_store,
            secrets,
            strays,
            apps,
            catalog,
            Discovery(egress, clock),
            core.keyring,
            public_url=public_url,
            on_change=news.publish,
        )
        connections = Connections(
            core.connection_store, integration_store, strays, apps, oauth, core.keyring, on_change=news.publish
        )
        refreshing = compose_refresh(
            store=core.connection_store,
            secrets=secrets,
            # Beside tokens in this same database an escrow would be away whenever they are.
            escrows=None if isinstance(secrets, EmbeddedSecretStore) else SqlEscrows(core.db, envelopes, clock),
            apps=apps,
            endpoint=oauth,
            spec_of=partial(_oauth_spec, catalog),
            fingerprint=partial(fingerprint_of, core.keyring.audit_key),
            clock=clock,
            registry=telemetry.registry,
            on_change=news.publish,
        )
        news.listen(refreshing.access_tokens.notice)
        on_request = RefreshOnRequest(connections, refreshing.access_tokens)
        connect = compose_connect(
            db=core.db,
            connections=core.connection_store,
            integrations=integration_store,
            apps=apps,
            secrets=secrets,
            envelopes=envelopes,
            oauth=oauth,
            keyring=core.keyring,
            clock=clock,
            public_url=public_url,
            return_urls=settings.connect_return_urls,
            on_change=news.publish,
        )
        grants = RunGrants(core.keyring, clock)
        choices = ConnectionChoices(core.connection_store, integration_store, catalog, clock)
        news.listen(choices.notice)
        apps.listen(choices.forget)
        credentials = Credentials(
            core.connection_store,
            choices,
            SecretCache(secrets, clock),
            refreshing.access_tokens,
            grants,
            audit,
            clock,
        )
        housekeeper = Housekeeper(
            core.store, core.connection_store, core.api_keys, core.refusals, strays, integrations, credentials, clock
        )
        authenticator = LocalAuthenticator(
            core.api_keys,
            None if settings.oidc is None else Persons(settings.oidc, core.workspaces, core.refusals, egress, clock),
        )
        server = Server(
            settings,
            service=SERVICE,
            access=ACCESS,
            telemetry=telemetry,
            authenticator=authenticator,
            clock=clock,
            services_listen=settings.services_listen,
        )
        # What is remembered is served while the secret store is away.
        await server.health.set(True, READ_HEALTH)
        await server.health.set(False, WRITE_HEALTH)
        key = page_key(settings.service_token)
        data_keys = DataKeys(core.store, envelopes)
        closing = Closing(core.store, core.connection_store, connections, integrations, envelopes)
        server.add(add_ApiKeyServiceServicer_to_server, ApiKeyServicer(core.api_keys, authenticator, key))
        server.add(add_AuditServiceServicer_to_server, AuditServicer(AuditReader(SqlAuditStore(core.db)), key))
        server.add(add_ConnectServiceServicer_to_server, ConnectServicer(connect.sessions, grants))
        server.add(add_ConnectionServiceServicer_to_server, ConnectionServicer(connections, on_request, closing, key))
        server.add(add_ConnectionFeedServiceServicer_to_server, ConnectionFeedServicer(news))
        server.add(add_IntegrationServiceServicer_to_server, IntegrationServicer(integrations, key))
        server.add(add_CredentialServiceServicer_to_server, CredentialServicer(credentials))
        server.add(add_GrantServiceServicer_to_server, GrantServicer(grants, authenticator))
        server.add(add_DataKeyServiceServicer_to_server, DataKeyServicer(data_keys))
        server.add(add_WorkspaceServiceServicer_to_server, WorkspaceServicer(core.workspaces, data_keys, closing))
        server.on_drain(refreshing.coordinator.drain)
        # Order matters: it is undone from the end. The last calls are served, then what they left is written, then
        # the database is closed.
        stack.push_async_callback(audit.close)
        stack.push_async_callback(housekeeper.write_uses, is_last=True)
        await stack.enter_async_context(
            background(
                audit.run(),
                housekeeper.run(),
                news.run(),
                refreshing.recovery.run(),
                refreshing.scheduler.run(),
                connect.background.run(),
                backend.watch(lambda usable: server.health.set(usable, WRITE_HEALTH)),
            )
        )
        # People at a provider come back to these pages: they end after the calls, and before what those calls need.
        await stack.enter_async_context(
            serving(
                connect.pages.app,
                listener,
                drain_seconds=settings.drain_seconds,
                max_head_bytes=MAX_HEAD_BYTES,
            )
        )
        log.info("pages_listening", address=listener.address, public_url=public_url)
        await stack.enter_async_context(server)
        yield server


def load_providers(folder: Path | None) -> ProviderCatalog:
    """Reads the providers of the release and those of the operator's folder.

    Raises:
        StartupError: A file is wrong.
    """
    try:
        return ProviderCatalog.load(folder)
    except ProviderFileError as error:
        raise StartupError(str(error), exit_code=EXIT_CONFIGURATION) from error


def _oauth_spec(catalog: ProviderCatalog, connection: Connection) -> OAuthSpec:
    """Returns how a connection's provider speaks OAuth, as far as its file says."""
    provider = catalog.get(connection.provider)
    return OAuthSpec() if provider is None or provider.oauth is None else provider.oauth


async def run(settings: AuthSettings, process: Process) -> None:
    """Serves until the process is told to stop."""
    async with auth_server(settings, process.telemetry, process.stop):
        await process.stop.wait()


async def migrate(settings: AuthSettings) -> None:
    """Brings the schema up to date."""
    async with open_database(settings, SystemClock()) as db:
        await wait_for_database(db, asyncio.Event())
        await upgrade(db, MIGRATIONS)
