import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.auth.v1 import connection_service_pb2 as _connection_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONNECT_MODE_UNSPECIFIED: _ClassVar[ConnectMode]
    CONNECT_MODE_BROWSER: _ClassVar[ConnectMode]
    CONNECT_MODE_DEVICE: _ClassVar[ConnectMode]

class ConnectSessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONNECT_SESSION_STATE_UNSPECIFIED: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_PENDING: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_AUTHORIZING: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_CONFIRMING: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_CONNECTED: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_DECLINED: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_FAILED: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_EXPIRED: _ClassVar[ConnectSessionState]
    CONNECT_SESSION_STATE_CANCELLED: _ClassVar[ConnectSessionState]
CONNECT_MODE_UNSPECIFIED: ConnectMode
CONNECT_MODE_BROWSER: ConnectMode
CONNECT_MODE_DEVICE: ConnectMode
CONNECT_SESSION_STATE_UNSPECIFIED: ConnectSessionState
CONNECT_SESSION_STATE_PENDING: ConnectSessionState
CONNECT_SESSION_STATE_AUTHORIZING: ConnectSessionState
CONNECT_SESSION_STATE_CONFIRMING: ConnectSessionState
CONNECT_SESSION_STATE_CONNECTED: ConnectSessionState
CONNECT_SESSION_STATE_DECLINED: ConnectSessionState
CONNECT_SESSION_STATE_FAILED: ConnectSessionState
CONNECT_SESSION_STATE_EXPIRED: ConnectSessionState
CONNECT_SESSION_STATE_CANCELLED: ConnectSessionState

class ConnectSession(_message.Message):
    __slots__ = ("session_id", "integration", "user_id", "connection", "mode", "scopes", "state", "failure_reason", "account_label", "connect_url", "user_code", "verification_url", "create_time", "expire_time", "variables")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_REASON_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONNECT_URL_FIELD_NUMBER: _ClassVar[int]
    USER_CODE_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_URL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    integration: str
    user_id: str
    connection: str
    mode: ConnectMode
    scopes: _containers.RepeatedScalarFieldContainer[str]
    state: ConnectSessionState
    failure_reason: str
    account_label: str
    connect_url: str
    user_code: str
    verification_url: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    variables: _containers.ScalarMap[str, str]
    def __init__(self, session_id: _Optional[str] = ..., integration: _Optional[str] = ..., user_id: _Optional[str] = ..., connection: _Optional[str] = ..., mode: _Optional[_Union[ConnectMode, str]] = ..., scopes: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[ConnectSessionState, str]] = ..., failure_reason: _Optional[str] = ..., account_label: _Optional[str] = ..., connect_url: _Optional[str] = ..., user_code: _Optional[str] = ..., verification_url: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., variables: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StartConnectRequest(_message.Message):
    __slots__ = ("integration", "user_id", "connection", "mode", "scopes", "return_url", "request_id", "variables")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INTEGRATION_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    RETURN_URL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    integration: str
    user_id: str
    connection: str
    mode: ConnectMode
    scopes: _containers.RepeatedScalarFieldContainer[str]
    return_url: str
    request_id: str
    variables: _containers.ScalarMap[str, str]
    def __init__(self, integration: _Optional[str] = ..., user_id: _Optional[str] = ..., connection: _Optional[str] = ..., mode: _Optional[_Union[ConnectMode, str]] = ..., scopes: _Optional[_Iterable[str]] = ..., return_url: _Optional[str] = ..., request_id: _Optional[str] = ..., variables: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StartConnectResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: ConnectSession
    def __init__(self, session: _Optional[_Union[ConnectSession, _Mapping]] = ...) -> None: ...

class GetConnectSessionRequest(_message.Message):
    __slots__ = ("session_id", "known_state", "wait_seconds")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_STATE_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    known_state: ConnectSessionState
    wait_seconds: int
    def __init__(self, session_id: _Optional[str] = ..., known_state: _Optional[_Union[ConnectSessionState, str]] = ..., wait_seconds: _Optional[int] = ...) -> None: ...

class GetConnectSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: ConnectSession
    def __init__(self, session: _Optional[_Union[ConnectSession, _Mapping]] = ...) -> None: ...

class ConfirmConnectRequest(_message.Message):
    __slots__ = ("session_id", "confirm_code", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_CODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    confirm_code: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., confirm_code: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ConfirmConnectResponse(_message.Message):
    __slots__ = ("session", "connection")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    session: ConnectSession
    connection: _connection_service_pb2.Connection
    def __init__(self, session: _Optional[_Union[ConnectSession, _Mapping]] = ..., connection: _Optional[_Union[_connection_service_pb2.Connection, _Mapping]] = ...) -> None: ...

class CancelConnectRequest(_message.Message):
    __slots__ = ("session_id", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CancelConnectResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: ConnectSession
    def __init__(self, session: _Optional[_Union[ConnectSession, _Mapping]] = ...) -> None: ...

class RequestSignInRequest(_message.Message):
    __slots__ = ("workspace_id", "run_grant", "step", "connection", "scopes", "expire_time", "request_id")
    WORKSPACE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_GRANT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    workspace_id: str
    run_grant: str
    step: int
    connection: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    expire_time: _timestamp_pb2.Timestamp
    request_id: str
    def __init__(self, workspace_id: _Optional[str] = ..., run_grant: _Optional[str] = ..., step: _Optional[int] = ..., connection: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RequestSignInResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: ConnectSession
    def __init__(self, session: _Optional[_Union[ConnectSession, _Mapping]] = ...) -> None: ...
