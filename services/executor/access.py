"""Who may call the executor: every public method with the scope that an API key needs for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.shared.access import ADMIN_SCOPE, Access, service_access

_AGENTS_READ: Final = Access(scope="agents:read")
_AGENTS_WRITE: Final = Access(scope="agents:write")
_RUNS_READ: Final = Access(scope="runs:read")
_RUNS_WRITE: Final = Access(scope="runs:write")
_APPROVALS_READ: Final = Access(scope="approvals:read")
_APPROVALS_WRITE: Final = Access(scope="approvals:write")
_ADMIN: Final = Access(scope=ADMIN_SCOPE)

ACCESS: Final[Mapping[str, Access]] = {
    **service_access(
        "holdfast.api.executor.v1.AgentService",
        {
            "ApplyAgent": _AGENTS_WRITE,
            "GetAgent": _AGENTS_READ,
            "ListAgents": _AGENTS_READ,
            "GetAgentRevision": _AGENTS_READ,
            "ListAgentRevisions": _AGENTS_READ,
            "SetAgentLabel": _AGENTS_WRITE,
        },
    ),
    **service_access(
        "holdfast.api.executor.v1.SessionService",
        {
            "CreateSession": _RUNS_WRITE,
            "GetSession": _RUNS_READ,
            "ListSessions": _RUNS_READ,
            "ListMessages": _RUNS_READ,
        },
    ),
    **service_access(
        "holdfast.api.executor.v1.RunService",
        {
            "StartRun": _RUNS_WRITE,
            "StartRuns": Access(scope="runs:write", traced=False),
            "WaitRun": Access(scope="runs:read", long_poll=True, traced=False),
            "GetRun": _RUNS_READ,
            "GetRunBudget": _RUNS_READ,
            "ListRuns": _RUNS_READ,
            "WatchRun": Access(scope="runs:read", traced=False),
            "CancelRun": _RUNS_WRITE,
            "PauseRun": _RUNS_WRITE,
            "ResumeRun": _RUNS_WRITE,
            "GetBlob": _RUNS_READ,
        },
    ),
    **service_access(
        "holdfast.api.executor.v1.ApprovalService",
        {
            "GetApproval": _APPROVALS_READ,
            "ListApprovals": _APPROVALS_READ,
            "DecideApproval": _APPROVALS_WRITE,
        },
    ),
    **service_access(
        "holdfast.api.executor.v1.ToolWorkerService",
        {
            "Work": Access(scope="workers", traced=False),
            "CompleteCall": Access(scope="workers"),
            "GetCallCredential": Access(scope="workers"),
        },
    ),
    **service_access(
        "holdfast.api.executor.v1.WorkspaceService",
        {
            "GetWorkspaceSettings": _ADMIN,
            "UpdateWorkspaceSettings": _ADMIN,
            "ExportWorkspaceData": _ADMIN,
            "EraseWorkspaceData": _ADMIN,
            "GetWorkspaceStorage": _ADMIN,
        },
    ),
}
