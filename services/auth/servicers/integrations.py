"""IntegrationService."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast.api.auth.v1 import integration_service_pb2 as pb
from holdfast.api.auth.v1.integration_service_pb2_grpc import IntegrationServiceServicer
from holdfast.errors import InvalidArgument
from services.auth.connection_store import CredentialKind
from services.auth.connection_variables import variables_of
from services.auth.integration_store import Integration, IntegrationState
from services.auth.integrations import Integrations, kinds_of
from services.auth.providers import Provider
from services.auth.providers.schema import Sensitivity, VariableOwner
from services.auth.secrets import Secret
from services.auth.servicers.messages import CREDENTIAL_KINDS, current_caller, to_timestamp
from services.shared.identity import current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size

_STATES: Final = {
    IntegrationState.ACTIVE: pb.INTEGRATION_STATE_ACTIVE,
    IntegrationState.MISCONFIGURED: pb.INTEGRATION_STATE_MISCONFIGURED,
    IntegrationState.DISABLED: pb.INTEGRATION_STATE_DISABLED,
}
_SENSITIVITIES: Final = {
    Sensitivity.READ: pb.SCOPE_SENSITIVITY_READ,
    Sensitivity.WRITE: pb.SCOPE_SENSITIVITY_WRITE,
    Sensitivity.ADMIN: pb.SCOPE_SENSITIVITY_ADMIN,
    Sensitivity.MONEY: pb.SCOPE_SENSITIVITY_MONEY,
    Sensitivity.SEND_AS_USER: pb.SCOPE_SENSITIVITY_SEND_AS_USER,
}


class IntegrationServicer(IntegrationServiceServicer):
    """Serves IntegrationService.

    Args:
        integrations: The rules.
        page_key: Signs page tokens.
    """

    def __init__(self, integrations: Integrations, page_key: bytes) -> None:
        self._integrations = integrations
        self._page_key = page_key

    async def ListProviders(self, request: pb.ListProvidersRequest, context: Any) -> pb.ListProvidersResponse:
        """Lists what this release knows."""
        bound_to = ("ListProviders", current_workspace())
        size = page_size(request.page_size)
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        after = None if position is None else position["slug"]
        found = self._integrations.providers(limit=size + 1, after=after)
        token = ""
        if len(found) > size:
            token = encode_page_token(self._page_key, {"slug": found[size - 1].slug}, bound_to=bound_to)
        return pb.ListProvidersResponse(
            providers=[_to_provider(provider) for provider in found[:size]], next_page_token=token
        )

    async def CreateIntegration(
        self, request: pb.CreateIntegrationRequest, context: Any
    ) -> pb.CreateIntegrationResponse:
        """Sets an integration up."""
        integration = await self._integrations.create(
            current_caller(),
            name=request.name,
            provider=request.provider,
            kind=_kind(request.kind),
            client_id=request.client_id,
            client_secret=Secret(request.client_secret),
            variables=dict(request.variables),
            scopes=request.scopes,
            agents=request.agents,
            server_url=request.server_url,
            request_id=request.request_id,
        )
        return pb.CreateIntegrationResponse(integration=self._to_integration(integration))

    async def GetIntegration(self, request: pb.GetIntegrationRequest, context: Any) -> pb.GetIntegrationResponse:
        """Returns one integration."""
        integration = await self._integrations.get(current_workspace(), request.name)
        return pb.GetIntegrationResponse(integration=self._to_integration(integration))

    async def ListIntegrations(self, request: pb.ListIntegrationsRequest, context: Any) -> pb.ListIntegrationsResponse:
        """Lists integrations by name."""
        workspace_id = current_workspace()
        bound_to = ("ListIntegrations", workspace_id)
        size = page_size(request.page_size)
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        after = None if position is None else position["name"]
        found = await self._integrations.page(workspace_id, limit=size + 1, after=after)
        token = ""
        if len(found) > size:
            token = encode_page_token(self._page_key, {"name": found[size - 1].name}, bound_to=bound_to)
        return pb.ListIntegrationsResponse(
            integrations=[self._to_integration(integration) for integration in found[:size]], next_page_token=token
        )

    async def UpdateIntegration(
        self, request: pb.UpdateIntegrationRequest, context: Any
    ) -> pb.UpdateIntegrationResponse:
        """Changes an integration."""
        integration = await self._integrations.update(
            current_caller(),
            request.name,
            fields=_fields(request),
            client_secret=Secret(request.client_secret),
            remove_old_secrets=request.remove_old_secrets,
            etag=request.etag,
            request_id=request.request_id,
        )
        return pb.UpdateIntegrationResponse(integration=self._to_integration(integration))

    async def DeleteIntegration(
        self, request: pb.DeleteIntegrationRequest, context: Any
    ) -> pb.DeleteIntegrationResponse:
        """Deletes an integration and all of its connections."""
        revoked = await self._integrations.delete(current_caller(), request.name, request_id=request.request_id)
        return pb.DeleteIntegrationResponse(revoked_connections=revoked)

    def _to_integration(self, integration: Integration) -> pb.Integration:
        return pb.Integration(
            integration_id=integration.integration_id,
            name=integration.name,
            provider=integration.provider,
            kind=CREDENTIAL_KINDS[integration.kind],
            client_id=integration.client_id,
            variables=integration.variables,
            scopes=integration.scopes,
            agents=integration.agents,
            state=_STATES[integration.state],
            state_reason=integration.state_reason,
            redirect_uri=self._integrations.redirect_uri(integration),
            client_secret_count=integration.client_secret_count,
            server_url=integration.server_url,
            etag=integration.etag,
            create_time=to_timestamp(integration.create_time),
            update_time=to_timestamp(integration.update_time),
        )


def _kind(kind: pb.CredentialKind) -> CredentialKind | None:
    if kind == pb.CREDENTIAL_KIND_UNSPECIFIED:
        return None
    for known, value in CREDENTIAL_KINDS.items():
        if value == kind:
            return known
    raise InvalidArgument("kind is not known", field="kind", description="expected a kind of this release")


def _fields(request: pb.UpdateIntegrationRequest) -> Mapping[str, Any]:
    """Returns the new values of the fields that the mask names; what cannot change is refused by the rules."""
    new = request.integration
    states = {value: state for state, value in _STATES.items()}
    values: dict[str, Any] = {
        "client_id": new.client_id,
        "variables": dict(new.variables),
        "scopes": tuple(new.scopes),
        "agents": tuple(new.agents),
        "state": states.get(new.state, IntegrationState.DELETED),
    }
    return {path: values.get(path, "") for path in request.update_mask.paths}


def _to_provider(provider: Provider) -> pb.Provider:
    return pb.Provider(
        slug=provider.slug,
        display_name=provider.display_name,
        kinds=[CREDENTIAL_KINDS[kind] for kind in kinds_of(provider)],
        scopes=[
            pb.ProviderScope(scope=scope.name, description=scope.words, sensitivity=_SENSITIVITIES[scope.sensitivity])
            for scope in provider.scopes.values()
        ],
        variables=[item.name for item in provider.variables.values() if item.owner is VariableOwner.INTEGRATION],
        connection_variables=[item.name for item in variables_of(provider)],
        hosts=[rule.host for rule in provider.hosts],
        documentation_url=provider.documentation_url,
    )
