import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.common.v1 import agent_pb2 as _agent_pb2
from holdfast.api.common.v1 import content_pb2 as _content_pb2
from holdfast.api.common.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkspaceSettings(_message.Message):
    __slots__ = ("weight", "max_running_runs", "ended_runs_kept", "idle_sessions_kept", "keep_latest_runs", "update_time", "etag")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_RUNS_FIELD_NUMBER: _ClassVar[int]
    ENDED_RUNS_KEPT_FIELD_NUMBER: _ClassVar[int]
    IDLE_SESSIONS_KEPT_FIELD_NUMBER: _ClassVar[int]
    KEEP_LATEST_RUNS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    weight: int
    max_running_runs: int
    ended_runs_kept: _duration_pb2.Duration
    idle_sessions_kept: _duration_pb2.Duration
    keep_latest_runs: int
    update_time: _timestamp_pb2.Timestamp
    etag: str
    def __init__(self, weight: _Optional[int] = ..., max_running_runs: _Optional[int] = ..., ended_runs_kept: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., idle_sessions_kept: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., keep_latest_runs: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class DataScope(_message.Message):
    __slots__ = ("everything", "session_id", "user_id")
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    everything: bool
    session_id: str
    user_id: str
    def __init__(self, everything: bool = ..., session_id: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class ExportedSession(_message.Message):
    __slots__ = ("session_id", "user_id", "run_count", "create_time")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    user_id: str
    run_count: int
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, session_id: _Optional[str] = ..., user_id: _Optional[str] = ..., run_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ExportRecord(_message.Message):
    __slots__ = ("agent", "agent_revision", "session", "run", "event", "approval", "blob", "session_approval")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_REVISION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    SESSION_APPROVAL_FIELD_NUMBER: _ClassVar[int]
    agent: _agent_pb2.Agent
    agent_revision: _agent_pb2.AgentRevision
    session: ExportedSession
    run: _run_pb2.Run
    event: _run_pb2.Event
    approval: _run_pb2.Approval
    blob: _content_pb2.Blob
    session_approval: _run_pb2.SessionApproval
    def __init__(self, agent: _Optional[_Union[_agent_pb2.Agent, _Mapping]] = ..., agent_revision: _Optional[_Union[_agent_pb2.AgentRevision, _Mapping]] = ..., session: _Optional[_Union[ExportedSession, _Mapping]] = ..., run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ..., event: _Optional[_Union[_run_pb2.Event, _Mapping]] = ..., approval: _Optional[_Union[_run_pb2.Approval, _Mapping]] = ..., blob: _Optional[_Union[_content_pb2.Blob, _Mapping]] = ..., session_approval: _Optional[_Union[_run_pb2.SessionApproval, _Mapping]] = ...) -> None: ...

class DataCounts(_message.Message):
    __slots__ = ("sessions", "runs", "events", "blobs", "agents", "unfinished_runs", "connections")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_RUNS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    runs: int
    events: int
    blobs: int
    agents: int
    unfinished_runs: int
    connections: int
    def __init__(self, sessions: _Optional[int] = ..., runs: _Optional[int] = ..., events: _Optional[int] = ..., blobs: _Optional[int] = ..., agents: _Optional[int] = ..., unfinished_runs: _Optional[int] = ..., connections: _Optional[int] = ...) -> None: ...

class RunCount(_message.Message):
    __slots__ = ("state", "runs")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    state: _run_pb2.RunState
    runs: int
    def __init__(self, state: _Optional[_Union[_run_pb2.RunState, str]] = ..., runs: _Optional[int] = ...) -> None: ...

class WorkspaceStorage(_message.Message):
    __slots__ = ("workspace_id", "sessions", "runs", "events", "event_bytes_estimate", "blobs", "blob_bytes", "oldest_run_time", "removable_runs", "removable_sessions", "runs_being_deleted")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVENT_BYTES_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    REMOVABLE_RUNS_FIELD_NUMBER: _ClassVar[int]
    REMOVABLE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    RUNS_BEING_DELETED_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    sessions: int
    runs: _containers.RepeatedCompositeFieldContainer[RunCount]
    events: int
    event_bytes_estimate: int
    blobs: int
    blob_bytes: int
    oldest_run_time: _timestamp_pb2.Timestamp
    removable_runs: int
    removable_sessions: int
    runs_being_deleted: int
    def __init__(self, workspace_id: _Optional[str] = ..., sessions: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[RunCount, _Mapping]]] = ..., events: _Optional[int] = ..., event_bytes_estimate: _Optional[int] = ..., blobs: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., oldest_run_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., removable_runs: _Optional[int] = ..., removable_sessions: _Optional[int] = ..., runs_being_deleted: _Optional[int] = ...) -> None: ...

class TableStorage(_message.Message):
    __slots__ = ("name", "rows", "is_estimate", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    IS_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    is_estimate: bool
    bytes: int
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., is_estimate: bool = ..., bytes: _Optional[int] = ...) -> None: ...

class DatabaseStorage(_message.Message):
    __slots__ = ("dialect", "bytes", "free_bytes", "wal_bytes", "disk_free_bytes", "tables")
    DIALECT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    dialect: str
    bytes: int
    free_bytes: int
    wal_bytes: int
    disk_free_bytes: int
    tables: _containers.RepeatedCompositeFieldContainer[TableStorage]
    def __init__(self, dialect: _Optional[str] = ..., bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., wal_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableStorage, _Mapping]]] = ...) -> None: ...
