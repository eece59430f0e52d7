"""The life of a connection: a third party's credential goes in, is replaced and revoked, and never comes out here.

Accounts of users at OAuth providers are connected in `connect`; what is stored here are keys, passwords, and tokens
that a workspace's application gets for itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import urlsplit

from holdfast.errors import (
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    Unavailable,
)
from holdfast.ids import new_uuid7
from services.auth.callers import IMPERSONATE, Caller
from services.auth.connection_store import (
    SHARED,
    Connection,
    ConnectionChange,
    ConnectionState,
    ConnectionStore,
    CredentialKind,
    NewConnection,
    connection_exists,
)
from services.auth.connection_variables import checked_variables
from services.auth.fingerprints import fingerprint_of
from services.auth.integration_store import (
    Integration,
    IntegrationState,
    IntegrationStore,
    integration_disabled,
    integration_not_found,
)
from services.auth.integrations import checked_names
from services.auth.key_documents import API_KEY, PASSWORD, USERNAME, key_document
from services.auth.keyring import Keyring
from services.auth.oauth.client import OAuthClient
from services.auth.oauth.refusals import RefusalKind, TokenRefused
from services.auth.oauth_apps import OAuthApps
from services.auth.providers import Provider
from services.auth.providers.schema import CredentialField, OAuthSpec
from services.auth.refresh.documents import TokenDocument
from services.auth.refresh.timing import next_refresh
from services.auth.requests import identify, is_name, require_name
from services.auth.secret_paths import new_connection_path
from services.auth.secrets import Secret
from services.auth.strays import StraySecrets

PROVIDERS_WITH_ADDRESS: Final = frozenset({"anthropic", "openai"})
"""Providers whose own address is known to the executor; every other connection names one."""

MAX_KEY_CHARACTERS: Final = 8192
MAX_URL_CHARACTERS: Final = 2048
MAX_USERNAME_CHARACTERS: Final = 512
MAX_USER_ID_CHARACTERS: Final = 256

Listener = Callable[[Connection], None]
"""Is told of a connection that has changed."""


class Connections:
    """Makes, lists, changes and revokes connections.

    Args:
        store: Keeps the connections.
        integrations: Keeps the integrations that some of them belong to.
        strays: Writes their secrets and deletes old ones.
        apps: The workspace's applications.
        client: Gets tokens for applications themselves.
        keyring: Keys of fingerprints.
        on_change: Called after each committed change, before the caller is answered.
    """

    def __init__(
        self,
        store: ConnectionStore,
        integrations: IntegrationStore,
        strays: StraySecrets,
        apps: OAuthApps,
        client: OAuthClient,
        keyring: Keyring,
        *,
        on_change: Listener,
    ) -> None:
        self._store = store
        self._integrations = integrations
        self._strays = strays
        self._apps = apps
        self._client = client
        self._audit_key = keyring.audit_key
        self._request_key = keyring.request_key
        self._on_change = on_change
        self._rng = random.Random()

    async def create(
        self,
        caller: Caller,
        *,
        name: str,
        provider: str,
        api_key: Secret,
        base_url: str = "",
        replace: bool = False,
        request_id: str = "",
        user_id: str = SHARED,
        integration: str = "",
        username: str = "",
        agents: Sequence[str] = (),
        allow_raw_token: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Connection:
        """Stores a key or a password as a connection, or gets a token for an application itself.

        Raises:
            InvalidArgument: A field is wrong.
            PermissionDenied: The caller is a person, and the connection would be somebody else's.
            NotFound: There is no such integration.
            FailedPrecondition: The integration is disabled, or its provider refuses it (INTEGRATION_DISABLED).
            AlreadyExists: There is a connection of the name that is not revoked, and `replace` is not set.
            Unavailable: The provider gives no token at the moment (CREDENTIAL_UNAVAILABLE).
        """
        require_user(caller, user_id)
        if provider or not integration:
            require_name(provider, "provider")
        name = require_name(name or integration or provider, "name")
        _check_key(api_key)
        _check_username(username)
        _check_base_url(base_url)
        agents = checked_names(agents, "agents")
        content = [name, provider, api_key.reveal(), base_url, replace]
        # Only what is given: a request of an earlier release, repeated after an update, is the same request.
        extra = {
            "user_id": user_id,
            "integration": integration,
            "username": username,
            "agents": list(agents),
            "variables": dict(variables or {}),
        }
        given = {key: value for key, value in extra.items() if value} | ({"raw": True} if allow_raw_token else {})
        request = identify(self._request_key, "CreateConnection", request_id, [*content, given] if given else content)
        # The transaction below decides both again; here they spare a secret that would be written for nothing.
        if request is not None:
            answered = await self._store.find_answered_connection(caller.workspace_id, request)
            if answered is not None:
                return answered
        owner = await self._integration(caller.workspace_id, integration, provider)
        checked: Mapping[str, str] = {}
        if owner is not None:
            checked = checked_variables(self._apps.provider_of(owner), variables or {})
        elif variables:
            raise InvalidArgument(
                "variables belong to an integration's connection",
                field=f"variables.{min(variables)[:64]}",
                description="expected none; base_url says where the key is sent",
            )
        if owner is None:
            _check_plain(provider, api_key, base_url)
        elif base_url:
            raise InvalidArgument("base_url does not belong to an integration's connection", field="base_url")
        if not replace:
            existing = await self._store.find_connection(caller.workspace_id, user_id, name)
            if existing is not None and existing.state is not ConnectionState.REVOKED:
                raise connection_exists(name)
        new = NewConnection(
            workspace_id=caller.workspace_id,
            connection_id=new_uuid7(),
            name=name,
            user_id=user_id,
            integration_id=None if owner is None else owner.integration_id,
            provider=provider if owner is None else owner.provider,
            kind=_plain_kind(username) if owner is None else owner.kind,
            base_url=base_url,
            agents=agents,
            allow_raw_token=allow_raw_token,
            variables=checked,
        )
        document: Secret | None
        if owner is not None and owner.kind is CredentialKind.CLIENT_CREDENTIALS:
            new, document = await self._with_tokens(owner, new, api_key, username)
        else:
            new, document = self._with_key(owner, new, api_key, username)
        try:
            if document is not None:
                assert new.secret_path is not None
                await self._strays.write(new.secret_path, document)
            saved = await self._store.save_connection(new, replace=replace, actor=caller.actor, request=request)
        except HoldfastError:
            await self._strays.give_up(new.secret_path)
            raise
        if saved.is_replay:
            await self._strays.give_up(new.secret_path)
        else:
            self._on_change(saved.connection)
            await self._strays.discard(saved.abandoned)
        return saved.connection

    async def get(self, caller: Caller, name: str, *, user_id: str = SHARED) -> Connection:
        """Returns a connection in whatever state.

        Raises:
            PermissionDenied: The caller is a person, and it is another one's.
            NotFound: There is none of the name.
        """
        if user_id != SHARED:
            require_user(caller, user_id)
        found = await self._store.find_connection(caller.workspace_id, user_id, name) if is_name(name) else None
        if found is None:
            raise connection_not_found()
        return found

    async def page(
        self,
        caller: Caller,
        *,
        limit: int,
        after: tuple[str, str] | None,
        user_id: str = "",
        integration: str = "",
        state: ConnectionState | None = None,
    ) -> list[Connection]:
        """Returns up to `limit` connections in the order of their names and users, after the given one.

        A person sees their own and the shared ones, unless they may act for others.

        Raises:
            PermissionDenied: The caller is a person, and asks for another one's.
        """
        user_ids: tuple[str, ...] | None = None
        if user_id:
            require_user(caller, user_id)
            user_ids = (user_id,)
        elif caller.user_id is not None and not caller.may_grant(IMPERSONATE):
            user_ids = (SHARED, caller.user_id)
        integration_id = None
        if integration:
            found = None
            if is_name(integration):
                found = await self._integrations.find_integration(caller.workspace_id, integration)
            if found is None:
                return []
            integration_id = found.integration_id
        return await self._store.list_connections(
            caller.workspace_id,
            limit=limit,
            after=after,
            user_ids=user_ids,
            integration_id=integration_id,
            state=state,
        )

    async def update(
        self, caller: Caller, name: str, change: ConnectionChange, *, user_id: str = SHARED, request_id: str = ""
    ) -> Connection:
        """Changes who may use a connection, and whether it is switched on.

        Raises:
            InvalidArgument: A field is wrong.
            PermissionDenied: The caller is a person, and it is somebody else's.
            NotFound: There is none of the name that is not revoked.
        """
        require_user(caller, user_id)
        agents = None if change.agents is None else checked_names(change.agents, "agents")
        change = ConnectionChange(agents=agents, allow_raw_token=change.allow_raw_token, is_disabled=change.is_disabled)
        if change == ConnectionChange():
            raise InvalidArgument("nothing is to be changed", field="update_mask", description="expected a field")
        content = [name, user_id, agents, change.allow_raw_token, change.is_disabled]
        request = identify(self._request_key, "UpdateConnection", request_id, content)
        changed = None
        if is_name(name):
            changed = await self._store.update_connection(
                caller.workspace_id, user_id, name, change, actor=caller.actor, request=request
            )
        if changed is None:
            raise connection_not_found()
        self._on_change(changed)
        return changed

    async def revoke(self, caller: Caller, name: str, *, user_id: str = SHARED, request_id: str = "") -> Connection:
        """Revokes a connection, tells its provider, and deletes its secret. May be repeated.

        When the provider cannot be told or the secret store cannot delete now, the connection is revoked all the same,
        and the rest is repeated: for a day, or until it succeeds.

        Raises:
            PermissionDenied: The caller is a person, and it is somebody else's.
            NotFound: There is no connection of the name.
        """
        require_user(caller, user_id)
        content = [name, user_id] if user_id else name
        request = identify(self._request_key, "RevokeConnection", request_id, content)
        saved = None
        if is_name(name):
            saved = await self._store.revoke_connection(
                caller.workspace_id, user_id, name, actor=caller.actor, request=request
            )
        if saved is None:
            raise connection_not_found()
        self._on_change(saved.connection)
        await self._strays.discard(saved.abandoned)
        return saved.connection

    # ------------------------------------------------------------------------------------------------------ credentials

    async def _integration(self, workspace_id: str, name: str, provider: str) -> Integration | None:
        if not name:
            return None
        found = await self._integrations.find_integration(workspace_id, name) if is_name(name) else None
        if found is None:
            raise integration_not_found()
        if found.state is IntegrationState.DISABLED:
            raise integration_disabled(found.name)
        if provider not in ("", found.provider):
            raise InvalidArgument(
                "provider is not that of the integration", field="provider", description="expected it, or nothing"
            )
        if found.kind is CredentialKind.OAUTH2:
            raise InvalidArgument(
                "accounts of this integration are connected by signing in",
                field="integration",
                description="expected one whose credentials are keys, passwords or the application's own",
            )
        return found

    def _with_key(
        self, owner: Integration | None, new: NewConnection, api_key: Secret, username: str
    ) -> tuple[NewConnection, Secret | None]:
        if owner is not None:
            values = _fields_of(self._apps.provider_of(owner), api_key, username)
        elif username:
            values = {USERNAME: Secret(username), PASSWORD: api_key}
        else:
            values = {API_KEY: api_key}
        if all(value.is_empty for value in values.values()):
            return new, None
        placed = _changed(
            new,
            fingerprint=fingerprint_of(self._audit_key, api_key),
            secret_path=new_connection_path(new.workspace_id, new.user_id),
            token_version=1,
        )
        return placed, key_document(placed, values, api_key)

    async def _with_tokens(
        self, owner: Integration, new: NewConnection, api_key: Secret, username: str
    ) -> tuple[NewConnection, Secret]:
        for field, is_given in (("api_key", not api_key.is_empty), ("username", bool(username))):
            if is_given:
                raise InvalidArgument(f"{field} does not belong to this kind", field=field)
        app = (await self._apps.oauth_app(owner.workspace_id, owner.integration_id)).with_variables(new.variables)
        scopes = app.provider.with_mandatory_scopes(owner.scopes or app.provider.default_scopes)
        try:
            tokens = (await self._client.client_credentials(app, scopes=scopes)).with_extra(new.variables)
        except TokenRefused as refused:
            raise await self._refused(owner, refused) from refused
        await self._apps.record_client_success(owner.workspace_id, owner.integration_id)
        placed = _changed(
            new,
            fingerprint=fingerprint_of(self._audit_key, tokens.access_token),
            secret_path=new_connection_path(new.workspace_id, new.user_id),
            token_version=1,
            scopes=tokens.scopes or scopes,
            missing_scopes=tuple(scope for scope in scopes if tokens.scopes and scope not in tokens.scopes),
            expire_time=tokens.expire_time,
            refresh_time=next_refresh(tokens, app.provider.oauth or OAuthSpec(), self._rng),
        )
        return placed, TokenDocument(tokens=tokens).to_secret(placed)

    async def _refused(self, owner: Integration, refused: TokenRefused) -> HoldfastError:
        if refused.kind in (RefusalKind.INTEGRATION, RefusalKind.PERMANENT):
            reason = refused.error or "refused"
            await self._apps.record_client_failure(owner.workspace_id, owner.integration_id, reason)
            return FailedPrecondition(
                str(refused), reason=Reason.INTEGRATION_DISABLED, metadata={"integration": owner.name, "error": reason}
            )
        return Unavailable(
            str(refused),
            reason=Reason.CREDENTIAL_UNAVAILABLE,
            retry_delay_seconds=refused.retry_after_seconds or 1.0,
        )


def require_user(caller: Caller, user_id: str) -> None:
    """Returns when the caller may act for the user; for `SHARED`, for the workspace.

    Raises:
        InvalidArgument: It is no id of a user.
        PermissionDenied: The caller is a person, and not this one (SCOPE_MISSING).
    """
    if len(user_id) > MAX_USER_ID_CHARACTERS or (user_id and not user_id.isprintable()):
        raise InvalidArgument(
            "user_id is not valid",
            field="user_id",
            description=f"expected up to {MAX_USER_ID_CHARACTERS} printable characters",
        )
    if not caller.may_act_for(user_id):
        raise PermissionDenied(
            f"only the person, or a caller with the scope {IMPERSONATE}, may do this for somebody else",
            reason=Reason.SCOPE_MISSING,
            metadata={"scope": IMPERSONATE},
        )


def connection_not_found() -> NotFound:
    """Returns the one answer for a connection that is absent, revoked where an active one is needed, or foreign."""
    return NotFound("there is no such connection", reason=Reason.CONNECTION_NOT_FOUND)


def _changed(new: NewConnection, **changes: Any) -> NewConnection:
    return NewConnection(**{**{name: getattr(new, name) for name in new.__dataclass_fields__}, **changes})


def _plain_kind(username: str) -> CredentialKind:
    return CredentialKind.BASIC if username else CredentialKind.API_KEY


def _fields_of(provider: Provider, api_key: Secret, username: str) -> Mapping[str, Secret]:
    """Returns the values of the provider's fields: the key is the last of them, the user name the one before."""
    fields = list(provider.fields.values())
    given = {"username": Secret(username), "api_key": api_key}
    expected = ["api_key"] if len(fields) < 2 else ["username", "api_key"]
    if len(fields) < 2 and username:
        raise InvalidArgument(f"{provider.slug} has no user names", field="username")
    values = {}
    for request_field, field in zip(expected, cast("list[CredentialField | None]", fields or [None]), strict=True):
        value = given[request_field]
        if value.is_empty:
            raise InvalidArgument(f"{request_field} is required", field=request_field)
        if field is not None:
            try:
                field.check(value.reveal())
            except ValueError as error:
                raise InvalidArgument(
                    f"{request_field} is not valid", field=request_field, description=str(error)
                ) from error
        values[API_KEY if field is None else field.name] = value
    return values


def _check_plain(provider: str, api_key: Secret, base_url: str) -> None:
    if not base_url and provider not in PROVIDERS_WITH_ADDRESS:
        raise InvalidArgument(f"base_url is required: the address of {provider} is not known", field="base_url")
    if not base_url and api_key.is_empty:
        raise InvalidArgument("api_key is required unless base_url names a server that wants none", field="api_key")


def _check_key(api_key: Secret) -> None:
    # No message here may hold a part of the key.
    value = api_key.reveal()
    if len(value) > MAX_KEY_CHARACTERS:
        raise InvalidArgument(
            "api_key is too long", field="api_key", description=f"expected at most {MAX_KEY_CHARACTERS} characters"
        )
    if value and (not value.isascii() or not value.isprintable() or " " in value):
        raise InvalidArgument(
            "api_key has characters that no header can carry",
            field="api_key",
            description="expected printable ASCII without spaces or line breaks, also at its ends",
        )


def _check_username(username: str) -> None:
    # RFC 7617 §2: a colon ends the user name.
    if len(username) > MAX_USERNAME_CHARACTERS or (username and not username.isprintable()) or ":" in username:
        raise InvalidArgument(
            "username is not valid",
            field="username",
            description=f"expected up to {MAX_USERNAME_CHARACTERS} printable characters without a colon",
        )


def _check_base_url(url: str) -> None:
    if url and not _is_plain_address(url):
        # The text is not repeated: it may hold a password.
        raise InvalidArgument(
            "base_url is not valid",
            field="base_url",
            description="expected http://host[:port][/path] or https://…, without user, query and fragment",
        )


def _is_plain_address(url: str) -> bool:
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or set(url) & set(' @\\?#<>"'):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
