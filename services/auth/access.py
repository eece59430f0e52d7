"""Who may call what: every RPC of auth, and the identity it needs. What is not named here is denied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth.api_keys import OWN_WORKSPACE
from services.auth.callers import ADMIN
from services.shared.access import Access, service_access

ACCESS: Final[Mapping[str, Access]] = {
    **service_access(
        "holdfast.api.auth.v1.ApiKeyService",
        {
            "CreateApiKey": Access(scope="keys:write"),
            "ListApiKeys": Access(scope="keys:write"),
            "RevokeApiKey": Access(scope="keys:write"),
            "VerifyApiKey": Access(services=("executor", "trace")),
        },
    ),
    **service_access(
        "holdfast.api.auth.v1.ConnectService",
        {
            "StartConnect": Access(scope="connections:write"),
            # Of a run's session the executor is the initiator; which sessions a caller sees is the domain's rule.
            "GetConnectSession": Access(services=("executor",), scope="connections:write", long_poll=True),
            "ConfirmConnect": Access(services=("executor",), scope="connections:write"),
            "CancelConnect": Access(services=("executor",), scope="connections:write"),
            "RequestSignIn": Access(services=("executor",)),
        },
    ),
    **service_access(
        "holdfast.api.auth.v1.ConnectionService",
        {
            "CreateConnection": Access(scope="connections:write"),
            "GetConnection": Access(scope="connections:read"),
            "ListConnections": Access(scope="connections:read"),
            "UpdateConnection": Access(scope="connections:write"),
            "RevokeConnection": Access(scope="connections:write"),
            "RefreshConnection": Access(scope="connections:write"),
            "EraseUserConnections": Access(services=("executor",)),
        },
    ),
    **service_access(
        "holdfast.api.auth.v1.AuditService",
        {
            # Keys read their workspace's trail, the operator that of the installation.
            "ListAuditRecords": Access(services=("operator",), scope="audit:read"),
            "ExportAuditRecords": Access(services=("operator",), scope="audit:read"),
            "VerifyAuditTrail": Access(services=("operator",), scope="audit:read", long_poll=True),
            "CheckAuditTrails": Access(services=("operator",), traced=False),
        },
    ),
    **service_access(
        "holdfast.api.auth.v1.ConnectionFeedService",
        {
            "WatchConnections": Access(services=("executor",), traced=False),
            "CheckSignIns": Access(services=("executor",)),
        },
    ),
    **service_access(
        "holdfast.api.auth.v1.IntegrationService",
        {
            "ListProviders": Access(scope="integrations:read"),
            "CreateIntegration": Access(scope="integrations:write"),
            "GetIntegration": Access(scope="integrations:read"),
            "ListIntegrations": Access(scope="integrations:read"),
            "UpdateIntegration": Access(scope="integrations:write"),
            "DeleteIntegration": Access(scope="integrations:write"),
        },
    ),
    # The only way out for a secret: no key opens it.
    **service_access(
        "holdfast.api.auth.v1.CredentialService",
        {
            "ResolveCredential": Access(services=("executor",)),
            "RecordCredentialUses": Access(services=("executor",)),
        },
    ),
    # The right of a run, signed for the caller whose credential the executor shows.
    **service_access(
        "holdfast.api.auth.v1.GrantService",
        dict.fromkeys(("IssueRunGrant", "DeriveRunGrant"), Access(services=("executor",))),
    ),
    # Keys of what is stored sealed, for the services that store it.
    **service_access(
        "holdfast.api.auth.v1.DataKeyService",
        {
            "CreateDataKey": Access(services=("state",)),
            "UnwrapDataKey": Access(services=("state",)),
            "CheckPayloadSealing": Access(services=("state",), traced=False),
        },
    ),
    **service_access(
        "holdfast.api.auth.v1.WorkspaceService",
        {
            "GetWorkspace": Access(scope=OWN_WORKSPACE),
            "SetPayloadSealing": Access(scope=ADMIN),
            "CloseWorkspace": Access(services=("operator",)),
            "DeleteWorkspace": Access(services=("operator",)),
        },
    ),
}
