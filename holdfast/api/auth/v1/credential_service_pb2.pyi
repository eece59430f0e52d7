import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CredentialMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CREDENTIAL_MODE_UNSPECIFIED: _ClassVar[CredentialMode]
    CREDENTIAL_MODE_INJECT: _ClassVar[CredentialMode]
    CREDENTIAL_MODE_RAW: _ClassVar[CredentialMode]
CREDENTIAL_MODE_UNSPECIFIED: CredentialMode
CREDENTIAL_MODE_INJECT: CredentialMode
CREDENTIAL_MODE_RAW: CredentialMode

class ResolveCredentialRequest(_message.Message):
    __slots__ = ("workspace_id", "connection", "run_id", "step", "run_grant", "tool", "target", "method", "scopes", "min_valid_for", "rejected_fingerprint", "mode")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    MIN_VALID_FOR_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    connection: str
    run_id: str
    step: int
    run_grant: str
    tool: str
    target: str
    method: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    min_valid_for: _duration_pb2.Duration
    rejected_fingerprint: str
    mode: CredentialMode
    def __init__(self, workspace_id: _Optional[str] = ..., connection: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., run_grant: _Optional[str] = ..., tool: _Optional[str] = ..., target: _Optional[str] = ..., method: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., min_valid_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., rejected_fingerprint: _Optional[str] = ..., mode: _Optional[_Union[CredentialMode, str]] = ...) -> None: ...

class InjectedField(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class AllowedTarget(_message.Message):
    __slots__ = ("scheme", "host", "port", "path_prefix", "methods")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PATH_PREFIX_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    scheme: str
    host: str
    port: int
    path_prefix: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, scheme: _Optional[str] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., path_prefix: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ...) -> None: ...

class AuthFailureSignal(_message.Message):
    __slots__ = ("status", "pointer", "equals", "header", "contains")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    POINTER_FIELD_NUMBER: _ClassVar[int]
    EQUALS_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONTAINS_FIELD_NUMBER: _ClassVar[int]
    status: int
    pointer: str
    equals: str
    header: str
    contains: str
    def __init__(self, status: _Optional[int] = ..., pointer: _Optional[str] = ..., equals: _Optional[str] = ..., header: _Optional[str] = ..., contains: _Optional[str] = ...) -> None: ...

class ResolveCredentialResponse(_message.Message):
    __slots__ = ("connection_id", "provider", "secret", "base_url", "version", "fingerprint", "expire_time", "headers", "query", "allowed_targets", "auth_failure_signals")
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TARGETS_FIELD_NUMBER: _ClassVar[int]
    AUTH_FAILURE_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    connection_id: str
    provider: str
    secret: str
    base_url: str
    version: int
    fingerprint: str
    expire_time: _timestamp_pb2.Timestamp
    headers: _containers.RepeatedCompositeFieldContainer[InjectedField]
    query: _containers.RepeatedCompositeFieldContainer[InjectedField]
    allowed_targets: _containers.RepeatedCompositeFieldContainer[AllowedTarget]
    auth_failure_signals: _containers.RepeatedCompositeFieldContainer[AuthFailureSignal]
    def __init__(self, connection_id: _Optional[str] = ..., provider: _Optional[str] = ..., secret: _Optional[str] = ..., base_url: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., headers: _Optional[_Iterable[_Union[InjectedField, _Mapping]]] = ..., query: _Optional[_Iterable[_Union[InjectedField, _Mapping]]] = ..., allowed_targets: _Optional[_Iterable[_Union[AllowedTarget, _Mapping]]] = ..., auth_failure_signals: _Optional[_Iterable[_Union[AuthFailureSignal, _Mapping]]] = ...) -> None: ...

class CredentialUse(_message.Message):
    __slots__ = ("record_id", "workspace_id", "connection", "connection_id", "fingerprint", "run_id", "step", "tool", "target", "user_id", "use_time")
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    USE_TIME_FIELD_NUMBER: _ClassVar[int]
    record_id: str
    workspace_id: str
    connection: str
    connection_id: str
    fingerprint: str
    run_id: str
    step: int
    tool: str
    target: str
    user_id: str
    use_time: _timestamp_pb2.Timestamp
    def __init__(self, record_id: _Optional[str] = ..., workspace_id: _Optional[str] = ..., connection: _Optional[str] = ..., connection_id: _Optional[str] = ..., fingerprint: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., tool: _Optional[str] = ..., target: _Optional[str] = ..., user_id: _Optional[str] = ..., use_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RecordCredentialUsesRequest(_message.Message):
    __slots__ = ("uses",)
    USES_FIELD_NUMBER: _ClassVar[int]
    uses: _containers.RepeatedCompositeFieldContainer[CredentialUse]
    def __init__(self, uses: _Optional[_Iterable[_Union[CredentialUse, _Mapping]]] = ...) -> None: ...

class RecordCredentialUsesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
