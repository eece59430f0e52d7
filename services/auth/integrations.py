"""The life of an integration: an admin sets up the workspace's application at a provider, and users connect through it.

Its client secrets go in and never come out. They lie in one document that is written anew by check-and-set, so that a
secret is rotated without a gap: the new one is tried first, the old one as long as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from holdfast.errors import Conflict, HoldfastError, InvalidArgument, Reason
from holdfast.ids import new_uuid7
from services.auth.callers import Caller
from services.auth.connection_store import Connection, CredentialKind
from services.auth.discovered import SERVER_URL, discover, is_discovered
from services.auth.integration_store import (
    Integration,
    IntegrationChange,
    IntegrationState,
    IntegrationStore,
    NewIntegration,
    integration_exists,
    integration_not_found,
)
from services.auth.keyring import Keyring
from services.auth.oauth.discovery import Discovery
from services.auth.oauth_apps import OAuthApps, secrets_document
from services.auth.providers import Provider, ProviderCatalog
from services.auth.providers.schema import AuthKind, Flow, VariableOwner
from services.auth.requests import identify, is_name, require_name
from services.auth.secret_paths import integration_path
from services.auth.secrets import Secret, SecretStore
from services.auth.strays import StraySecrets
from services.shared.crash_points import crash_point

MAX_CLIENT_ID_CHARACTERS: Final = 512
MAX_CLIENT_SECRET_CHARACTERS: Final = 8192
MAX_CLIENT_SECRETS: Final = 5
MAX_SCOPES: Final = 100
MAX_AGENTS: Final = 100
MAX_VARIABLE_CHARACTERS: Final = 2048

MUTABLE_FIELDS: Final = frozenset({"client_id", "variables", "scopes", "agents", "state"})

_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 §3.3
_CLIENT_ID: Final = re.compile(r"[\x21-\x7e]{1,512}")
_CLIENT_SECRET: Final = re.compile(r"[\x20-\x7e]+(?:\r?\n[\x20-\x7e]+)*\r?\n?")
_REVOKE_BATCH: Final = 200
_OAUTH_KINDS: Final = (CredentialKind.OAUTH2, CredentialKind.CLIENT_CREDENTIALS)

Listener = Callable[[Connection], None]
"""Is told of a connection that has changed."""


class Integrations:
    """Makes, lists, changes and deletes integrations.

    Args:
        store: Keeps the integrations.
        secrets: Keeps their client secrets.
        strays: Writes new secrets and deletes old ones.
        apps: Is told of changes.
        catalog: The providers.
        discovery: Asks servers about themselves.
        keyring: Key of the fingerprints of requests.
        public_url: Where providers send browsers back to.
        on_change: Is told of each connection that ends with its integration.
    """

    def __init__(
        self,
        store: IntegrationStore,
        secrets: SecretStore,
        strays: StraySecrets,
        apps: OAuthApps,
        catalog: ProviderCatalog,
        discovery: Discovery,
        keyring: Keyring,
        *,
        public_url: str,
        on_change: Listener,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._strays = strays
        self._apps = apps
        self._catalog = catalog
        self._discovery = discovery
        self._request_key = keyring.request_key
        self._public_url = public_url.rstrip("/")
        self._on_change = on_change

    def providers(self, *, limit: int, after: str | None) -> list[Provider]:
        """Returns up to `limit` providers in the order of their slugs, after the given one."""
        found = sorted(self._catalog, key=lambda provider: provider.slug)
        return [provider for provider in found if after is None or provider.slug > after][:limit]

    def redirect_uri(self, integration: Integration) -> str:
        """Returns the redirect URI to register at the provider; empty for kinds without."""
        if integration.kind is not CredentialKind.OAUTH2:
            return ""
        return self._redirect_uri(integration.integration_id)

    def _redirect_uri(self, integration_id: str) -> str:
        return f"{self._public_url}/oauth/callback/{integration_id}"

    async def create(
        self,
        caller: Caller,
        *,
        name: str,
        provider: str,
        kind: CredentialKind | None,
        client_id: str = "",
        client_secret: Secret,
        variables: Mapping[str, str],
        scopes: Sequence[str] = (),
        agents: Sequence[str] = (),
        server_url: str = "",
        request_id: str = "",
    ) -> Integration:
        """Sets an integration up.

        Raises:
            InvalidArgument: A field is wrong, or the provider is not known (PROVIDER_UNKNOWN).
            AlreadyExists: The name is taken.
        """
        known = self._provider(provider)
        name = require_name(name or provider, "name")
        kind = _kind_of(known, kind)
        content = [name, provider, kind, client_id, client_secret.reveal(), dict(variables), list(scopes)]
        request = identify(self._request_key, "CreateIntegration", request_id, [*content, list(agents), server_url])
        _check_client(known, kind, client_id, client_secret, may_register=is_discovered(known))
        variables = _with_server(known, variables, server_url)
        checked_variables = _checked_variables(known, variables)
        checked_scopes = _checked_scopes(known, kind, scopes)
        checked_agents = checked_names(agents, "agents")
        # The transaction below decides both again; here they spare a secret that would be written for nothing.
        if request is not None:
            answered = await self._store.find_answered_integration(caller.workspace_id, request)
            if answered is not None:
                return answered
        if await self._store.find_integration(caller.workspace_id, name) is not None:
            raise integration_exists(name)
        integration_id = new_uuid7()
        discovered: Mapping[str, Any] = {}
        if is_discovered(known):
            discovered, registration = await discover(
                self._discovery,
                known,
                server_url=checked_variables[SERVER_URL],
                redirect_uri=self._redirect_uri(integration_id),
                client_id=client_id,
                client_secret=client_secret,
            )
            client_id, client_secret = registration.client_id, registration.client_secret or Secret("")
        held = () if client_secret.is_empty else (client_secret,)
        path = integration_path(caller.workspace_id, integration_id) if kind in _OAUTH_KINDS else None
        new = NewIntegration(
            workspace_id=caller.workspace_id,
            integration_id=integration_id,
            name=name,
            provider=provider,
            kind=kind,
            client_id=client_id,
            variables=checked_variables,
            scopes=checked_scopes,
            agents=checked_agents,
            server_url=server_url,
            discovered=discovered,
            secret_path=path,
            client_secret_count=len(held),
        )
        try:
            if path is not None:
                document = secrets_document(caller.workspace_id, integration_id, provider, held)
                await self._strays.write(path, document)
            made, is_new = await self._store.create_integration(new, actor=caller.actor, request=request)
        except HoldfastError:
            await self._strays.give_up(path)
            raise
        if not is_new:
            await self._strays.give_up(path)
        return made

    async def get(self, workspace_id: str, name: str) -> Integration:
        """Returns an integration.

        Raises:
            NotFound: There is none of the name (INTEGRATION_NOT_FOUND).
        """
        found = await self._store.find_integration(workspace_id, name) if is_name(name) else None
        if found is None:
            raise integration_not_found()
        return found

    async def page(self, workspace_id: str, *, limit: int, after: str | None) -> list[Integration]:
        """Returns up to `limit` integrations in the order of their names, after the given one."""
        return await self._store.list_integrations(workspace_id, limit=limit, after=after)

    async def update(
        self,
        caller: Caller,
        name: str,
        *,
        fields: Mapping[str, Any],
        client_secret: Secret,
        remove_old_secrets: bool = False,
        etag: str = "",
        request_id: str = "",
    ) -> Integration:
        """Changes the given fields, which are those of `MUTABLE_FIELDS`.

        Raises:
            InvalidArgument: A field is wrong.
            NotFound: There is no such integration.
            Conflict: It is not the one of the etag any more.
        """
        content = [name, sorted(fields.items()), client_secret.reveal(), remove_old_secrets, etag]
        request = identify(self._request_key, "UpdateIntegration", request_id, content)
        if request is not None:
            answered = await self._store.find_answered_integration(caller.workspace_id, request)
            if answered is not None:
                return answered
        integration = await self.get(caller.workspace_id, name)
        if etag and etag != integration.etag:
            raise _changed_since(integration)
        change = self._checked_change(integration, fields, client_secret)
        is_of_secrets = remove_old_secrets or not client_secret.is_empty
        if not fields and not is_of_secrets:
            raise InvalidArgument("nothing is to be changed", field="update_mask", description="expected a field")
        if is_of_secrets:
            count = await self._write_secrets(integration, client_secret, remove_old=remove_old_secrets)
            change = IntegrationChange(
                client_id=change.client_id,
                variables=change.variables,
                scopes=change.scopes,
                agents=change.agents,
                is_disabled=change.is_disabled,
                client_secret_count=count,
            )
        changed = await self._store.update_integration(
            caller.workspace_id,
            integration.integration_id,
            change,
            version=integration.version if etag else None,
            actor=caller.actor,
            request=request,
        )
        self._apps.forget(caller.workspace_id, integration.integration_id)
        if changed is None:
            raise integration_not_found()
        return changed

    async def delete(self, caller: Caller, name: str, *, request_id: str = "") -> int:
        """Deletes an integration and returns how many connections were revoked with it. May be repeated.

        It is switched off first, so that nothing is connected meanwhile; then its connections are revoked, some at a
        time; then it goes. Whatever dies in between leaves a disabled integration, which the repetition deletes. Its
        client secret is deleted when the providers of its connections know that they have ended, within a day.

        Raises:
            NotFound: There is no such integration.
        """
        workspace_id = caller.workspace_id
        request = identify(self._request_key, "DeleteIntegration", request_id, name)
        if request is not None:
            answered = await self._store.find_answered_deletion(workspace_id, request)
            if answered is not None:
                return answered
        integration = await self.get(workspace_id, name)
        integration_id = integration.integration_id
        if integration.state is not IntegrationState.DISABLED:
            await self._store.update_integration(
                workspace_id,
                integration_id,
                IntegrationChange(is_disabled=True),
                version=None,
                actor=caller.actor,
                request=None,
            )
            self._apps.forget(workspace_id, integration_id)
        revoked = 0
        while ended := await self._store.revoke_connections_of(
            workspace_id, integration_id, limit=_REVOKE_BATCH, actor=caller.actor
        ):
            revoked += len(ended)
            for connection in ended:
                self._on_change(connection)
            crash_point("auth.after_cascade")
        deleted = await self._store.delete_integration(
            workspace_id, integration_id, actor=caller.actor, request=request, revoked_connections=revoked
        )
        if deleted is None:
            raise integration_not_found()
        await self.purge()
        return deleted

    async def purge(self) -> None:
        """Removes what is left of deleted integrations that no provider needs to be told with; called now and then."""
        for path in await self._store.purge_deleted_integrations(limit=_REVOKE_BATCH):
            await self._strays.give_up(path)

    def _provider(self, slug: str) -> Provider:
        if not is_name(slug):
            raise InvalidArgument("provider is not valid", field="provider", description="expected a provider's slug")
        provider = self._catalog.get(slug)
        if provider is None:
            raise InvalidArgument(
                f"the provider {slug!r} is not known",
                reason=Reason.PROVIDER_UNKNOWN,
                field="provider",
                description="expected one that ListProviders lists",
            )
        return provider

    def _checked_change(
        self, integration: Integration, fields: Mapping[str, Any], client_secret: Secret
    ) -> IntegrationChange:
        unknown = sorted(fields.keys() - MUTABLE_FIELDS)
        if unknown:
            raise InvalidArgument(
                f"the field {unknown[0]!r} cannot be changed",
                field="update_mask",
                description=f"expected some of {', '.join(sorted(MUTABLE_FIELDS))}",
            )
        provider = self._apps.provider_of(integration)
        is_of_oauth = integration.kind in _OAUTH_KINDS
        client_id = fields.get("client_id")
        if client_id is not None or not client_secret.is_empty:
            kept = client_secret if integration.client_secret_count == 0 or not client_secret.is_empty else _SOME
            _check_client(provider, integration.kind, integration.client_id if client_id is None else client_id, kept)
        scopes, agents, variables = (fields.get(key) for key in ("scopes", "agents", "variables"))
        state = fields.get("state")
        if state not in (None, IntegrationState.ACTIVE, IntegrationState.DISABLED):
            raise InvalidArgument("state is not valid", field="integration.state", description="ACTIVE or DISABLED")
        return IntegrationChange(
            client_id=client_id if is_of_oauth else None,
            variables=None if variables is None else _checked_variables(provider, variables),
            scopes=None if scopes is None else _checked_scopes(provider, integration.kind, scopes),
            agents=None if agents is None else checked_names(agents, "agents"),
            is_disabled=None if state is None else state is IntegrationState.DISABLED,
        )

    async def _write_secrets(self, integration: Integration, client_secret: Secret, *, remove_old: bool) -> int:
        """Writes the document of client secrets anew and returns how many it holds.

        Written before the row: the secret is used from then on, and a repetition after a crash finds it there.
        """
        if integration.secret_path is None:
            raise _not_for_this_kind("remove_old_secrets" if client_secret.is_empty else "client_secret")
        held = await self._apps.read_secrets(integration)
        secrets = list(held.secrets)
        if not client_secret.is_empty:
            # Order matters: the newest is tried first. One that is there already moves to the front.
            secrets = [client_secret, *(secret for secret in secrets if secret.reveal() != client_secret.reveal())]
        if remove_old:
            secrets = secrets[:1]
        if len(secrets) > MAX_CLIENT_SECRETS:
            raise InvalidArgument(
                "there are too many client secrets",
                field="client_secret",
                description=f"expected at most {MAX_CLIENT_SECRETS}; remove the old ones with remove_old_secrets",
            )
        document = secrets_document(integration.workspace_id, integration.integration_id, integration.provider, secrets)
        try:
            await self._secrets.put(integration.secret_path, document, expected_version=held.version)
        except Conflict as error:
            raise _changed_since(integration) from error
        crash_point("auth.after_client_secret")
        return len(secrets)


_SOME: Final = Secret("(stored)")
"""Stands for a client secret that is stored already, where only its presence matters."""


def _changed_since(integration: Integration) -> Conflict:
    return Conflict("the integration has changed since; read it again", metadata={"integration": integration.name})


def _not_for_this_kind(field: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field} does not belong to this kind", field=field, description="expected nothing: it is for OAuth"
    )


def kinds_of(provider: Provider) -> tuple[CredentialKind, ...]:
    """Returns how a provider's credentials can come about, the usual way first."""
    if provider.kind is AuthKind.API_KEY:
        return (CredentialKind.API_KEY,)
    if provider.kind is AuthKind.BASIC:
        return (CredentialKind.BASIC,)
    flows = () if provider.oauth is None else provider.oauth.flows
    kinds = []
    if Flow.AUTHORIZATION_CODE in flows or Flow.DEVICE in flows:
        kinds.append(CredentialKind.OAUTH2)
    if Flow.CLIENT_CREDENTIALS in flows:
        kinds.append(CredentialKind.CLIENT_CREDENTIALS)
    return tuple(kinds)


def _kind_of(provider: Provider, kind: CredentialKind | None) -> CredentialKind:
    kinds = kinds_of(provider)
    if kind is None:
        return kinds[0]
    if kind not in kinds:
        raise InvalidArgument(
            f"{provider.slug} has no credentials of this kind",
            field="kind",
            description=f"expected {' or '.join(kinds)}",
        )
    return kind


def _check_client(
    provider: Provider, kind: CredentialKind, client_id: str, client_secret: Secret, *, may_register: bool = False
) -> None:
    if kind not in _OAUTH_KINDS:
        for field, is_given in (("client_id", bool(client_id)), ("client_secret", not client_secret.is_empty)):
            if is_given:
                raise _not_for_this_kind(field)
        return
    if may_register and not client_id and client_secret.is_empty:
        return
    if not _CLIENT_ID.fullmatch(client_id):
        raise InvalidArgument(
            "client_id is not valid",
            field="client_id",
            description=f"expected up to {MAX_CLIENT_ID_CHARACTERS} printable characters without spaces",
        )
    if client_secret.is_empty:
        if kind is CredentialKind.CLIENT_CREDENTIALS:
            raise InvalidArgument("client_secret is required", field="client_secret")
        return
    value = client_secret.reveal()
    if len(value) > MAX_CLIENT_SECRET_CHARACTERS or _CLIENT_SECRET.fullmatch(value) is None:
        # No part of it is repeated.
        raise InvalidArgument(
            "client_secret is not valid",
            field="client_secret",
            description=f"expected up to {MAX_CLIENT_SECRET_CHARACTERS} characters of ASCII: a secret, or a PEM key",
        )


def _checked_variables(provider: Provider, variables: Mapping[str, str]) -> dict[str, str]:
    for value in variables.values():
        if len(value) > MAX_VARIABLE_CHARACTERS:
            raise InvalidArgument("a variable is too long", field="variables")
    try:
        return provider.check_variables(variables, VariableOwner.INTEGRATION)
    except ValueError as error:
        raise InvalidArgument("variables are not valid", field="variables", description=str(error)) from error


def _checked_scopes(provider: Provider, kind: CredentialKind, scopes: Sequence[str]) -> tuple[str, ...]:
    if scopes and kind not in _OAUTH_KINDS:
        raise _not_for_this_kind("scopes")
    checked = checked_scopes(scopes)
    if not provider.accepts_other_scopes:
        for scope in checked:
            if scope not in provider.scopes:
                raise InvalidArgument(
                    f"{provider.slug} has no such scope", field="scopes", description="expected scopes of the provider"
                )
    return checked


def checked_scopes(scopes: Sequence[str], field: str = "scopes") -> tuple[str, ...]:
    """Returns the scopes, each once.

    Raises:
        InvalidArgument: One is no scope, or there are too many.
    """
    if len(scopes) > MAX_SCOPES or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise InvalidArgument(
            f"{field} are not valid",
            field=field,
            description=f"expected at most {MAX_SCOPES} scopes as RFC 6749 has them, without spaces",
        )
    return tuple(dict.fromkeys(scopes))


def checked_names(names: Sequence[str], field: str) -> tuple[str, ...]:
    """Returns the names, each once and in order.

    Raises:
        InvalidArgument: One is no name, or there are too many.
    """
    if len(names) > MAX_AGENTS or not all(is_name(name) for name in names):
        raise InvalidArgument(f"{field} are not valid", field=field, description=f"expected at most {MAX_AGENTS} names")
    return tuple(sorted(set(names)))


def _with_server(provider: Provider, variables: Mapping[str, str], server_url: str) -> Mapping[str, str]:
    """Returns the variables with the server's address among them, for the providers that are discovered there."""
    if not is_discovered(provider):
        if server_url:
            raise InvalidArgument(
                "server_url does not belong to this provider",
                field=SERVER_URL,
                description="expected nothing: its addresses are known",
            )
        return variables
    if not server_url or SERVER_URL in variables:
        raise InvalidArgument(
            "server_url is required", field=SERVER_URL, description="expected the address of the server, and only here"
        )
    try:
        provider.variables[SERVER_URL].check(server_url)
    except ValueError as error:
        raise InvalidArgument("server_url is not valid", field=SERVER_URL, description=str(error)) from error
    return {**variables, SERVER_URL: server_url}
