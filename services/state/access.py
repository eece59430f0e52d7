"""Who may call what: state is internal, so that every RPC names services and none takes an API key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.shared.access import Access, service_access

_EXECUTOR: Final = Access(services=("executor",))
_READERS: Final = Access(services=("executor", "trace"))
_STREAM: Final = Access(services=("executor",), traced=False)
# The person who runs the suite, through `holdfast`, with the suite's own token.
_OPERATOR: Final = Access(services=("operator",))
_EXECUTOR_OR_OPERATOR: Final = Access(services=("executor", "operator"))

ACCESS: Final[Mapping[str, Access]] = {
    **service_access(
        "holdfast.api.state.v1.JournalService",
        {
            "Checkpoint": _STREAM,
            "Append": _EXECUTOR,
            "CreateRun": _EXECUTOR,
            "ReadJournal": _READERS,
            "WatchJournal": _STREAM,
            "ReadBlob": _READERS,
        },
    ),
    **service_access("holdfast.api.state.v1.LeaseService", {"Work": _STREAM}),
    **service_access(
        "holdfast.api.state.v1.CallQueueService",
        {
            "LeaseCalls": _EXECUTOR,
            "StartCall": _EXECUTOR,
            "RenewCalls": _EXECUTOR,
            "ReturnCalls": _EXECUTOR,
            "CompleteCall": _EXECUTOR,
            "GetCall": _EXECUTOR,
        },
    ),
    **service_access(
        "holdfast.api.state.v1.AgentStoreService",
        {
            "PutAgentRevision": _EXECUTOR,
            "GetAgent": _EXECUTOR,
            "ListAgents": _EXECUTOR,
            "GetAgentRevision": _READERS,
            "ListAgentRevisions": _EXECUTOR,
            "PutAgentLabel": _EXECUTOR,
        },
    ),
    **service_access(
        "holdfast.api.state.v1.RunStoreService",
        {
            "GetRun": _READERS,
            "ListRuns": _EXECUTOR,
            "RequestCancel": _EXECUTOR,
            "RequestPause": _EXECUTOR,
            "RequestResume": _EXECUTOR,
            "CreateSession": _EXECUTOR,
            "GetSession": _EXECUTOR,
            "ListSessions": _EXECUTOR,
            "ListSessionMessages": _EXECUTOR,
            "GetApproval": _EXECUTOR,
            "ListApprovals": _EXECUTOR,
            "GetRunGrant": _EXECUTOR,
            "ListSessionApprovals": _EXECUTOR,
            "ListSignIns": _EXECUTOR,
            "DecideApproval": _EXECUTOR,
        },
    ),
    **service_access("holdfast.api.state.v1.ChangeFeedService", {"Follow": Access(services=("trace",), traced=False)}),
    **service_access(
        "holdfast.api.state.v1.HousekeepingService",
        {
            "GetWorkspaceSettings": _EXECUTOR_OR_OPERATOR,
            "UpdateWorkspaceSettings": _EXECUTOR_OR_OPERATOR,
            "ExportData": _EXECUTOR_OR_OPERATOR,
            "EraseData": _EXECUTOR_OR_OPERATOR,
            "GetWorkspaceStorage": _EXECUTOR_OR_OPERATOR,
            "GetStorageReport": _OPERATOR,
        },
    ),
    **service_access(
        "holdfast.api.state.v1.OperatorService",
        {"GetStatus": _OPERATOR, "CheckInvariants": Access(services=("operator",), traced=False)},
    ),
}
