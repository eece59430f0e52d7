import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.common.v1 import content_pb2 as _content_pb2
from holdfast.api.common.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoredSession(_message.Message):
    __slots__ = ("session_id", "user_id", "last_run_id", "create_time")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    user_id: str
    last_run_id: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, session_id: _Optional[str] = ..., user_id: _Optional[str] = ..., last_run_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("workspace_id", "page_size", "before_run_id", "agent", "session_id", "user_id", "states", "created_after", "parent_run_id", "root_run_id", "include_children")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CHILDREN_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    page_size: int
    before_run_id: str
    agent: str
    session_id: str
    user_id: str
    states: _containers.RepeatedScalarFieldContainer[_run_pb2.RunState]
    created_after: _timestamp_pb2.Timestamp
    parent_run_id: str
    root_run_id: str
    include_children: bool
    def __init__(self, workspace_id: _Optional[str] = ..., page_size: _Optional[int] = ..., before_run_id: _Optional[str] = ..., agent: _Optional[str] = ..., session_id: _Optional[str] = ..., user_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_run_pb2.RunState, str]]] = ..., created_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parent_run_id: _Optional[str] = ..., root_run_id: _Optional[str] = ..., include_children: bool = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "has_more")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[_run_pb2.Run]
    has_more: bool
    def __init__(self, runs: _Optional[_Iterable[_Union[_run_pb2.Run, _Mapping]]] = ..., has_more: bool = ...) -> None: ...

class RequestCancelRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id", "requested_by", "reason")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    requested_by: str
    reason: str
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., requested_by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RequestCancelResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class RequestPauseRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id", "requested_by", "reason", "request_id", "request_fingerprint")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    requested_by: str
    reason: str
    request_id: str
    request_fingerprint: bytes
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., requested_by: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ...) -> None: ...

class RequestPauseResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class RequestResumeRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id", "requested_by", "reason", "request_id", "request_fingerprint")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    requested_by: str
    reason: str
    request_id: str
    request_fingerprint: bytes
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ..., requested_by: _Optional[str] = ..., reason: _Optional[str] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ...) -> None: ...

class RequestResumeResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("workspace_id", "session_id", "user_id", "request_id", "request_fingerprint")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    session_id: str
    user_id: str
    request_id: str
    request_fingerprint: bytes
    def __init__(self, workspace_id: _Optional[str] = ..., session_id: _Optional[str] = ..., user_id: _Optional[str] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: StoredSession
    def __init__(self, session: _Optional[_Union[StoredSession, _Mapping]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("workspace_id", "session_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    session_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: StoredSession
    def __init__(self, session: _Optional[_Union[StoredSession, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("workspace_id", "page_size", "before_session_id", "user_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    page_size: int
    before_session_id: str
    user_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., page_size: _Optional[int] = ..., before_session_id: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "has_more")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[StoredSession]
    has_more: bool
    def __init__(self, sessions: _Optional[_Iterable[_Union[StoredSession, _Mapping]]] = ..., has_more: bool = ...) -> None: ...

class ListSessionMessagesRequest(_message.Message):
    __slots__ = ("workspace_id", "session_id", "page_size", "position", "before_run_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    session_id: str
    page_size: int
    position: str
    before_run_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., session_id: _Optional[str] = ..., page_size: _Optional[int] = ..., position: _Optional[str] = ..., before_run_id: _Optional[str] = ...) -> None: ...

class ListSessionMessagesResponse(_message.Message):
    __slots__ = ("messages", "next_position")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[StoredSessionMessage]
    next_position: str
    def __init__(self, messages: _Optional[_Iterable[_Union[StoredSessionMessage, _Mapping]]] = ..., next_position: _Optional[str] = ...) -> None: ...

class StoredSessionMessage(_message.Message):
    __slots__ = ("run_id", "seq", "step", "message", "time")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    seq: int
    step: int
    message: _content_pb2.Message
    time: _timestamp_pb2.Timestamp
    def __init__(self, run_id: _Optional[str] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., message: _Optional[_Union[_content_pb2.Message, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetApprovalRequest(_message.Message):
    __slots__ = ("workspace_id", "approval_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    approval_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., approval_id: _Optional[str] = ...) -> None: ...

class GetApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: _run_pb2.Approval
    def __init__(self, approval: _Optional[_Union[_run_pb2.Approval, _Mapping]] = ...) -> None: ...

class ListApprovalsRequest(_message.Message):
    __slots__ = ("workspace_id", "page_size", "before_approval_id", "run_id", "state", "root_run_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    page_size: int
    before_approval_id: str
    run_id: str
    state: _run_pb2.ApprovalState
    root_run_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., page_size: _Optional[int] = ..., before_approval_id: _Optional[str] = ..., run_id: _Optional[str] = ..., state: _Optional[_Union[_run_pb2.ApprovalState, str]] = ..., root_run_id: _Optional[str] = ...) -> None: ...

class ListApprovalsResponse(_message.Message):
    __slots__ = ("approvals", "has_more")
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    approvals: _containers.RepeatedCompositeFieldContainer[_run_pb2.Approval]
    has_more: bool
    def __init__(self, approvals: _Optional[_Iterable[_Union[_run_pb2.Approval, _Mapping]]] = ..., has_more: bool = ...) -> None: ...

class DecideApprovalRequest(_message.Message):
    __slots__ = ("workspace_id", "decision")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    decision: _run_pb2.ApprovalDecided
    def __init__(self, workspace_id: _Optional[str] = ..., decision: _Optional[_Union[_run_pb2.ApprovalDecided, _Mapping]] = ...) -> None: ...

class DecideApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: _run_pb2.Approval
    def __init__(self, approval: _Optional[_Union[_run_pb2.Approval, _Mapping]] = ...) -> None: ...

class GetRunGrantRequest(_message.Message):
    __slots__ = ("workspace_id", "run_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class GetRunGrantResponse(_message.Message):
    __slots__ = ("run_grant",)
    RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    run_grant: str
    def __init__(self, run_grant: _Optional[str] = ...) -> None: ...

class ListSessionApprovalsRequest(_message.Message):
    __slots__ = ("workspace_id", "session_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    session_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class ListSessionApprovalsResponse(_message.Message):
    __slots__ = ("approvals",)
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    approvals: _containers.RepeatedCompositeFieldContainer[_run_pb2.SessionApproval]
    def __init__(self, approvals: _Optional[_Iterable[_Union[_run_pb2.SessionApproval, _Mapping]]] = ...) -> None: ...

class ListSignInsRequest(_message.Message):
    __slots__ = ("workspace_id", "page_size", "after_workspace_id", "after_approval_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_APPROVAL_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    page_size: int
    after_workspace_id: str
    after_approval_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., page_size: _Optional[int] = ..., after_workspace_id: _Optional[str] = ..., after_approval_id: _Optional[str] = ...) -> None: ...

class StoredSignIn(_message.Message):
    __slots__ = ("workspace_id", "approval")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    approval: _run_pb2.Approval
    def __init__(self, workspace_id: _Optional[str] = ..., approval: _Optional[_Union[_run_pb2.Approval, _Mapping]] = ...) -> None: ...

class ListSignInsResponse(_message.Message):
    __slots__ = ("sign_ins", "has_more")
    SIGN_INS_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    sign_ins: _containers.RepeatedCompositeFieldContainer[StoredSignIn]
    has_more: bool
    def __init__(self, sign_ins: _Optional[_Iterable[_Union[StoredSignIn, _Mapping]]] = ..., has_more: bool = ...) -> None: ...
